"""The training data of a Trainer: which batches its loop has used up, and how to go back to there.

Accelerate's loaders hold one batch in advance of the loop; the position is that of the loop. How a position
is kept and found again is `ckpt_torch.loader`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ckpt_torch.loader import ResumeData, TrackedLoader
from ckpt_torch.rng import read_streams

__all__ = ["EvaluationData", "TrackedProxy", "TrainingData"]

Position = dict[str, Any]


class TrackedProxy(TrackedLoader):
    """A tracked loader that passes for the loader itself, also with `isinstance`."""

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while it is copied, before there is one
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.loader)


class TrainingData:
    """The loader of one training. `before_fetch` is called each time before a batch is fetched.

    `consumed` counts the batches of this epoch that the training loop has been given.
    """

    def __init__(self, loader: Any, *, resume_data: ResumeData, before_fetch: Callable[[], None]) -> None:
        self._base = vars(loader).get("base_dataloader") if hasattr(loader, "__dict__") else None
        self._outer = loader
        inner = loader if self._base is None else self._base
        self._collate = vars(inner).get("collate_fn") if hasattr(inner, "__dict__") else None
        if self._collate is not None:
            vars(inner)["collate_fn"], hides = _opened(self._collate, getattr(inner, "num_workers", 0))
            if hides and resume_data == "auto":
                resume_data = "replay"
        self._inner = inner
        self._tracked = TrackedProxy(
            inner,
            name="the training data",
            resume_data=resume_data,
            before_fetch=before_fetch,
            lookahead=0 if self._base is None else 1,
        )
        if self._base is not None:
            loader.base_dataloader = self._tracked
        self.consumed = 0

    @property
    def loader(self) -> Any:
        """What the training loop iterates over."""
        return self._tracked if self._base is None else self._outer

    @property
    def has_more(self) -> bool:
        """Whether this epoch has batches that the training loop has not been given."""
        if self._base is not None:
            return self._tracked.delivered > self.consumed
        try:
            return len(self._tracked) > self.consumed
        except TypeError:
            return True

    def position(self, *, between: bool) -> Position:
        """Where the loop stands, as a plain value; with `between`, before the next epoch."""
        ahead = 0 if between else self._tracked.delivered - self.consumed
        return self._tracked.position(ahead=ahead, between=between)

    def resume(self, position: Mapping[str, Any] | None, consumed: int) -> None:
        """Have the next iteration begin at `position`, where `consumed` batches of the epoch were used up.

        None for the position of a checkpoint that knows the number only, as Trainer's own do.
        """
        self.consumed = consumed
        if position is not None:
            self._tracked.resume(position)
        elif consumed:
            self._tracked.resume(self._position_of(consumed))

    def iterate(self, epoch: int) -> Iterator[Any]:
        """An iterator over what is left of the epoch. Trainer makes none that does not skip for itself."""
        set_epoch = getattr(self.loader, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        return iter(self.loader)

    def release(self) -> None:
        """Leaves the loader as it was."""
        if self._base is not None:
            self._outer.base_dataloader = self._base
        if self._collate is not None:
            vars(self._inner)["collate_fn"] = self._collate

    def _position_of(self, consumed: int) -> Position:
        begin = self._tracked.position()
        if begin["kind"] == "own":
            return begin
        nothing: Position = {"tape": {}, "sampler_tape": {}, "marks": [], "grown": [], "continued": False}
        workers: Position = {"workers": {}, "workers_begin": {}}
        moment = {"streams": read_streams(), "memory": begin["memory"]}
        return (
            begin | nothing | workers | {"started": True, "delivered": consumed, "passes": 0, "begin": moment}
        )


class EvaluationData:
    """Loaders for evaluation whose workers live on from one evaluation to the next, by name.

    All others are made anew each time, and draw nothing that is not drawn from what is saved anyway.
    """

    def __init__(self) -> None:
        self._tracked: dict[str, tuple[Any, TrackedProxy]] = {}

    def watch(self, name: str, loader: Any) -> None:
        """A loader was made, or is used again."""
        base = vars(loader).get("base_dataloader") if hasattr(loader, "__dict__") else None
        if getattr(base, "persistent_workers", False) and not isinstance(base, TrackedProxy):
            self._tracked[name] = (loader, TrackedProxy(base, name=f"evaluation data {name}"))
            loader.base_dataloader = self._tracked[name][1]

    def positions(self) -> dict[str, Position]:
        """Where each stands, between two evaluations."""
        return {name: proxy.position(between=True) for name, (_, proxy) in self._tracked.items()}

    def resume(self, positions: Mapping[str, Position]) -> None:
        """Go to what `positions` gave, with those that are watched."""
        for name, (_, proxy) in self._tracked.items():
            if name in positions:
                proxy.resume(positions[name])

    def release(self) -> None:
        """Leaves the loaders as they were."""
        for loader, proxy in self._tracked.values():
            loader.base_dataloader = proxy.loader


def _opened(collate: Any, workers: int) -> tuple[Any, bool]:
    """Trainer's wrapper of a collate function, with what is wrapped, and its generator, in plain sight.

    What a collate function remembers is looked for in it, but never inside of the classes of transformers. Also
    whether it is hidden all the same: those with a `seed` make a generator when a worker calls them first.
    """
    inner = getattr(collate, "data_collator", collate)
    seeded = getattr(inner, "seed", None) is not None and callable(getattr(inner, "create_rng", None))
    if seeded and not workers and inner.generator is None:
        inner.create_rng()
    if inner is collate and not seeded:
        return collate, False
    return partial(_collated, inner, getattr(inner, "generator", None), collate), bool(seeded and workers)


def _collated(inner: Any, generator: Any, collate: Callable[[Any], Any], samples: Any) -> Any:
    return collate(samples)
