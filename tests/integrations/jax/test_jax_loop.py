"""What a JaxCheckpointer makes of loops of several shapes. Kills of real processes are in test_jax_contract.py."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    HookEvent,
    OnImprovement,
    SaveFailedError,
    StateError,
    StateMismatchError,
    UsageError,
    hook,
)
from ckpt_jax import JaxCheckpointer
from contract.script import store_of

Log = list[Any]


class Stopped(Exception):
    """Somebody's bug, somewhere in the training loop."""


class Data:
    def __init__(self, seed: int = 1, count: int = 4) -> None:
        self.rng, self.count = np.random.default_rng(seed), count

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in self.rng.permutation(self.count):
            yield np.float32(number + self.rng.random() + np.random.random())


@jax.jit
def train(state: Any, x: Any) -> Any:
    key, noise = jax.random.split(state["key"])
    return {"w": state["w"] * 0.9 + x + jax.random.normal(noise), "key": key, "n": state["n"] + 1}


def fresh() -> Any:
    return {"w": jnp.zeros(3), "key": jax.random.key(0), "n": 0}


def seen(state: Any) -> tuple[str, str, int]:
    return np.asarray(state["w"]).tobytes().hex(), str(jax.random.key_data(state["key"])), int(state["n"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    np.random.seed(5)
    random.seed(5)


class At:
    """Raises at a place of the program, the first time it comes by there."""

    def __init__(self, place: str | None = None) -> None:
        self.place = place

    def __call__(self, place: str) -> None:
        if place == self.place:
            self.place = None
            raise Stopped(place)


def epochs(store: Path, log: Log, at: At, every: int = 2, **options: Any) -> Any:
    """Epochs; an evaluation in their midst and one at their end; an early-stopping count."""
    extras = {"best": 1e9, "waited": 0}
    data = {"train": Data(), "held out": Data(2, 3)}
    with JaxCheckpointer(
        store, experiment="e", data=data, extras=extras, every_n_steps=every, **options
    ) as ckpt:
        state = ckpt.restore(fresh())

        def evaluate() -> None:
            total = sum(float(jnp.sum(state["w"])) * float(x) for x in ckpt.batches("held out"))
            better = total < extras["best"]
            extras["best"], extras["waited"] = (
                min(total, extras["best"]),
                0 if better else extras["waited"] + 1,
            )
            log.append(("evaluated", ckpt.global_step, total, dict(extras)))
            ckpt.evaluated(total=total)

        for epoch in ckpt.epochs(3):
            at(f"begin {epoch}")
            for x in ckpt.batches("train"):
                at(f"before {ckpt.global_step + 1}")
                state = train(state, x)
                at(f"after {ckpt.global_step + 1}")
                np.random.random()
                ckpt.step(state, loss=jnp.sum(state["w"]))
                log.append((ckpt.global_step, epoch, float(x), seen(state)))
                at(f"stepped {ckpt.global_step}")
                if ckpt.global_step % 3 == 0:
                    evaluate()
            at(f"tail {epoch}")
            evaluate()
            at(f"end {epoch}")
    return state


def without_repeats(log: Log) -> Log:
    """What was done, in the order of the last time that it was done."""
    return [entry for number, entry in enumerate(log) if entry not in log[number + 1 :]]


EVERYWHERE = [
    "begin 0", "before 1", "after 1", "stepped 1", "before 2", "stepped 2", "after 4", "stepped 4", "tail 0",
    "end 0", "begin 1", "before 5", "after 6", "stepped 7", "before 8", "tail 1", "begin 2", "stepped 11",
]  # fmt: skip


@pytest.mark.parametrize("place", EVERYWHERE)
def test_an_exception_anywhere_loses_nothing(place: str, tmp_path: Path) -> None:
    """The end of the last step is saved when the loop ends by an exception; it goes on from there, exactly."""
    whole: Log = []
    expected = epochs(tmp_path / "whole", whole, At())

    _seed_again()
    log: Log = []
    at = At(place)
    with pytest.raises(Stopped):
        epochs(tmp_path / "store", log, at)
    np.random.seed(77)
    state = epochs(tmp_path / "store", log, at)

    assert seen(state) == seen(expected)
    assert without_repeats(log) == whole
    repeated = [entry for number, entry in enumerate(log) if entry in log[:number]]
    assert all(entry[0] == "evaluated" for entry in repeated), "no step is made twice"


def _seed_again() -> None:
    np.random.seed(5)
    random.seed(5)


def test_every_checkpoint_of_a_run_is_a_place_to_go_on_from(tmp_path: Path) -> None:
    """None is made in the midst of an evaluation, or before one that is due."""
    whole: Log = []
    expected = epochs(tmp_path / "whole", whole, At(), every=1)
    with CheckpointManager(tmp_path / "whole", experiment="e") as manager:
        checkpoints = manager.checkpoints()
    assert [checkpoint.step for checkpoint in checkpoints] == list(range(1, 13))
    for checkpoint in checkpoints:
        store, log = tmp_path / checkpoint.id, list[Any]()
        shutil.copytree(tmp_path / "whole", store)
        np.random.seed(77)
        state = epochs(store, log, At(), resume=checkpoint.id)
        after = [
            entry for entry in whole if (entry[1] if entry[0] == "evaluated" else entry[0]) > checkpoint.step
        ]
        assert log == after, checkpoint.step
        assert seen(state) == seen(expected)


def test_an_exception_is_not_swallowed_and_is_told(tmp_path: Path) -> None:
    heard: list[Any] = []
    tell = hook(HookEvent.TRAIN_FAILED)(lambda context: heard.append((context.step, type(context.error))))
    with pytest.raises(Stopped):
        epochs(tmp_path / "store", [], At("after 3"), hooks=[tell])
    assert heard == [(2, Stopped)]


def test_a_batch_that_cannot_be_fetched(tmp_path: Path) -> None:
    class Broken(Data):
        broken = True

        def __iter__(self) -> Iterator[Any]:
            for number, x in enumerate(super().__iter__()):
                if number == 2 and Broken.broken:
                    raise OSError("the disk of the data")
                yield x

    def program(store: Path) -> Any:
        with JaxCheckpointer(store, experiment="e", data=Broken()) as ckpt:
            state = ckpt.restore(fresh())
            for _ in ckpt.epochs(2):
                for x in ckpt.batches():
                    state = train(state, x)
                    ckpt.step(state)
        return state

    with pytest.raises(OSError, match="the disk"):
        program(tmp_path / "store")
    Broken.broken = False
    resumed = program(tmp_path / "store")
    _seed_again()
    assert seen(resumed) == seen(program(tmp_path / "whole"))


@pytest.mark.parametrize("kind", ["endless generator", "grain"])
def test_steps_without_epochs(kind: str, tmp_path: Path) -> None:
    def generator() -> Iterator[Any]:
        rng = np.random.default_rng(3)
        while True:
            yield np.float32(rng.random() + np.random.random())

    def pipeline() -> Any:
        numbers = grain.MapDataset.range(7).seed(1).shuffle().repeat()
        return iter(numbers.map(np.float32).to_iter_dataset())

    def program(store: Path, total: int) -> Any:
        data = generator() if kind == "endless generator" else pipeline()
        with JaxCheckpointer(store, experiment="e", data=data, every_n_steps=3) as ckpt:
            state = ckpt.restore(fresh())
            for step in ckpt.steps(total):
                state = train(state, next(ckpt.data))
                ckpt.step(state)
                assert ckpt.global_step == step + 1
        return state

    program(tmp_path / "store", 5)
    np.random.seed(50)
    assert seen(program(tmp_path / "store", 5))[2] == 5, (
        "nothing is left to do, and the state is the final one"
    )
    resumed = program(tmp_path / "store", 11)
    _seed_again()
    assert seen(resumed) == seen(program(tmp_path / "whole", 11))


def test_a_signal_saves_at_the_next_safe_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    received: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with JaxCheckpointer(tmp_path / "store", experiment="e", data=Data()) as ckpt:
            state = ckpt.restore(fresh())
            for _ in ckpt.epochs(1):
                for x in ckpt.batches():
                    state = train(state, x)
                    ckpt.step(state)
                    if ckpt.global_step == 2:
                        os.kill(os.getpid(), signal.SIGTERM)
                        assert ckpt.manager.latest() is None
                    if ckpt.global_step == 3:
                        saved = ckpt.manager.latest()
                        assert saved is not None
                        assert saved.step == 2
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert received == [signal.SIGTERM]


def test_what_is_saved_at_an_evaluation_carries_its_metrics(tmp_path: Path) -> None:
    policy = OnImprovement("total")
    epochs(tmp_path / "store", [], At(), save_policy=policy, metric="total")
    with CheckpointManager(tmp_path / "store", experiment="e", metric="total") as manager:
        best = manager.best()
        assert best is not None
        values = [c.metrics["total"] for c in manager.checkpoints() if "total" in c.metrics]
        assert best.metrics["total"] == min(values)
        assert len(values) > 1


class TestMisuse:
    def test_a_state_that_was_never_restored(self, tmp_path: Path) -> None:
        with JaxCheckpointer(tmp_path / "store", experiment="e", data=Data()) as ckpt:
            for call in (lambda: next(ckpt.epochs(1)), lambda: next(ckpt.batches()), lambda: ckpt.step({})):
                with pytest.raises(UsageError, match=r"state = ckpt\.restore\(state\)"):
                    call()
        assert not list((tmp_path / "store").glob("checkpoints/**/*.json"))

    def test_restored_twice(self, tmp_path: Path) -> None:
        with JaxCheckpointer(tmp_path / "store", experiment="e") as ckpt:
            ckpt.restore(fresh())
            with pytest.raises(UsageError, match="once"):
                ckpt.restore(fresh())

    def test_a_turn_without_a_step(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match=r"without ckpt\.step"),
            JaxCheckpointer(tmp_path / "store", experiment="e") as ckpt,
        ):
            ckpt.restore(fresh())
            for _ in ckpt.steps(2):
                pass

    def test_which_data(self, tmp_path: Path) -> None:
        with JaxCheckpointer(tmp_path / "store", experiment="e", data={"a": [1], "b": [2]}) as ckpt:
            ckpt.restore(fresh())
            with pytest.raises(UsageError, match="which data.*a, b"):
                next(ckpt.batches())

    def test_nowhere_to_save(self) -> None:
        with pytest.raises(UsageError, match="say where"):
            JaxCheckpointer()

    def test_manager_and_root(self, manager: CheckpointManager, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="root, metric"):
            JaxCheckpointer(tmp_path, manager=manager, metric="x")

    def test_a_changed_model(self, tmp_path: Path) -> None:
        epochs(tmp_path / "store", [], At())
        wrong = pytest.raises(StateMismatchError, match=r"state/w: saved with shape \[3\], like= has \[4\]")
        with wrong, JaxCheckpointer(tmp_path / "store", experiment="e") as ckpt:
            ckpt.restore(fresh() | {"w": jnp.zeros(4)})

    def test_a_checkpoint_of_somebody_else(self, manager: CheckpointManager) -> None:
        manager.save({"state": fresh()}, step=1).result()
        with (
            JaxCheckpointer(manager=manager) as ckpt,
            pytest.raises(UsageError, match="not saved by a JaxCheck"),
        ):
            ckpt.restore(fresh())

    def test_a_state_that_was_donated_after_its_step(self, tmp_path: Path) -> None:
        reusing = jax.jit(lambda s: jax.tree.map(lambda x: x * 1, s), donate_argnums=0)
        with (
            pytest.raises(StateError, match="donate_argnums"),
            JaxCheckpointer(tmp_path / "store", experiment="e", data=[1, 2, 3], every_n_steps=1) as ckpt,
        ):
            state = ckpt.restore({"w": jnp.zeros(3)})
            for _ in ckpt.epochs(1):
                for _ in ckpt.batches():
                    state = {"w": state["w"] + 1}
                    ckpt.step(state)
                    state = reusing(state)


def test_resume_none_begins_anew_and_resume_ref_goes_back(tmp_path: Path) -> None:
    def program(resume: str | None) -> tuple[int, int]:
        with JaxCheckpointer(
            tmp_path / "store", experiment="e", data=[1.0] * 4, every_n_steps=1, resume=resume
        ) as ckpt:
            state = ckpt.restore(fresh())
            begun = int(state["n"])
            for _ in ckpt.epochs(1):
                for x in ckpt.batches():
                    state = train(state, np.float32(x))
                    ckpt.step(state)
            return begun, ckpt.manager.attempt.number

    assert program("auto") == (0, 1)
    assert program("auto") == (4, 2)
    assert program("step=2") == (2, 2), "the attempt before saved nothing"
    assert program(None) == (0, 3)


def test_two_checkpointers_on_one_store(tmp_path: Path) -> None:
    def program(name: str, data: Callable[[], Any]) -> Any:
        with JaxCheckpointer(tmp_path / "store", experiment=name, data=data(), every_n_steps=1) as ckpt:
            state = ckpt.restore(fresh())
            for _ in ckpt.epochs(1):
                for x in ckpt.batches():
                    state = train(state, np.float32(x))
                    ckpt.step(state)
        with CheckpointManager(tmp_path / "store", experiment=name) as manager:
            return manager.checkpoints()

    assert len(program("one", lambda: [1.0, 2.0])) == 2
    assert len(program("two", lambda: [1.0])) == 1
    assert len(program("one", lambda: [1.0, 2.0])) == 2


@pytest.mark.parametrize(
    ("place", "error"), [(None, SaveFailedError), ("after 9", Stopped)], ids=["end", "exception"]
)
def test_failed_saves_are_raised_if_asked_when_nothing_worse_is(
    place: str | None, error: type[Exception], tmp_path: Path
) -> None:
    store = store_of({"store": str(tmp_path / "store"), "fault": {"write": 1}})
    log: Log = []
    with pytest.raises(error):
        epochs(store, log, At(place), on_save_error="raise")
    steps = [entry for entry in log if entry[0] != "evaluated"]
    assert len(steps) == (12 if place is None else 8), "training went on"


def test_a_save_that_fails_stops_training_if_asked(tmp_path: Path) -> None:
    log: Log = []
    with pytest.raises(SaveFailedError):
        epochs(
            store_of({"store": str(tmp_path / "store"), "fault": {"write": 1}}),
            log,
            At(),
            on_save_error="stop",
        )
    assert 2 <= len(log) < 16
