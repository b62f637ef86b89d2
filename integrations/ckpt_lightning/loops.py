"""Where Lightning's training loop can be stopped and gone on with exactly, and how it is put back there.

All that touches the loops' private parts is here; written against Lightning 2.5 and 2.6. The safe points
lie just before a batch is fetched and just before an epoch begins: at both, everything that belongs to what
came before is done (validation, schedulers, hooks of the module, counters). One more lies before a validation, for
when that fails or there is no time for it. A resume brings the loop to the same line of its code and puts back
the counters there, instead of trusting to its own restart.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_core import UsageError
from ckpt_lightning.proxies import TrackedProxy, inner, lookahead_of
from ckpt_torch.loader import ResumeData

__all__ = ["EPOCH", "VALIDATION", "LoopWatch", "lies_in_an_epoch", "progress_of"]

_BATCH = "batch"
EPOCH = "epoch"
VALIDATION = "validation"
"""The boundary before a validation; the others have all behind them that belongs to the last batch."""
_NEEDED = ("on_advance_start", "_load_combined_loader_states", "epoch_loop", "epoch_progress")


class LoopWatch:
    """Watches the fit loop of one trainer from `install` to `remove`.

    `safe_point` is called with the boundary, `"batch"`, `"epoch"` or `"validation"`, at every instant at which a
    resume would be exact, and `passed` when a validation lies behind. After `resume`, `revive` is called with the
    boundary when the counters are in place and the epoch is about to go on or to begin, and `restore` at that
    very boundary, when all else is in place.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        resume_data: ResumeData,
        safe_point: Callable[[str], None],
        passed: Callable[[], None],
        revive: Callable[[str], None],
        restore: Callable[[], None],
    ) -> None:
        self._trainer = trainer
        self._loop = trainer.fit_loop
        missing = [name for name in _NEEDED if not hasattr(self._loop, name)]
        if missing:
            raise UsageError(
                f"this version of Lightning is not known here (its fit loop has no {', '.join(missing)}); "
                "use one from 2.5 to 2.6",
                kind="version",
            )
        self._resume_data: ResumeData = resume_data
        self._safe_point = safe_point
        self._passed = passed
        self._revive = revive
        self._restore = restore
        self._training: list[TrackedProxy] = []
        self._validation: list[TrackedProxy] = []
        self._pending: Mapping[str, Any] | None = None
        self._pending_validation: list[Any] = []
        self._in_the_midst = False
        self._epochs_begun = 0

    # -- being there ------------------------------------------------------------------------------

    def install(self) -> None:
        """Begin to watch."""
        loop, validation = self._loop, self._loop.epoch_loop.val_loop
        loop._load_combined_loader_states = self._track_training
        loop.on_advance_start = self._on_epoch
        setup, run = validation.setup_data, validation.run
        validation.setup_data = lambda: self._track_validation(setup)
        validation.run = lambda: self._validate(run)

    def remove(self) -> None:
        """Leave the trainer as it was."""
        validation = self._loop.epoch_loop.val_loop
        for owner, name in (
            (self._loop, "_load_combined_loader_states"),
            (self._loop, "on_advance_start"),
            (validation, "setup_data"),
            (validation, "run"),
        ):
            vars(owner).pop(name, None)
        for combined in (self._loop._combined_loader, validation._combined_loader):
            if combined is not None:
                combined.flattened = [inner(each) for each in combined.flattened]

    # -- state ------------------------------------------------------------------------------------

    @property
    def is_cheap(self) -> bool:
        """Whether `capture` takes little: not where a loader is asked for a position that it keeps itself."""
        return not any(each.stateful for each in (*self._training, *self._validation))

    def capture(self, boundary: str) -> dict[str, Any]:
        """Where the loop stands; for `resume`. The counters are Lightning's own to save."""
        between = not lies_in_an_epoch(boundary)
        lead = self._training[0] if self._training else None
        # Lightning fetches one batch in advance of the one that it trains on, or none.
        ahead = 0 if between or lead is None else min(lead.lookahead, lead.delivered)
        return {
            "boundary": boundary,
            "training": [each.position(ahead=ahead, between=between) for each in self._training],
            "validation": [each.position(between=True) for each in self._validation],
            "reload_epoch": self._loop._last_train_dl_reload_epoch,
        }

    def resume(self, state: Mapping[str, Any], counters: Mapping[str, Any], *, anew: bool = False) -> None:
        """Go to what `capture` gave, and to the `counters` that Lightning's fit loop had saved with it.

        With `anew`, positions in the data are given up, and an epoch that was in its midst begins once more.
        """
        pending = {**state, "counters": copy.deepcopy(dict(counters))}
        if anew:
            if lies_in_an_epoch(pending["boundary"]):
                pending["boundary"] = EPOCH
                for progress in pending["counters"]["epoch_progress"].values():
                    progress["ready"], progress["started"] = progress["ready"] - 1, progress["started"] - 1
            pending |= {"training": None, "validation": []}
        self._pending = pending
        self._pending_validation = list(pending["validation"])

    # -- what Lightning calls ---------------------------------------------------------------------

    def _track_training(self) -> None:
        """In place of Lightning's own restoring of loaders, just before it begins to iterate."""
        self._loop._combined_loader_states_to_load = []
        combined = self._loop._combined_loader
        if combined is None:
            return
        loaders = [inner(each) for each in combined.flattened]
        lookahead = lookahead_of(combined, loaders)
        self._training = [
            TrackedProxy(
                loader,
                name="the training data" if len(loaders) == 1 else f"training loader {index}",
                resume_data=self._resume_data,
                before_fetch=self._on_fetch if index == 0 else None,
                lookahead=lookahead,
            )
            for index, loader in enumerate(loaders)
        ]
        if self._pending is not None:
            for proxy in self._training:
                proxy.dormant = True
        combined.flattened = list(self._training)

    def _track_validation(self, original: Callable[[], None]) -> None:
        # Validation draws from the global generators too, and its workers may live on from one to the next.
        original()
        combined = self._loop.epoch_loop.val_loop._combined_loader
        if combined is None or any(isinstance(each, TrackedProxy) for each in combined.flattened):
            return
        self._validation = [
            TrackedProxy(loader, name=f"validation loader {index}", resume_data=self._resume_data)
            for index, loader in enumerate(combined.flattened)
        ]
        combined.flattened = list(self._validation)
        pending, self._pending_validation = self._pending_validation, []
        if len(pending) == len(self._validation):
            for proxy, position in zip(self._validation, pending, strict=True):
                proxy.resume(position)

    def _on_epoch(self) -> None:
        """In place of `on_advance_start`, which begins an epoch."""
        loop, first = self._loop, self._epochs_begun == 0
        self._epochs_begun += 1
        for proxy in self._training:
            proxy.passes = 0
        pending = self._pending
        if pending is None:
            if not first:  # before the first, the loader has begun its epoch already
                self._safe_point(EPOCH)
            type(loop).on_advance_start(loop)
            return
        self._put_counters(pending)
        self._resume_positions(pending)
        self._revive(pending["boundary"])
        if lies_in_an_epoch(pending["boundary"]):
            self._in_the_midst = True
            self._begin_in_the_midst()
        else:
            self._pending = None
            self._restore()
            type(loop).on_advance_start(loop)
        if self._trainer.current_epoch == 0:  # from the second epoch on, Lightning does it itself
            iter(loop._data_fetcher)

    def _on_fetch(self) -> None:
        """Before a batch is fetched from the first training loader."""
        loop = self._loop
        if not self._in_the_midst:
            if self._between_batches():
                self._safe_point(_BATCH)
            return
        pending, self._pending, self._in_the_midst = self._pending, None, False
        assert pending is not None
        self._put_counters(pending)
        loop._data_fetcher.fetched = loop.epoch_loop.batch_progress.current.ready
        consumed = getattr(loop._combined_loader._iterator, "_consumed", None)
        if consumed is not None:
            consumed[:] = [proxy.passes > 0 for proxy in self._training]
        self._restore()
        if pending["boundary"] == VALIDATION:
            self._end_batch()

    def _validate(self, run: Callable[[], Any]) -> Any:
        """In place of the validation's `run`."""
        known = not self._trainer.sanity_checking and self._between_batches() and self._comes_back_here()
        if known:
            self._safe_point(VALIDATION)
        found = run()
        if known:
            self._passed()
        return found

    # -- details ----------------------------------------------------------------------------------

    def _begin_in_the_midst(self) -> None:
        # The hooks of the epoch's start were called before the checkpoint; the rest of on_advance_start is here.
        self._loop.setup_data()
        for proxy in self._training:
            for sampler in (getattr(proxy, "sampler", None), getattr(proxy, "batch_sampler", None)):
                for each in (sampler, getattr(sampler, "sampler", None)):
                    set_epoch = getattr(each, "set_epoch", None)
                    if callable(set_epoch):
                        set_epoch(self._loop.epoch_progress.current.processed)

    def _comes_back_here(self) -> bool:
        """Whether a resume could come to the validation of the last batch: if it has fetched no further batch."""
        fetcher = self._loop._data_fetcher
        one = len(self._training) == 1 and not self._training[0].lookahead
        return one and not hasattr(fetcher, "iterator_wrapper")

    def _end_batch(self) -> None:
        """What follows a batch, its validation first. We are where Lightning fetches the next one: if there is to be
        none, the loader has to look as if it were at its end."""
        loop = self._loop.epoch_loop
        loop.on_advance_end(self._loop._data_fetcher)
        if loop.done:
            raise StopIteration

    def _resume_positions(self, pending: Mapping[str, Any]) -> None:
        positions = pending["training"]
        for proxy in self._training:
            proxy.dormant = False
        if positions is None:
            return
        if len(positions) != len(self._training):
            raise UsageError(
                f"the checkpoint is of a run with {len(positions)} training loaders, here are {len(self._training)}",
                kind="loader",
            )
        for proxy, position in zip(self._training, positions, strict=True):
            proxy.resume(position)

    def _put_counters(self, pending: Mapping[str, Any]) -> None:
        """The counters as they were, and none of the flags by which Lightning would go about a restart."""
        loop = self._loop
        loop.load_state_dict(copy.deepcopy(pending["counters"]))
        loop._combined_loader_states_to_load = []
        loop._last_train_dl_reload_epoch = pending["reload_epoch"]
        for each in _loops(loop):
            each._restarting = False
            each._loaded_from_state_dict = False
            each._resuming_from_checkpoint = False
            if hasattr(each, "reset_restart_stage"):
                each.reset_restart_stage()

    def _between_batches(self) -> bool:
        epoch, batch = self._loop.epoch_progress.current, self._loop.epoch_loop.batch_progress.current
        return bool(epoch.started > epoch.processed and batch.ready == batch.started == batch.completed)


def lies_in_an_epoch(boundary: str) -> bool:
    """Whether an epoch has begun there that is not over."""
    return boundary in (_BATCH, VALIDATION)


def progress_of(loop: Any) -> Iterator[Any]:
    """Every object that counts something in a loop and in those that it is made of."""
    for each in _loops(loop):
        for value in vars(each).values():
            yield from _counters(value)


def _counters(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and hasattr(value, "load_state_dict"):
        yield value
        for part in vars(value).values():
            yield from _counters(part)


def _loops(loop: Any) -> Iterator[Any]:
    yield loop
    for each in list(vars(loop).values()):
        if hasattr(each, "_restarting") and hasattr(each, "load_state_dict"):
            yield from _loops(each)
