"""Series and experiments as tables of pandas, polars and Arrow, and drawn with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.tracker.experiments import ExperimentTracker

mpl.use("Agg")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentTracker]:
    root: Path = tmp_path_factory.mktemp("frames")
    for name, lr in (("a", 0.1), ("b", None)):
        config = None if lr is None else {"lr": lr, "name": "adamw", "amp": True}
        with CheckpointManager(root, experiment=name, config=config) as manager:
            for step, value in enumerate((3.0, math.nan, math.inf)):
                manager.log({"loss": value}, step=step)
            manager.tracker.tag(name, "one")
    with ExperimentTracker(root) as opened:
        yield opened


def test_pandas(tracker: ExperimentTracker) -> None:
    frame = tracker.metric("a", "loss").to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["step", "value", "at", "attempt"]
    assert str(frame.dtypes["at"]).startswith("datetime64")
    assert frame["value"].tolist()[0] == 3.0
    assert frame["value"].isna().tolist() == [False, True, False]
    listed = tracker.experiments().to_pandas().set_index("experiment")
    assert listed.loc["a", "config.lr"] == 0.1
    assert listed.loc["a", "tags"] == ["one"]


def test_polars(tracker: ExperimentTracker) -> None:
    frame = tracker.metric("a", "loss").to_polars()
    assert frame.schema == {
        "step": pl.Int64, "value": pl.Float64, "at": pl.Datetime("us"), "attempt": pl.Int64,
    }  # fmt: skip
    assert frame["value"].is_nan().to_list() == [False, True, False]
    listed = tracker.experiments().to_polars()
    assert listed["config.lr"].to_list() == [0.1, None]
    assert listed["tags"].to_list() == [["one"], ["one"]]


def test_arrow(tracker: ExperimentTracker) -> None:
    table = tracker.metric("a", "loss").to_arrow()
    assert isinstance(table, pa.Table)
    assert table.column("step").to_pylist() == [0, 1, 2]
    assert pa.types.is_timestamp(table.schema.field("at").type)
    listed = tracker.experiments().to_arrow().to_pylist()
    assert [row["config.name"] for row in listed] == ["adamw", None]
    assert listed[0]["config.amp"] is True
    assert abs((listed[0]["started_at"] - datetime.now(UTC)).total_seconds()) < 3600


def test_side_by_side(tracker: ExperimentTracker) -> None:
    found = tracker.compare("a", "b")
    for frame in (found.to_pandas(), found.to_polars(), found.to_arrow().to_pandas()):
        assert list(frame.columns) == ["group", "name", "a", "b"]
        assert len(frame) == len(found.rows)
    attempts = next(row for row in found.to_arrow().to_pylist() if row["name"] == "attempts")
    assert attempts == {"group": "status", "name": "attempts", "a": "1", "b": "1"}


def test_values_of_several_kinds_are_text_to_arrow(tmp_path: Path) -> None:
    for name, depth in (("a", 2), ("b", "auto"), ("c", None), ("d", 0.5)):
        with CheckpointManager(tmp_path, experiment=name, config={"depth": depth}) as manager:
            manager.log({"loss": 1.0}, step=0)
    with ExperimentTracker(tmp_path) as tracker:
        found = tracker.experiments()
    assert found.to_arrow().column("config.depth").to_pylist() == ["2.0", "auto", None, "0.5"]
    assert found.to_polars()["config.depth"].to_list() == ["2.0", "auto", None, "0.5"]
    assert found[0:1].to_arrow().column("config.depth").to_pylist() == [2.0]


def test_an_empty_series(tracker: ExperimentTracker) -> None:
    series = tracker.metric("a", "nothing")
    assert (len(series.to_pandas()), len(series.to_polars()), len(series.to_arrow())) == (0, 0, 0)


def test_drawn(tracker: ExperimentTracker, tmp_path: Path) -> None:
    axes = tracker.metric("a", "loss").plot(color="red")
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert (line.get_color(), axes.get_xlabel(), axes.get_ylabel()) == ("red", "step", "loss")
    assert tracker.metric("b", "loss").plot(axes) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    both = tracker.compare("a", "b").plot("loss")
    assert len(both.lines) == 2
    both.figure.savefig(tmp_path / "loss.png")
