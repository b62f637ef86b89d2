"""A loader resumed at any batch hands out what it would have handed out, and draws what it would have drawn."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
)

from ckpt_core import UsageError
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng
from ckpt_torch.workers import WorkerProbe
from contract.loaders import BATCH, LOADERS, ONLY_IN_PROCESS, Numbers, mask_torch, seed

EPOCHS = 3
PLACES = [(0, 1), (0, 4), (1, 0), (1, 3), (0, -1), (1, -1), (2, 2)]
"""Epochs and batches after which a run is stopped; -1 is after the epoch."""

# Processes cost time: with workers, those in which workers make a difference.
WITH_WORKERS = [
    "plain",
    "draws from globals",
    "draws sometimes",
    "counts",
    "lazy sampler",
    "masking by itself",
]
WITH_WORKERS += ["remembers samples", "shuffling stream", "not batched"]
PERSISTENT = [*WITH_WORKERS[:6], "own generators", "epoch sampler", "masked stream", "generator"]
CASES = [
    *(
        pytest.param(make, {}, PLACES, stop, id=f"{name}-{len(PLACES)}-{stop}")
        for name, make in (LOADERS | ONLY_IN_PROCESS).items()
        for stop in (None, 5)
        if name != "remembers samples"
    ),
    *(
        pytest.param(LOADERS[name], {"num_workers": 2}, [(1, 3), (1, -1)], None, id=f"{name}-workers")
        for name in WITH_WORKERS
    ),
    *(
        pytest.param(
            LOADERS[name],
            {"num_workers": 2, "persistent_workers": True},
            [(1, 1), (1, 4), (1, -1)],
            5,
            id=f"{name}-persistent",
        )
        for name in PERSISTENT
    ),
]


def train_on(batch: Any) -> tuple[Any, ...]:
    """What a training loop does with random numbers in one iteration: dropout, mixing, a choice."""
    values = (
        tuple(torch.as_tensor(batch).reshape(-1).tolist())
        if not isinstance(batch, list)
        else batch[0].tolist()
    )
    return (*values, torch.rand(2).tolist(), np.random.rand(), random.random())


class Run:
    """A training loop over a loader. `save_at` (an epoch and a number of batches) is where it saves."""

    def __init__(self, loader: Any, *, stop_after: int | None = None, lookahead: int = 0) -> None:
        self.tracked = TrackedLoader(loader, lookahead=lookahead)
        self.stop_after = stop_after
        self.log: list[Any] = []

    def go(self, epoch: int = 0, save_at: tuple[int, int] | None = None, rng: Any = None) -> Any:
        for number in range(epoch, EPOCHS):
            batches = iter(self.tracked)
            if rng is not None:
                restore_rng(rng)
                rng = None
            while True:
                if (number, self.tracked.delivered) == save_at:
                    return self.saved()
                batch = next(batches, None)
                if batch is None or self.tracked.delivered == self.stop_after:
                    break
                self.log.append(train_on(batch))
            if save_at == (number, -1):
                return self.saved(between=True)
        return capture_rng()

    def saved(self, **options: Any) -> Any:
        return {"rng": capture_rng(), "data": self.tracked.position(**options)}


@pytest.mark.parametrize(("make", "options", "places", "stop_after"), CASES)
def test_resumed_anywhere_is_as_never_stopped(
    make: Any, options: dict[str, Any], places: list[tuple[int, int]], stop_after: int | None
) -> None:
    seed(1)
    whole = Run(make(**options), stop_after=stop_after)
    end = whole.go()
    assert len(whole.log) > 2 * EPOCHS
    for place in places:
        assert_resumed_the_same(whole, end, lambda: Run(make(**options), stop_after=stop_after), place)


def assert_resumed_the_same(whole: Run, end: Any, make: Callable[[], Run], place: tuple[int, int]) -> None:
    epoch, batch = place
    seed(1)
    first = make()
    saved = first.go(save_at=place)
    assert first.log == whole.log[: len(first.log)], f"saving at {place} disturbed the run"

    seed(2)  # another process: everything is made anew, nothing drawn is known
    second = make()
    second.tracked.resume(saved["data"])
    if batch == -1:
        restore_rng(saved["rng"])
        final = second.go(epoch + 1)
    else:
        final = second.go(epoch, rng=saved["rng"])
    assert first.log + second.log == whole.log, f"resumed at {place}"
    assert final == end


def test_what_samples_were_before_is_replayed_within_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    make = LOADERS["remembers samples"]
    seed(1)
    whole = Run(make())
    end = whole.go()
    with caplog.at_level("INFO", "ckpt_core.torch.data"):
        assert_resumed_the_same(whole, end, lambda: Run(make()), (0, 4))
    assert (
        "fetching again and dropping it (its samples depend on what was fetched before: dataset.given"
        in caplog.text
    )
    assert "WARNING" not in caplog.text


def test_what_earlier_epochs_left_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    seed(1)
    first = Run(LOADERS["remembers samples"]())
    saved = first.go(save_at=(1, 3))
    again = TrackedLoader(LOADERS["remembers samples"]())
    again.resume(saved["data"])
    assert "dataset.given kept what earlier epochs put there" in caplog.text


def test_the_log_says_how_it_got_there(caplog: pytest.LogCaptureFixture) -> None:
    for make, words in (
        (LOADERS["plain"], "going to batch 4 by skipping to it (exact"),
        (LOADERS["stream"], "going to batch 4 by fetching again and dropping it (it has no indices to skip)"),
    ):
        seed(1)
        saved = Run(make()).go(save_at=(1, 4))
        with caplog.at_level("INFO", "ckpt_core.torch.data"):
            again = TrackedLoader(make(), name="training")
            again.resume(saved["data"])
            iter(again)
        assert words in caplog.text


@pytest.mark.parametrize("method", ["skip", "replay"])
def test_the_method_can_be_chosen(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    fetched: list[int] = []

    class Noted(Numbers):
        def __getitem__(self, index: int) -> Any:
            fetched.append(index)
            return float(index)

    saved = Run(DataLoader(Noted(), BATCH)).go(save_at=(0, 3))
    fetched.clear()
    again = TrackedLoader(DataLoader(Noted(), BATCH), resume_data=method)
    again.resume(saved["data"])
    assert next(iter(again)).tolist() == [9, 10, 11]
    assert fetched == list(range(9, 12) if method == "skip" else range(12))


@pytest.mark.parametrize("name", ["shuffling stream", "draws from globals", "own generators", "counts"])
def test_a_batch_fetched_in_advance_is_fetched_again_alike(name: str) -> None:
    """As Lightning does where the length is not known: one batch more than the loop was given."""

    make = LOADERS[name]

    def train(tracked: TrackedLoader, held: list[Any], batches: Iterator[Any], until: int) -> list[Any]:
        done = []
        while len(done) < until and held:
            batch = held.pop()
            held += [each for each in [next(batches, None)] if each is not None]
            done.append(train_on(batch))
        return done

    def begin(tracked: TrackedLoader) -> tuple[list[Any], Iterator[Any]]:
        batches = iter(tracked)
        return [next(batches)], batches

    seed(1)
    tracked = TrackedLoader(make(), lookahead=1)
    held, batches = begin(tracked)
    whole = train(tracked, held, batches, 99)
    assert len(whole) > 5

    seed(1)
    tracked = TrackedLoader(make(), lookahead=1)
    held, batches = begin(tracked)
    done = train(tracked, held, batches, 3)
    saved = {"rng": capture_rng(), "data": tracked.position(ahead=1)}

    seed(2)
    tracked = TrackedLoader(make(), lookahead=1)
    tracked.resume(saved["data"])
    held, batches = begin(tracked)
    restore_rng(saved["rng"])
    assert done + train(tracked, held, batches, 99) == whole


class KeepsItsPosition:
    """A loader in the manner of torchdata's StatefulDataLoader."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        while self.given < 5:
            self.given += 1
            yield self.given
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def test_a_loader_that_keeps_its_own_position_is_asked_for_it() -> None:
    tracked = TrackedLoader(KeepsItsPosition())
    batches = iter(tracked)
    assert [next(batches), next(batches)] == [1, 2]
    position = tracked.position()
    again = TrackedLoader(KeepsItsPosition())
    again.resume(position)
    assert list(again) == [3, 4, 5]
    assert list(again) == [1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="keeps its own position"):
        TrackedLoader(LOADERS["plain"]()).resume(position)


class KeepsItsOrder:
    """As torchdata's does: at the end of an epoch its state has the sampler's generator from before it."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.begun = self.generator.get_state()
        self.given = 0
        self.loaded = False

    def __iter__(self) -> Iterator[int]:
        if self.loaded:
            self.loaded = False
            self.generator.set_state(self.begun)
            if self.given < 5:
                return self._walk()
        self.begun, self.given = self.generator.get_state(), 0
        return self._walk()

    def _walk(self) -> Iterator[int]:
        for each in torch.randperm(5, generator=self.generator).tolist()[self.given :]:
            self.given += 1
            yield each

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun.clone(), "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.given, self.loaded = state["begun"], state["given"], True


@pytest.mark.parametrize("place", [(0, 2), (1, 4), (0, -1), (1, -1)])
def test_a_loader_that_keeps_its_own_position_goes_on_after_an_epoch_too(place: tuple[int, int]) -> None:
    seed(1)
    whole = Run(KeepsItsOrder())
    end = whole.go()
    assert len({tuple(entry[0] for entry in whole.log[begin : begin + 5]) for begin in (0, 5, 10)}) == 3
    assert_resumed_the_same(whole, end, lambda: Run(KeepsItsOrder()), place)


def test_another_loader_than_the_one_saved_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    saved = Run(DataLoader(Numbers(), 3)).go(save_at=(0, 2))
    TrackedLoader(DataLoader(Numbers(), 4)).resume(saved["data"])
    assert "batch_size was 3, is 4" in caplog.text


def test_workers_that_somebody_else_started_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    loader = DataLoader(Numbers(), 3, num_workers=1, persistent_workers=True)
    next(iter(loader))
    next(iter(TrackedLoader(loader)))
    assert "were started before the checkpointer saw the loader" in caplog.text


def test_the_loader_is_left_as_it_was() -> None:
    loader = DataLoader(Numbers(), 3, shuffle=True, num_workers=1)
    before = dict(vars(loader))
    list(TrackedLoader(loader))
    assert vars(loader) == before


def test_a_probe_can_be_sent_to_a_spawned_worker() -> None:
    probe = pickle.loads(pickle.dumps(WorkerProbe(mask_torch, None)))  # noqa: S301
    assert probe._collate is mask_torch


def test_the_tape_is_not_endless(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("ckpt_torch.tape.LONGEST", 3)
    run = Run(LOADERS["lazy sampler"]())
    saved = run.go(save_at=(0, 6))
    assert len(saved["data"]["sampler_tape"]) == 3
    assert "a resume later in this epoch will not be exact" in caplog.text


def test_a_wrong_method_is_told() -> None:
    with pytest.raises(UsageError, match="resume_data is 'guess'"):
        TrackedLoader([], resume_data="guess")  # type: ignore[arg-type]
