"""What every adapter promises, as tests to inherit: a real training, killed anywhere, ends as if it never was.

An adapter gives its training script and says which of the script's options bring about what. The script is a
process; it takes one JSON object, and tells what it does by `contract.training.Report`:

    begin      how (of the resumption), step
    started    weights: digest before the first step, where `init_from` is given
    step       at, indices (of the samples), loss, ...: one for each batch
    end        digests of weights, optimizer, random states, schedule, stateful callbacks, ...
    series     points: what `contract.script.series_of` says
    evaluated  weights (digest), value: with `task="evaluate"`, which trains nothing
    refused    paths; and fitted: the fields of WeightsReport: with `task="changed"`, a model with another head and
               a layer that is called otherwise now

Options that every script knows: `store`, `report`, `experiment`, `resume`, `die`, `spoil`, `task`, `init_from`,
`second`, `fault`, `on_save_error`, `mechanism`. `mechanism="native"` is the framework's own way to save and go on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ckpt_core import CheckpointManager
from contract.training import Ended, Training, assert_same_training

KILLS = (
    "first step",
    "middle of an epoch",
    "evaluation due",
    "last step of an epoch",
    "boundary of epochs",
    "inside a save",
)
"""When SIGKILL comes: after the first step was made, after one in the middle of an epoch, in the evaluation that
is due at a step, after the last step of an epoch, between two epochs, between two writes of a save."""


class _Adapter:
    """One adapter and its script."""

    adapter: ClassVar[str]
    """Its name in docs/exactness.md."""
    script: ClassVar[Path]
    preload: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}
    """Of the script: a plain loader that shuffles, with workers, random augmentation and random masks; dropout, a
    schedule, early stopping or its like, an evaluation."""
    kills: ClassVar[Mapping[str, Mapping[str, Any]]]
    """`die` for each of KILLS."""
    environment: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def training(cls, folder: Path, **options: Any) -> Training:
        return Training(cls.script, folder, {**cls.options, **options}, cls.preload, cls.environment)

    @classmethod
    def record(cls, case: str, outcome: str) -> None:
        """One cell of the table that `make exact` prints: a line in the file that CKPT_EXACTNESS names."""
        path = os.environ.get("CKPT_EXACTNESS")
        if path:
            cell = {"group": cls.script.parent.name, "ours": issubclass(cls, AdapterContract)}
            cell |= {"adapter": cls.adapter, "case": case, "outcome": outcome}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")


class AdapterContract(_Adapter):
    """The promises. Inherit it as `class TestContract(AdapterContract)`."""

    raises: ClassVar[Mapping[str, Any]]
    """`die` that raises RuntimeError("on purpose") in the middle of a step."""
    good_step: ClassVar[int]
    """The step of the last good state when that happens: the run after it goes on from there."""
    terminates: ClassVar[Mapping[str, Any]]
    """`die` that sends SIGTERM in the middle of an epoch."""
    terminated_step: ClassVar[int]
    """The step in whose midst that happens: it is still made, and saved."""
    spoils: ClassVar[Sequence[str]]
    """What the script can leave out when it resumes after `kills["middle of an epoch"]`."""
    second: ClassVar[Mapping[str, Any]] = {"experiment": "second", "every_n_steps": 5}
    """Of a second callback on the same store."""
    metric: ClassVar[str] = "val_loss"
    """What `best` goes by; the least is the best."""
    full: ClassVar[int]
    """Bytes that hold a save or two, and not all."""

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Ended]:
        """A training that nobody disturbs."""
        training = cls.training(tmp_path_factory.mktemp("reference") / "run")
        return training, training.complete()

    @contextmanager
    def _recorded(self, case: str) -> Iterator[None]:
        """Records whether its block raised nothing."""
        try:
            yield
        except BaseException:
            self.record(case, "NOT EXACT")
            raise
        self.record(case, "exact")

    @pytest.mark.parametrize("case", KILLS)
    def test_killed_and_run_again(self, reference: tuple[Training, Ended], tmp_path: Path, case: str) -> None:
        job = self.training(tmp_path / "killed")
        parts = [job.killed(**self.kills[case]), job.complete()]
        with self._recorded(case):
            assert_same_training(reference[1], parts)
            assert parts[-1].only("series") == reference[1].only("series")
            begun = parts[-1].only("begin")
            assert begun["how"] == "resumed" if case != "first step" else begun["how"] in ("fresh", "resumed")

    def test_killed_again_and_again(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "killed")
        parts = [job.killed(**self.kills[case]) for case in KILLS if case != "inside a save"]
        parts.append(job.complete())
        assert_same_training(reference[1], parts)
        assert parts[-1].only("series") == reference[1].only("series")

    def test_what_is_not_restored_shows(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "killed")
        first = job.killed(**self.kills["middle of an epoch"])
        assert self.spoils
        for what in self.spoils:
            shutil.copytree(job.folder, tmp_path / what)
            last = self.training(tmp_path / what).complete(spoil=what)
            try:
                assert_same_training(reference[1], [first, last])
            except AssertionError:
                continue
            pytest.fail(
                f"without {what} the training was the same all the same: the comparison sees too little"
            )

    def test_run_again_when_complete(self, reference: tuple[Training, Ended]) -> None:
        job, whole = reference
        again = job.complete()
        assert again.only("begin")["how"] == "complete"
        assert again.of("step") == []
        assert again.only("end")["weights"] == whole.only("end")["weights"]

    def test_evaluation_only(self, reference: tuple[Training, Ended]) -> None:
        job, whole = reference
        found = job.complete(task="evaluate").only("evaluated")
        values = [
            float.fromhex(value) for name, _, value in whole.only("series")["points"] if name == self.metric
        ]
        assert float.fromhex(found["value"]) == min(values)

    def test_fine_tune_from_the_best_of_another_experiment(self, reference: tuple[Training, Ended]) -> None:
        job, whole = reference
        best = job.complete(task="evaluate").only("evaluated")
        tuned = job.complete(experiment="tuned", init_from="digits@best")
        assert tuned.only("begin")["how"] == "fresh"
        assert tuned.only("started")["weights"] == best["weights"]
        assert tuned.only("end")["weights"] != whole.only("end")["weights"]
        again = job.complete(experiment="tuned", init_from="digits@best")
        assert again.only("begin")["how"] == "complete", "weights to begin with are for those who begin"

    def test_a_model_that_has_changed(self, reference: tuple[Training, Ended]) -> None:
        ended = reference[0].complete(task="changed")
        refused, fitted = ended.only("refused")["paths"], ended.only("fitted")
        assert fitted["loaded"]
        assert fitted["misshapen"]
        assert fitted["missing"] == []
        assert {name for name, *_ in fitted["misshapen"]} < set(refused), (
            "renamed ones do not fit by themselves"
        )

    def test_two_callbacks_on_one_store(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "killed", second=dict(self.second))
        parts = [job.killed(**self.kills["middle of an epoch"]), job.complete()]
        assert_same_training(reference[1], parts)
        for experiment in ("digits", self.second["experiment"]):
            with CheckpointManager(job.folder / "store", experiment=experiment) as manager:
                assert len(manager.checkpoints()) > 1
                assert manager.verify().ok

    def test_terminated_under_nohup(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "terminated")
        stopped = job.run(die=dict(self.terminates), nohup=True)
        assert stopped.status != -signal.SIGHUP, stopped.output
        assert stopped.of("end") == [], "it was to end before its time"
        assert "SIGTERM received" in stopped.output
        after = job.complete()
        assert after.only("begin")["step"] == self.terminated_step
        assert_same_training(reference[1], [stopped, after])

    def test_an_exception_inside_training(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "failed")
        failed = job.run(die=dict(self.raises))
        assert failed.status == 1, failed.output
        assert "RuntimeError: on purpose" in failed.output
        after = job.complete()
        assert after.only("begin")["step"] == self.good_step
        assert_same_training(reference[1], [failed, after])

    def test_a_save_that_fails(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "reported")
        ended = job.complete(fault={"write": 2})
        assert "reminder: the save of step" in ended.output
        assert_same_training(reference[1], [ended])

        asked = self.training(tmp_path / "asked").run(fault={"write": 2}, on_save_error="raise")
        assert asked.status == 1, asked.output
        assert "SaveFailedError" in asked.output
        assert asked.of("step") == ended.of("step"), "training goes on to its end"

    def test_a_disk_that_is_full(self, reference: tuple[Training, Ended], tmp_path: Path) -> None:
        job = self.training(tmp_path / "full")
        ended = job.run(fault={"full": self.full})
        assert "no space left on device" in ended.output
        assert ended.of("step") == reference[1].of("step"), "training goes on to its end"
        assert ended.status == 1, "nothing else holds the end of the training: that it is not saved is raised"
        again = job.complete()
        begun = again.only("begin")
        assert begun["how"] == "resumed"
        assert_same_training(reference[1], [ended, again])


class NativeMeasurement(_Adapter):
    """What a framework's own mechanism does in the same cases. `expected` says what docs/exactness.md does."""

    expected: ClassVar[Mapping[str, str]]

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, tmp_path_factory: pytest.TempPathFactory) -> Ended:
        return cls.training(tmp_path_factory.mktemp("reference") / "run", mechanism="native").complete()

    @pytest.mark.native
    @pytest.mark.parametrize("case", KILLS)
    def test_killed_and_run_again(self, reference: Ended, tmp_path: Path, case: str) -> None:
        job = self.training(tmp_path / "killed", mechanism="native")
        killed = job.killed(**self.kills[case])
        outcome = difference(reference, killed, job.run())
        self.record(case, outcome)
        assert outcome == self.expected[case]


def difference(reference: Ended, killed: Ended, again: Ended) -> str:
    """In a few words, in what the process after a kill differs from a training that was left alone."""
    if again.status != 0:
        return "does not run again"
    wanted = {json.dumps(fact["at"]): fact for fact in reference.of("step")}
    done = {json.dumps(fact["at"]): fact for part in (killed, again) for fact in part.of("step")}
    never = wanted.keys() - done.keys()
    if never:
        return f"{len(never)} of {len(wanted)} batches never trained on"
    other = sum(done[at].get("indices") != fact.get("indices") for at, fact in wanted.items())
    if other or done.keys() - wanted.keys():
        return "other data from there on" if other > 1 else "other data"
    if done == wanted and again.only("end") == reference.only("end"):
        return (
            "exact" if again.only("begin")["step"] or not killed.of("step")[1:] else "exact, from the start"
        )
    end, last = reference.only("end"), again.only("end")
    if end.get("weights") != last.get("weights"):
        return "same data, other weights"
    return "same weights, other " + ", ".join(sorted(key for key in end if end[key] != last.get(key)))
