"""TensorBoard: what its own reader finds in the files."""

from __future__ import annotations

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from ckpt_core import CheckpointManager, EverySteps, Session
from ckpt_links import TensorBoardLink


def train(store, link, steps, resume="auto"):
    with CheckpointManager(
        store, experiment="x", metric="loss", hooks=[link], save_policy=EverySteps(2)
    ) as manager:
        session = Session(manager, signals=())
        begun = session.resume(resume).step
        session.begin(begun)
        for step in range(begun + 1, begun + 1 + steps):
            session.step_end(step, metrics={"loss": 1 / step} if step != 3 else None)
            session.safe_point(step, 0, lambda: {"w": np.ones(100)})
        session.finish(begun + steps, 0, lambda: {"w": np.ones(100)})


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def checkpoints(store):
    with CheckpointManager(store, experiment="x") as manager:
        return manager.checkpoints()


def scalars(found, tag):
    return {event.step: event.value for event in found.Scalars(tag)}


def test_scalars_and_hyperparameters(store_path, tmp_path):
    link = TensorBoardLink(tmp_path / "runs", hparams={"lr": 0.1, "name": "adam", "nesterov": True})
    train(store_path, link, steps=5)
    found = read(tmp_path / "runs")
    assert scalars(found, "loss") == pytest.approx({1: 1, 2: 1 / 2, 4: 1 / 4, 5: 1 / 5})
    assert scalars(found, "ckpt/logical_bytes") == {2: 800, 4: 800, 5: 800}
    assert scalars(found, "ckpt/written_bytes") == {
        found.step: found.written_bytes for found in checkpoints(store_path)
    }
    assert set(scalars(found, "ckpt/save_seconds")) == {2, 4, 5}
    assert scalars(found, "ckpt/best_step") == {2: 2, 4: 4, 5: 5}
    content = found.PluginTagToContent("hparams")
    begun = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert begun.hparams["lr"].number_value == 0.1
    assert begun.hparams["name"].string_value == "adam"
    assert begun.hparams["nesterov"].bool_value is True
    ended = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert ended.status == api_pb2.STATUS_SUCCESS
    assert ended.end_time_secs > begun.start_time_secs


def test_after_a_resume_what_is_done_again_is_shown_once(store_path, tmp_path):
    train(store_path, TensorBoardLink(tmp_path / "runs"), steps=6)
    with CheckpointManager(store_path, experiment="x") as manager:
        while manager.latest().step > 2:
            manager.forget("latest")
    train(store_path, TensorBoardLink(tmp_path / "runs"), steps=3)  # goes on from step 2
    found = read(tmp_path / "runs")
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 4, 5]


def test_a_folder_that_cannot_be_written_touches_nothing(store_path, tmp_path, caplog):
    (tmp_path / "runs").write_text("a file in its way")
    train(store_path, TensorBoardLink(tmp_path / "runs"), steps=4)
    assert "hook TensorBoardLink raised" in caplog.text
    with CheckpointManager(store_path, experiment="x") as manager:
        assert {found.step for found in manager.checkpoints()} == {2, 4}
