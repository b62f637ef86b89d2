"""Trainings in two processes, killed and started again: every process goes on exactly where it was.

Most of them are forked, which takes a tenth of the time that starting the script anew for each process does.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from ckpt_core import CheckpointManager, UsageError
from ckpt_lightning.parts import difference, outline, overlay
from ckpt_lightning.ranks import Ranks, SharedSignals
from contract.training import Ended, Training, assert_same_training, digest

SCRIPT = Path(__file__).with_name("train_ranks.py")
PRELOAD = ("lightning.pytorch", "torchmetrics", "ckpt_lightning")
_references: dict[str, Ended] = {}


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """Makes a training with options, and the reference of it that is never killed, made once for all tests."""

    def make(**options: Any) -> tuple[Training, Ended]:
        key = json.dumps(options, sort_keys=True)
        if key not in _references:
            _references[key] = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
        return Training(SCRIPT, tmp_path / "killed", options, PRELOAD), _references[key]

    return make


def assert_same(reference: Ended, parts: list[Ended]) -> None:
    """In both processes."""
    assert_same_training(reference, parts)
    assert parts[-1].only("end 1") == reference.only("end 1")


def test_killed_and_started_again_both_are_the_same(training: Any) -> None:
    job, reference = training()
    seen = [set(fact["indices"]) for fact in reference.of("step") if fact["at"][1:] == [0, 0]]
    assert len(seen) == 2
    assert not seen[0] & seen[1], "each process was to have data of its own"
    assert reference.only("end")["rng"] != reference.only("end 1")["rng"], "and random states of its own"
    assert reference.only("end")["seen"] != reference.only("end 1")["seen"], "and a callback's state"
    parts = [
        job.killed(rank=1, batch=[0, 0]),
        job.killed(rank=1, batch=[0, 5]),
        job.killed(rank=0, epoch=1),
        job.killed(rank=0, batch=[1, 7]),
        job.killed(fsync=14),
        job.complete(),
    ]
    assert_same(reference, parts)
    assert parts[-1].only("begin")["how"] == parts[-1].only("begin 1")["how"] == "resumed"
    assert parts[-1].only("series") == reference.only("series")
    again = job.complete()
    assert "nothing to do" in again.output
    assert again.of("step") == []


def test_the_callback_changes_nothing(training: Any) -> None:
    job, reference = training()
    assert_same(reference, [job.complete(ours=False)])


def test_processes_that_lightning_starts_and_sigterm_that_reaches_one(training: Any) -> None:
    job, reference = training()
    parts = [
        job.run(strategy="ddp", die={"rank": 1, "signal": [0, 3], "number": "SIGTERM"}),
        job.run(
            strategy="ddp", die={"rank": 0, "signal": [1, 7], "number": "SIGTERM"}
        ),  # a validation is due
        job.complete(),
    ]
    assert [part.status for part in parts[:2]] == [0, 0], "Lightning's handler ends training, and well"
    assert [part.of("end") + part.of("end 1") for part in parts[:2]] == [[], []]
    assert [part.only("begin")["step"] for part in parts] == [0, 4, 16]
    assert_same(reference, parts)


def test_a_signal_to_one_while_gradients_are_summed_up(training: Any) -> None:
    options: dict[str, Any] = {"accumulate": 3, "every": 50, "strategy_options": {"broadcast_buffers": False}}
    job, reference = training(**options)
    stopped = job.run(die={"rank": 1, "signal": [0, 4], "number": "SIGUSR1"})
    assert "terminated with signal SIGUSR1" in stopped.output
    with CheckpointManager(job.folder / "store", experiment="digits") as manager:
        state = manager.load("latest")
        part = {"/".join(map(str, place)): value for place, value in state["ranks"]["parts"][1]}
        assert len([name for name in part if "gradients" in name]) == 6, "one for each parameter"
        assert not any(name.startswith("optimizer_states") for name in part)
        assert "state_dict/net.1.running_mean" in part
        assert "state_dict/net.0.weight" not in part
    for what in ("gradients", "state_dict", "rng", "callbacks", "logged", "module"):
        spoilt = Training(SCRIPT, job.folder.with_name(what), {**job.options, "spoil": what}, PRELOAD)
        shutil.copytree(job.folder / "store", spoilt.folder / "store")
        with pytest.raises(AssertionError):
            assert_same(reference, [stopped, spoilt.complete()])
    assert_same(reference, [stopped, job.complete()])


def test_a_handler_of_ones_own_is_called_in_both(training: Any) -> None:
    job, reference = training(every=50)
    told = job.complete(handler=True, die={"rank": 1, "signal": [1, 2], "number": "SIGUSR1"})
    assert sorted(fact["rank"] for fact in told.of("handled")) == [0, 1]
    assert "saved step 11" in told.output
    assert_same(reference, [told])


def test_two_callbacks_in_two_processes(training: Any) -> None:
    job, reference = training()
    second = {"experiment": "second", "every_n_steps": 3}
    parts = [
        job.run(second=second, die={"rank": 1, "signal": [0, 2], "number": "SIGUSR1"}),
        job.run(second=second, die={"rank": 0, "batch": [1, 3]}),
        job.complete(second=second),
    ]
    assert "terminated with signal SIGUSR1" in parts[0].output
    assert parts[1].only("begin")["step"] == 3
    assert_same(reference, parts)
    for experiment in ("digits", "second"):
        with CheckpointManager(job.folder / "store", experiment=experiment) as manager:
            steps = [each.step for each in manager.checkpoints()]
            assert steps[-1] == 24
            assert 3 in steps, "both have saved when the signal came"


def test_one_that_fails_takes_the_others_with_it(training: Any) -> None:
    job, reference = training()
    parts = [
        job.run(die={"rank": 1, "raise": [0, 5]}),
        job.run(die={"rank": 1, "alone": [1, 3]}),
        job.run(die={"rank": 0, "raise": [2, 1]}),
        job.complete(),
    ]
    assert [part.status for part in parts] == [1, 1, 1, 0]
    assert "RuntimeError: on purpose" in parts[0].output
    assert f"terminated with signal {signal.SIGKILL.name}" in parts[1].output
    assert_same(reference, parts)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_state_that_one_cannot_give_is_an_error_of_all(training: Any, rank: int) -> None:
    job, _ = training()
    failed = job.run(broken_state=rank)
    assert failed.status == 1
    assert "ValueError: no state today" in failed.output


def test_a_save_that_failed_stops_all_if_that_was_asked_for(training: Any) -> None:
    job, reference = training()
    failed = job.run(fault={"write": 3}, on_save_error="stop")
    assert failed.status == 1
    assert "SaveFailedError: 1 of the saves of digits failed" in failed.output
    assert_same(reference, [failed, job.complete()])


def test_weights_to_begin_with_and_evaluation(training: Any) -> None:
    job, _ = training()
    job.complete()
    tuned = job.complete(experiment="tuned", init_from="digits@best", epochs=1)
    with CheckpointManager(job.folder / "store", experiment="digits", metric="val_loss") as manager:
        best = manager.best()
        assert best is not None
        weights = digest(manager.load("best")["state_dict"])
    assert [fact["weights"] for fact in tuned.of("start")] == [weights, weights]
    for path, value in (("best", best.metrics["val_loss"]), ("last", None), ("digits@step=24", None)):
        found = float.fromhex(job.complete(task="validate", ckpt_path=path).only("evaluated")["value"])
        assert value is None or found == value
    unknown = job.run(task="validate", ckpt_path="no-such-tag")
    assert unknown.status == 1
    assert "no checkpoint answers to 'no-such-tag'" in unknown.output


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes(tmp_path: Path, before: int, after: int) -> None:
    job = Training(SCRIPT, tmp_path / "job", {"devices": before}, PRELOAD)
    batches = 8 if before == 2 else 15
    job.killed(saved=batches + 4)
    with CheckpointManager(job.folder / "store", experiment="digits") as manager:
        newest = manager.load("latest")
    assert newest["global_step"] > batches, "in the midst of an epoch"
    changed = job.complete(devices=after)
    told = f"made by a training in {before} processes, and this one has {after}"
    assert told in changed.output
    assert "the epoch begins anew" in changed.output
    assert {fact["weights"] for fact in changed.of("start")} == {digest(newest["state_dict"])}
    assert next(fact["at"] for fact in changed.of("step") if fact["at"][0] == 0) == [0, 1, 0]
    again = 15 if after == 1 else 8
    assert changed.only("end")["step"] == newest["global_step"] + 2 * again
    assert changed.only("end")["epoch"] == 3


def test_strategies_that_spread_the_model_are_refused() -> None:
    for name in ("FSDPStrategy", "ModelParallelStrategy"):
        strategy = getattr(pl.strategies, name)()
        with pytest.raises(UsageError, match='use strategy="ddp"') as refused:
            Ranks.of(SimpleNamespace(strategy=strategy, world_size=2, global_rank=0))
        assert refused.value.kind == "sharded"
    with pytest.raises(UsageError, match="trains in 2 processes in a way that is not known"):
        strategy = pl.strategies.SingleDeviceStrategy()
        Ranks.of(SimpleNamespace(strategy=strategy, world_size=2, global_rank=0))


def test_a_second_signal_waits_for_the_others_like_the_first() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))
    signals = SharedSignals(Ranks(), [signal.SIGUSR1])
    signals._ranks.world = 2
    signals._ranks.rank = 1
    try:
        signals.install()
        for _ in range(2):  # its own, and the one that another process has sent on
            signal.raise_signal(signal.SIGUSR1)
        assert handled == []
        signals.pass_on()
        signals.pass_on()
        assert handled == [signal.SIGUSR1]
    finally:
        signals.uninstall()
        signal.signal(signal.SIGUSR1, before)


def test_parts() -> None:
    first = {
        "weights": {"w": torch.ones(2), "average": torch.zeros(1)}, "numbers": [1, 2.0, {"a": (1, b"x")}],
        "longer": [1], "other": {"x": 1}, "same": torch.arange(3).to(torch.bfloat16), "none": None,
    }  # fmt: skip
    second = {
        "weights": {"w": torch.zeros(2), "average": torch.ones(1)}, "numbers": [1, 2, {"a": (1, b"y")}],
        "longer": [1, 2], "other": {"y": 1}, "same": torch.arange(3).to(torch.bfloat16), "none": None,
    }  # fmt: skip
    part = difference(second, outline(first, {"w"}), {"w"})
    assert [place for place, _ in part] == [
        ["weights", "average"], ["numbers", 1], ["numbers", 2, "a"], ["longer"], ["other"],
    ]  # fmt: skip
    second["weights"]["average"] += 1  # the part is a copy
    overlay(first, part)
    assert first["weights"]["average"].item() == 1
    assert torch.equal(first["weights"]["w"], torch.ones(2))
    assert (first["numbers"], first["longer"], first["other"]) == ([1, 2, {"a": (1, b"y")}], [1, 2], {"y": 1})
    assert difference(first, outline(first)) == []
