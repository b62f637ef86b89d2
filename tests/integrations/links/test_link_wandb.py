"""Weights & Biases, offline: what stands in the file that `wandb sync` would send."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from ckpt_core import CheckpointManager, EverySteps, HookContext, HookEvent, Session, UsageError
from ckpt_links import WandbLink
from ckpt_links.places import place_of

BLOCK = 32768


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    for name, value in {
        "MODE": "offline",
        "DIR": tmp_path,
        "SILENT": "true",
        "CACHE_DIR": tmp_path / "cache",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield
    wandb.teardown()


def records(tmp_path):
    """What is in the file of the one run."""
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    return records_of(path)


def records_of(path):
    """What is in a file: a log in LevelDB's format behind a header of seven bytes."""
    data, at, found, part = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not kind:
            break
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def train(store, link):
    with CheckpointManager(
        store, experiment="x", metric="loss", hooks=[link], save_policy=EverySteps(2)
    ) as manager:
        session = Session(manager, signals=())
        session.resume()
        session.begin(0)
        for step in range(1, 5):
            session.evaluate_end(step, metrics={"loss": 1.0 if step == 4 else 0.5})
            session.step_end(step)
            session.log({"loss": 1.0 if step == 4 else 0.5}, step)
            session.safe_point(step, 0, lambda: {"w": np.ones(100)})
        session.finish(4, 0, lambda: {"w": np.ones(100)})
        return [(found, place_of(manager, found), found.key) for found in manager.checkpoints()]


def test_checkpoints_are_reference_artifacts_with_aliases(store_path, tmp_path):
    made = train(store_path, WandbLink(project="digits", config={"lr": 0.1}))
    found = records(tmp_path)
    [run] = [record.run for record in found if record.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name) == ("digits", "x")
    artifacts = [
        record.request.log_artifact.artifact
        for record in found
        if record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact")
    ] or [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    aliases = [sorted(each.aliases) for each in artifacts]
    assert aliases == [
        ["latest", "step-2"],
        ["best", "latest", "step-2"],
        ["latest", "step-4"],
        ["latest", "step-4"],
    ]
    assert {each.name for each in artifacts} == {"checkpoint-x"}
    assert {each.type for each in artifacts} == {"model"}
    checkpoint, place, key = made[0]
    references = {entry.path: entry.ref for entry in artifacts[0].manifest.contents}
    assert references == {"checkpoint": place, "manifest.json": f"{store_path.as_uri()}/{key}"}
    facts = json.loads(artifacts[0].metadata)
    assert (facts["checkpoint"], facts["step"], facts["digest"]) == (checkpoint.id, 2, checkpoint.digest)
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["trainer/step"] for row in history if "loss" in row][:2] == [1, 2]
    assert [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"] == [0]


def test_a_run_of_ones_own_is_used_and_left_open(store_path, tmp_path):
    with wandb.init(project="mine") as run:
        train(store_path, WandbLink(run=run))
        assert run._is_finished is False
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    with pytest.raises(UsageError):
        WandbLink(run=run, project="other")


def test_one_link_for_two_trainings_tells_how_each_has_ended(store_path, tmp_path):
    link = WandbLink(project="digits")
    for event in (HookEvent.TRAIN_FAILED, HookEvent.TRAIN_BEGIN):
        with CheckpointManager(store_path, experiment="x", hooks=[link]) as manager:
            manager.hooks.fire(HookContext(event, experiment="x"))
    found = [
        record.exit.exit_code
        for path in tmp_path.glob("wandb/offline-run-*/*.wandb")
        for record in records_of(path)
        if record.WhichOneof("record_type") == "exit"
    ]
    assert sorted(found) == [0, 1]


def test_a_preemption_is_told_before_the_run_ends(store_path, tmp_path):
    link = WandbLink(project="digits")
    with CheckpointManager(store_path, experiment="x", hooks=[link]) as manager:
        for event in (HookEvent.STEP_END, HookEvent.PREEMPTED, HookEvent.TRAIN_FAILED):
            manager.hooks.fire(
                HookContext(event, experiment="x", step=1, data={"preempted": 15}, metrics={"loss": 1.0})
            )
    kinds = [record.WhichOneof("record_type") for record in records(tmp_path)]
    assert kinds.count("preempting") == 1
    assert kinds.index("preempting") < kinds.index("exit")
    assert [
        record.exit.exit_code for record in records(tmp_path) if record.WhichOneof("record_type") == "exit"
    ] == [1]
