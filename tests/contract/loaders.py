"""Data loaders as people write them: what they draw from, remember, and hand out. For the loader's tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
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

SAMPLES, BATCH, PER_EPOCH = 23, 3, 8
MODULE_RNG = np.random.default_rng(5)


def seed(value: int) -> None:
    """Begin as a new process would that seeds everything."""
    global MODULE_RNG
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
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
    parts = ConcatDataset(
        [Subset(TensorDataset(torch.arange(float(SAMPLES))), range(9)), TensorDataset(torch.arange(14.0))]
    )
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
    "masking by itself": lambda **more: DataLoader(
        Numbers(), BATCH, shuffle=True, collate_fn=MaskOwn(), **more
    ),
    "masking by closure": lambda **more: DataLoader(Numbers(), BATCH, collate_fn=closure_mask(), **more),
    "generator": lambda **more: DataLoader(
        DrawsFromGlobals(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(3), **more
    ),
    "weighted": weighted,
    "subset": lambda **more: DataLoader(
        Numbers(), BATCH, sampler=SubsetRandomSampler(range(SAMPLES)), **more
    ),
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
