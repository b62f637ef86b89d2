"""The tracker: experiments and series as the store has them, with the catalog, without it, and after it was lost."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import CheckpointManager, MissingExtraError, NotFoundError, StoreError, UsageError
from ckpt_core.repository import MetricSegments
from ckpt_core.stores import LocalStore, MemoryStore
from ckpt_core.tracker.experiments import ExperimentTracker
from crash.wrappers import ScriptedStore

NAN = math.nan


def train(root: Any, name: str, losses: list[float], **options: Any) -> None:
    with CheckpointManager(root, experiment=name, **options) as manager:
        for step, loss in enumerate(losses):
            manager.log({"loss": loss, "acc": step / 10}, step=10 * step)
        manager.save({"w": 1}, step=10 * len(losses), metrics={"only of checkpoints": 1.0}, wait=True)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tracker") / "store"
    train(root, "a", [3.0, 1.0, NAN, 2.0], config={"optimizer": {"lr": 0.1}, "depth": 2})
    train(root, "b", [5.0, 0.5], config={"optimizer": {"lr": 0.2}, "depth": 2})
    with CheckpointManager(root, experiment="c", config={"optimizer": {"lr": 0.3}}) as manager:
        state = manager.load("a@latest")
        manager.log({"loss": NAN}, step=0)
        manager.save(state, step=50, wait=True)
        manager.tracker.tag("c", "chosen")
        manager.tracker.tag("a", "chosen")
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(pristine), str(tmp_path / "store")], check=True)
    return tmp_path / "store"


@pytest.fixture(params=["catalog", "reindexed", "away"])
def tracker(request: pytest.FixtureRequest, root: Path) -> Any:
    """The same store with its catalog, with one that was made anew, and with none that can be used."""
    catalog = None
    if request.param == "reindexed":
        for path in root.glob("catalog.db*"):
            path.unlink()
    if request.param == "away":
        catalog = f"sqlite:///{root}/nowhere/catalog.db"
    with ExperimentTracker(root, catalog=catalog) as opened:
        yield opened


def names(found: Any) -> list[str]:
    return [each.name for each in found]


def test_questions_about_experiments(tracker: ExperimentTracker) -> None:
    assert names(tracker.experiments()) == ["a", "b", "c"]
    assert names(tracker.experiments(tags="chosen")) == ["a", "c"]
    assert names(tracker.experiments(config={"optimizer.lr": 0.2})) == ["b"]
    assert names(tracker.experiments(config=["optimizer.lr >= 0.2", "depth=2"])) == ["b"]
    assert names(tracker.experiments(tags=["chosen"], config="optimizer.lr>0.1")) == ["c"]
    assert names(tracker.experiments(status="finished")) == ["a", "b", "c"]
    assert names(tracker.experiments(status="failed")) == []


def test_one_experiment(tracker: ExperimentTracker) -> None:
    found = tracker.experiment("c")
    assert (found.tags, found.status, found.config) == (("chosen",), "finished", {"optimizer": {"lr": 0.3}})
    assert found.parent is not None
    assert (found.parent.relation, found.parent.experiment, found.parent.step) == ("fine-tuned", "a", 40)
    assert found.environment["host"]
    assert found.started_at is not None and found.ended_at is not None and found.started_at < found.ended_at
    assert tracker.experiment("a").parent is None


def test_questions_about_a_series(tracker: ExperimentTracker) -> None:
    series = tracker.metric("a", "loss")
    assert tracker.metrics("a") == ["acc", "loss"]
    assert series.steps.tolist() == [0, 10, 20, 30]
    assert (series.last.value, series.min.value, series.max.value) == (2.0, 1.0, 3.0)
    assert (series.best("min").step, series.best("max").step, series.at(30).value) == (10, 0, 2.0)
    assert math.isnan(series.at(20).value)
    assert series.between(10, 20).steps.tolist() == [10, 20]
    assert [point.value for point in series.between(first=30)] == [2.0]
    assert series.moments[0] <= series.moments[-1]
    assert series.last.at.tzinfo is not None
    with pytest.raises(NotFoundError, match="the nearest is step 10"):
        series.at(11)


def test_the_best_of_experiments(tracker: ExperimentTracker) -> None:
    assert [(each.name, point.value) for each, point in tracker.best("loss")] == [("b", 0.5), ("a", 1.0)]
    assert [each.name for each, _ in tracker.best("loss", "max", config={"depth": 2})] == ["b", "a"]
    assert tracker.best("nothing") == []


def test_side_by_side(tracker: ExperimentTracker) -> None:
    found = tracker.compare("a", "b")
    rows = {(row.group, row.name): row.values for row in found.differing}
    assert rows["config", "optimizer.lr"] == (0.1, 0.2)
    assert rows["metric", "loss min"] == (1.0, 0.5)
    assert ("config", "depth") not in rows
    assert found.records()[0] == {"group": "status", "name": "status", "a": "finished", "b": "finished"}
    for wrong in ((), ("a",), ("a", "a")):
        with pytest.raises(UsageError, match="two experiments"):
            tracker.compare(*wrong)


def test_experiments_may_be_called_as_columns_are(tmp_path: Path) -> None:
    for name, loss in (("name", 1.0), ("group", 2.0)):
        train(tmp_path, name, [loss])
    with ExperimentTracker(tmp_path) as tracker:
        found = tracker.compare("name", "group").records()
    assert {
        "group": "metric",
        "name": "loss min",
        "name (experiment)": 1.0,
        "group (experiment)": 2.0,
    } in found


def test_what_is_not_there(tracker: ExperimentTracker) -> None:
    with pytest.raises(NotFoundError, match="there are 'a', 'b', 'c'"):
        tracker.experiment("d")
    with pytest.raises(NotFoundError, match="has logged no 'nothing'"):
        _ = tracker.metric("a", "nothing").last
    with pytest.raises(NotFoundError, match="is NaN"):
        _ = tracker.metric("c", "loss").min
    assert len(tracker.metric("d", "loss")) == 0
    with pytest.raises(UsageError, match="must be one of running"):
        tracker.experiments(status="done")
    with pytest.raises(UsageError):
        tracker.metric("a", "loss").best("least")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["", "x" * 256, "half \ud800"])
def test_what_can_be_no_name(
    tracker: ExperimentTracker, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.experiments()
    caplog.clear()
    for ask in (
        tracker.experiment,
        tracker.metrics,
        lambda name: tracker.metric(name, "loss"),
        lambda name: tracker.metric("a", name),
        lambda name: tracker.untag("a", name),
        lambda name: tracker.untag(name, "chosen"),
        lambda name: tracker.experiments(tags=name),
    ):
        with pytest.raises(UsageError, match="name|tag"):
            ask(wrong)
    assert caplog.text == ""


def test_a_nan_is_not_the_best_beside_infinities(tmp_path: Path) -> None:
    train(tmp_path, "a", [NAN, math.inf, NAN, math.inf])
    train(tmp_path, "b", [NAN, -math.inf])
    with ExperimentTracker(tmp_path) as tracker:
        assert (tracker.metric("a", "loss").min.step, tracker.metric("a", "loss").max.step) == (10, 10)
        assert tracker.metric("b", "loss").max.value == -math.inf


def test_tags_come_and_go(tracker: ExperimentTracker, root: Path) -> None:
    tracker.tag("b", "wie/so?".replace("/", " "))
    tracker.tag("b", "wie so?")
    tracker.untag("a", "chosen")
    tracker.untag("a", "never was")
    with ExperimentTracker(root) as another:
        assert another.experiment("b").tags == ("wie so?",)
        assert names(another.experiments(tags="chosen")) == ["c"]
    for wrong in ("", "a/b", "x" * 256):
        with pytest.raises(UsageError):
            tracker.tag("b", wrong)
    with pytest.raises(NotFoundError):
        tracker.tag("typo", "x")


def test_plain_records(tracker: ExperimentTracker) -> None:
    first = tracker.metric("b", "loss").records()[0]
    assert (first["step"], first["value"], first["attempt"]) == (0, 5.0, 1)
    assert type(first["value"]) is float
    row = tracker.experiments().records()[1]
    assert (row["experiment"], row["status"], row["tags"]) == ("b", "finished", [])
    assert (row["config.optimizer.lr"], row["config.depth"]) == (0.2, 2.0)
    assert tracker.experiments().records()[2]["config.depth"] is None


def test_experiments_are_a_sequence(tracker: ExperimentTracker) -> None:
    found = tracker.experiments()
    assert (len(found), found[0].name, names(found[1:]), names(reversed(found))) == (
        3,
        "a",
        ["b", "c"],
        list("cba"),
    )
    assert repr(found) == "<Experiments a, b, c>"


# -- what others wrote, and what was cut off


def test_every_process_sees_what_others_log(root: Path, tmp_path: Path) -> None:
    with ExperimentTracker(root, catalog=f"sqlite:///{tmp_path}/other.db") as other:
        assert len(other.metric("a", "loss")) == 4
        with CheckpointManager(root, experiment="a") as manager:
            manager.load("latest")
            manager.log({"loss": 9.0}, step=30)
            manager.log({"loss": 7.0}, step=40)
            assert len(other.metric("a", "loss")) == 4
            manager._metrics.flush()
            assert other.metric("a", "loss").values.tolist()[-2:] == [9.0, 7.0]
            assert other.experiment("a").status == "running"


KILLED = """
import os, sys
from ckpt_core import CheckpointManager
manager = CheckpointManager(sys.argv[1], experiment="digits", flush_seconds=0.05)
for step in range(1000):
    manager.log({"loss": float(step)}, step=step)
while not os.path.isdir(sys.argv[1] + "/metrics/digits"):
    pass
os._exit(9)
"""


def test_what_was_flushed_is_there_after_a_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False, timeout=60
    )
    assert done.returncode == 9
    with ExperimentTracker(tmp_path) as tracker:
        in_store = sum(len(points) for _, _, points in MetricSegments(LocalStore(tmp_path)).all())
        assert len(tracker.metric("digits", "loss")) == in_store
        assert tracker.experiment("digits").status == "lost"


def test_a_segment_that_the_catalog_missed_does_not_outdo_a_later_one(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="digits") as manager:
        manager.log({"loss": 1.0}, step=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manager.workspace.index, "tell", lambda what: True)  # killed in between
            manager._metrics.flush()
        manager.log({"loss": 2.0}, step=1)
        manager._metrics.flush()
        assert manager.tracker.metric("digits", "loss").values.tolist() == [2.0]


def test_experiments_without_a_checkpoint_need_no_new_catalog(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager(tmp_path, experiment="digits") as manager:
        manager.log({"loss": 1.0}, step=1)
    for _ in range(2):
        with ExperimentTracker(tmp_path) as tracker:
            assert len(tracker.metric("digits", "loss")) == 1
            assert names(tracker.experiments()) == ["digits"]
    assert "built anew" not in caplog.text
    (tmp_path / "catalog.db").unlink()
    with ExperimentTracker(tmp_path) as tracker:
        assert names(tracker.experiments()) == ["digits"]
    assert "built anew" in caplog.text


def test_stores_of_earlier_versions_are_unknown_not_running(root: Path) -> None:
    subprocess.run(["rm", "-r", str(root / "experiments"), str(root / "catalog.db")], check=True)
    for catalog in (None, f"sqlite:///{root}/nowhere/catalog.db"):
        with ExperimentTracker(root, catalog=catalog) as tracker:
            found = tracker.experiment("c")
            assert (found.status, dict(found.config), found.tags, found.environment) == (
                "unknown",
                {},
                (),
                {},
            )
            assert found.parent is not None
            assert (found.parent.relation, found.parent.experiment) == ("fine-tuned", None)


def test_damage_leaves_out_what_is_damaged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (root / "experiments" / "a").rglob("*.json"):
        path.write_bytes(b"{}")
    (root / "catalog.db").unlink()
    with ExperimentTracker(root) as tracker:
        assert (tracker.experiment("a").status, tracker.experiment("a").tags) == ("unknown", ())
        assert tracker.experiment("b").status == "finished"
    assert "left out: experiments/a/" in caplog.text


def test_faults_of_the_store_are_told() -> None:
    store = ScriptedStore(MemoryStore())
    with CheckpointManager(store, experiment="digits") as manager:
        manager.log({"loss": 1.0}, step=1)

        def script(operation: str, key: str, when: str) -> None:
            if key.startswith("experiments"):
                raise StoreError("broken")

        store.script = script
        with pytest.raises(StoreError, match="broken"):
            manager.tracker.experiments()
        store.script = None


# -- notebooks, and what is not installed


def test_notebooks_show_text_as_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    config = {evil: evil}
    with CheckpointManager(tmp_path, experiment="digits", config=config) as manager:
        manager.log({evil: 1.0}, step=1)
        manager.tracker.tag("digits", "<b>".replace("/", ""))
        series = manager.tracker.metric("digits", evil)
        shown = [
            manager.tracker._repr_html_(),
            manager.tracker.experiment("digits")._repr_html_(),
            series._repr_html_(),
            manager.tracker.experiments()._repr_html_(),
        ]
    for html in shown:
        assert html.startswith("<table>")
        assert "<script" not in html
        assert "<b>" not in html
    assert "&lt;script&gt;" in shown[1]


def test_a_long_table_is_cut_in_a_notebook(tmp_path: Path) -> None:
    train(tmp_path, "a", [1.0] * 50)
    with ExperimentTracker(tmp_path) as tracker:
        html = tracker.metric("a", "loss")._repr_html_()
    assert html.count("<tr>") == 21
    assert "… and 30 more" in html


@pytest.mark.parametrize(
    ("method", "module", "extra"),
    [("to_pandas", "pandas", "pandas"), ("to_polars", "polars", "polars"), ("to_arrow", "pyarrow", "arrow"),
     ("plot", "matplotlib", "plot")],
)  # fmt: skip
def test_what_is_missing_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, method: str, module: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with ExperimentTracker(root) as tracker, pytest.raises(MissingExtraError) as caught:
        getattr(tracker.metric("a", "loss"), method)()
    assert f"pip install 'ckpt-core[{extra}]'" in str(caught.value)
    assert module in str(caught.value)
