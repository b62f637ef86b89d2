"""A loader resumed at any batch hands out what it would have handed out, and draws what it would have drawn."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

SAMPLES, BATCH = 23, 3
EPOCHS = 3
PER_EPOCH = 8

MODULE_RNG = np.random.default_rng(5)


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return float(index)


class DrawsFromGlobals(Numbers):
    def __getitem__(self, index: int) -> Any:
        return index + random.random() + np.random.rand() + float(torch.rand(()))


class DrawsSometimes(Numbers):
    def __getitem__(self, index: int) -> Any:
        return index + (float(torch.randn(())) if index % 7 == 3 else 0.0)


class OwnGenerators(Numbers):
    def __init__(self) -> None:
        self.numpy = np.random.default_rng(3)
        self.legacy = np.random.RandomState(4)
        self.python = random.Random(5)
        self.torch = torch.Generator().manual_seed(6)

    def __getitem__(self, index: int) -> Any:
        drawn = self.numpy.random() + self.legacy.rand() + self.python.gauss(0, 1)
        return index + drawn + float(torch.rand((), generator=self.torch))


class GlobalGenerator(Numbers):
    def __getitem__(self, index: int) -> Any:
        return index + MODULE_RNG.random()


class Counts(Numbers):
    def __init__(self) -> None:
        self.calls = 0

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        return float(index + 100 * self.calls)


class RemembersSamples(Numbers):
    """Mixes in a sample chosen at random among all that it gave before in this epoch."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def __getitem__(self, index: int) -> Any:
        self.given.append(index + float(torch.rand(())))
        return self.given[int(torch.randint(len(self.given), ()))] * 10 + index


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        yield from (float(each) for each in range(first, SAMPLES, step))


class ShufflingStream(Stream):
    """A shuffle buffer that draws from the generator that dropout draws from, too."""

    def __iter__(self) -> Iterator[Any]:
        buffer: list[float] = []
        for each in super().__iter__():
            buffer.append(each + float(torch.rand(())))
            if len(buffer) == 4:
                yield buffer.pop(int(torch.randint(len(buffer), ())))
        yield from buffer


class CountingStream(Stream):
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        order = random.Random(self.epoch)
        items = list(super().__iter__())
        order.shuffle(items)
        yield from items


class LazySampler:
    """Draws each index from the global generator when it is asked for, and gives none twice."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(SAMPLES))
        while left:
            yield left.pop(int(torch.randint(len(left), ())))

    def __len__(self) -> int:
        return SAMPLES


class EpochSampler:
    """Counts its epochs by itself, as many do."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(SAMPLES).tolist())

    def __len__(self) -> int:
        return SAMPLES


def mask_torch(samples: list[Any]) -> Any:
    batch = torch.tensor(samples)
    return torch.where(torch.rand(batch.shape) < 0.3, -1.0, batch)


def mask_python(samples: list[Any]) -> Any:
    return torch.tensor([-1.0 if random.random() < 0.3 else each for each in samples])


class MaskOwn:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(9)

    def __call__(self, samples: list[Any]) -> Any:
        return torch.tensor([-1.0 if self.rng.random() < 0.3 else each for each in samples])


def closure_mask() -> Callable[[list[Any]], Any]:
    rng = random.Random(4)
    return lambda samples: torch.tensor([-1.0 if rng.random() < 0.3 else each for each in samples])


class PlainIterable:
    """No DataLoader at all: shuffles by itself, draws as it goes."""

    def __iter__(self) -> Iterator[Any]:
        order = np.random.permutation(SAMPLES)
        for begin in range(0, SAMPLES, BATCH):
            yield torch.tensor(order[begin : begin + BATCH] + random.random())

    def __len__(self) -> int:
        return PER_EPOCH


def shared_generator() -> DataLoader[Any]:
    return DataLoader(Numbers(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))


def with_replacement() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(Numbers(), replacement=True, num_samples=100, generator=generator)
    return DataLoader(Numbers(), batch_size=13, sampler=sampler)


def weighted(**options: Any) -> DataLoader[Any]:
    sampler = WeightedRandomSampler(torch.arange(1.0, SAMPLES + 1).tolist(), SAMPLES)
    return DataLoader(DrawsFromGlobals(), BATCH, sampler=sampler, **options)


def library(**options: Any) -> DataLoader[Any]:
    parts = ConcatDataset([Subset(TensorDataset(torch.arange(float(SAMPLES))), range(9)), TensorDataset(torch.arange(14.0))])
    return DataLoader(parts, BATCH, shuffle=True, **options)


def shuffled(dataset: Callable[[], Any], **options: Any) -> Callable[..., DataLoader[Any]]:
    return lambda **more: DataLoader(dataset(), BATCH, shuffle=True, **options, **more)


LOADERS: dict[str, Callable[..., Any]] = {
    "plain": shuffled(Numbers),
    "library datasets": library,
    "draws from globals": shuffled(DrawsFromGlobals),
    "draws sometimes": shuffled(DrawsSometimes),
    "own generators": shuffled(OwnGenerators),
    "global generator": shuffled(GlobalGenerator),
    "counts": shuffled(Counts),
    "remembers samples": shuffled(RemembersSamples),
    "drop last": shuffled(DrawsFromGlobals, drop_last=True),
    "masking by torch": shuffled(Numbers, collate_fn=mask_torch),
    "masking by python": shuffled(Numbers, collate_fn=mask_python),
    "masking by itself": lambda **more: DataLoader(Numbers(), BATCH, shuffle=True, collate_fn=MaskOwn(), **more),
    "masking by closure": lambda **more: DataLoader(Numbers(), BATCH, collate_fn=closure_mask(), **more),
    "generator": lambda **more: DataLoader(
        DrawsFromGlobals(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(3), **more
    ),
    "weighted": weighted,
    "subset": lambda **more: DataLoader(Numbers(), BATCH, sampler=SubsetRandomSampler(range(SAMPLES)), **more),
    "lazy sampler": lambda **more: DataLoader(DrawsFromGlobals(), BATCH, sampler=LazySampler(), **more),
    "epoch sampler": lambda **more: DataLoader(Numbers(), BATCH, sampler=EpochSampler(), **more),
    "batch sampler": lambda **more: DataLoader(
        Numbers(), batch_sampler=BatchSampler(LazySampler(), BATCH, False), **more
    ),
    "not batched": lambda **more: DataLoader(DrawsFromGlobals(), batch_size=None, shuffle=True, **more),
    "stream": lambda **more: DataLoader(Stream(), BATCH, **more),
    "masked stream": lambda **more: DataLoader(Stream(), BATCH, collate_fn=mask_torch, **more),
    "shuffling stream": lambda **more: DataLoader(ShufflingStream(), BATCH, **more),
    "counting stream": lambda **more: DataLoader(CountingStream(), BATCH, **more),
}
ONLY_IN_PROCESS: dict[str, Callable[..., Any]] = {
    "shared generator": shared_generator,
    "with replacement": with_replacement,
    "no DataLoader": PlainIterable,
}
WORKERS = {"two": {"num_workers": 2}, "persistent": {"num_workers": 2, "persistent_workers": True}}
CASES = [
    *(pytest.param(make, {}, id=f"{name}-main") for name, make in (LOADERS | ONLY_IN_PROCESS).items()),
    *(
        pytest.param(make, options, id=f"{name}-{how}")
        for name, make in LOADERS.items()
        for how, options in WORKERS.items()
    ),
]


def train_on(batch: Any) -> tuple[Any, ...]:
    """What a training loop does with random numbers in one iteration: dropout, mixing, a choice."""
    values = tuple(torch.as_tensor(batch).reshape(-1).tolist()) if not isinstance(batch, list) else batch[0].tolist()
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


def seed(value: int) -> None:
    global MODULE_RNG
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    MODULE_RNG = np.random.default_rng(5)


@pytest.mark.parametrize("stop_after", [None, 5], ids=["whole epochs", "broken epochs"])
@pytest.mark.parametrize(("make", "options"), CASES)
def test_resumed_anywhere_is_as_never_stopped(make: Any, options: dict[str, Any], stop_after: int | None) -> None:
    seed(1)
    whole = Run(make(**options), stop_after=stop_after)
    end = whole.go()
    assert len(whole.log) > 2 * EPOCHS

    places = [(0, 1), (0, 4), (1, 0), (1, 3), (0, -1), (1, -1), (2, 2)]
    for epoch, batch in places:
        seed(1)
        first = Run(make(**options), stop_after=stop_after)
        saved = first.go(save_at=(epoch, batch))
        assert first.log == whole.log[: len(first.log)], f"saving at {epoch, batch} disturbed the run"

        seed(2)  # another process: everything is made anew, nothing drawn is known
        second = Run(make(**options), stop_after=stop_after)
        second.tracked.resume(saved["data"])
        if batch == -1:
            restore_rng(saved["rng"])
            final = second.go(epoch + 1)
        else:
            final = second.go(epoch, rng=saved["rng"])
        assert first.log + second.log == whole.log, f"resumed at {epoch, batch}"
        assert final == end
