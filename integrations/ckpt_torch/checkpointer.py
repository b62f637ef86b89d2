"""Checkpoints for a training loop that one has written oneself, in four lines.

`TorchCheckpointer` knows the loop's safe points and counts its steps and epochs. What it shares with other
adapters is `ckpt_core.session`'s; what the state of a loop is, `training.py`'s.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from signal import Signals
from types import TracebackType
from typing import Any, Self

from torch import distributed, nn

from ckpt_core import AnyOf, BaseHook, CheckpointManager, Session, UsageError
from ckpt_core.fitting import Renames
from ckpt_core.opening import ManagerOptions, ManagerSource
from ckpt_core.policies import RetentionPolicy, SavePolicy, SavePolicyHook, save_policy_from
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_torch.lazy import LazyParameters, Staging
from ckpt_torch.leaving import LoopLeftError, left_by_choice
from ckpt_torch.loader import ResumeData, TrackedLoader
from ckpt_torch.loop import Ends, Loop
from ckpt_torch.rates import learning_rate_of
from ckpt_torch.training import Training, tracked
from ckpt_torch.views import Epochs, LoopLoader
from ckpt_torch.weights import start_from
from ckpt_torch.wrappers import walk

__all__ = ["TorchCheckpointer"]

_log = logging.getLogger("ckpt_core.torch")


class TorchCheckpointer:
    """Saves a training loop while it runs and goes on exactly where an earlier run of it was stopped.

        ckpt = TorchCheckpointer("checkpoints", experiment="digits", model=model, optimizer=optimizer,
                                 loader=loader, every_n_steps=50)
        for epoch in ckpt.epochs(range(10)):
            for batch in ckpt.loader:
                ...

    Made when everything else is made: it restores what there is to restore, at once. The training is over
    when `epochs` is, or is left by `break` or `return`; an exception is noticed, too. Whoever wants to be
    sure of either, or has no such loop, uses it in a `with` block, or calls `finish`.

    `model=`, `optimizer=`, `scheduler=`, `scaler=` and any other name: what has `state_dict` and
    `load_state_dict`, or a list or dict of such; the name is its path in the checkpoint. Steps are counted
    where an optimizer makes one. `loader`: the training data, one DataLoader or a dict of them. `state`: a
    dict of plain values that the loop changes (the best loss, an early-stopping count), restored in place.

    `root`, `experiment`, `metric`, `mode`, `save_policy`, `retention`, `hooks` and what is in `ManagerOptions`
    (`max_pending`, `on_busy`, `staged_bytes` and so on) are those of `CheckpointManager`; or give a `manager` that
    is there. `every_n_steps`, `every_n_epochs` and `every_minutes` say when to save; whatever they say, the end is
    saved. `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference. `resume_data`:
    how to go back to a position in the data, `"auto"`, `"skip"` or `"replay"`. `init_from`: the checkpoint whose
    weights a training begins with that has nothing to resume, as `"other-experiment@best"`; `strict` and `renames`
    are those of `load_weights`. `signals` are those after which it saves and then lets the earlier handler go on.
    `staging="lazy"`: parameters and what optimizers keep are copied while forward and backward run, and the next
    step of an optimizer waits for it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        loader: Any = None,
        state: MutableMapping[str, Any] | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_minutes: float | None = None,
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        resume: str | None = "auto",
        resume_data: ResumeData = "auto",
        init_from: str | None = None,
        strict: bool = True,
        renames: Renames | None = None,
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        staging: Staging = "copy",
        metric: str | None = None,
        mode: Any = None,
        **objects: Any,
    ) -> None:
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise UsageError(
                f"the training runs in {distributed.get_world_size()} processes, and a TorchCheckpointer saves "
                "from one",
                kind="processes",
            )
        options = {name: objects.pop(name) for name in ManagerOptions.__annotations__ if name in objects}
        policy = save_policy_from(every_n_steps, every_n_epochs, every_minutes)
        self._source = ManagerSource(
            root, experiment, manager, call="TorchCheckpointer", metric=metric, mode=mode,
            retention=tuple(retention), hooks=tuple(hooks), **options,
        )  # fmt: skip
        self.state: MutableMapping[str, Any] = {} if state is None else state
        self._training = Training(objects, self.state, tracked(loader, resume_data))
        self._policy = SavePolicyHook(AnyOf(save_policy, policy) if save_policy else policy)
        self._within = self._begun = self._ended = False
        self._lazy = LazyParameters.chosen(staging, self._training.optimizers)
        reference = weakref.ref(self)
        self._at_exit = lambda: _fail_at_exit(reference)
        try:
            self.session = Session(self.manager, signals=signals)
            self.session.lazy = self._lazy
            self.session.learning_rate = lambda: learning_rate_of(self._training.optimizers())
            ends = Ends(self._begin, self._over, self._left, self._fail)
            self._loop = Loop(self._training, self.session, ends)
            resumption = self.session.resume(resume)
            if resumption.state is not None:
                self._training.restore(resumption.state)
            elif init_from is not None:
                found = (pair for name, value in objects.items() for pair in walk(name, value))
                models = {path: each for path, each in found if isinstance(each, nn.Module)}
                start_from(models, self.manager, init_from, strict=strict, renames=renames)
        except BaseException:
            self._close()
            raise

    # -- what users look at -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager; one of our own is closed at the end of the training, and opened again when asked for."""
        return self._source.manager

    @property
    def resumption(self) -> Resumption:
        """How this run began: `kind` (`fresh`, `resumed`, ...), `step`, and the `checkpoint` if there was one."""
        return self.session.resumption

    @property
    def global_step(self) -> int:
        """Steps made so far, those of earlier runs included."""
        return self._training.step

    @property
    def epoch(self) -> int:
        """The number of the epoch that is going on, or comes next."""
        return self._training.epoch

    @property
    def loader(self) -> LoopLoader:
        """The loader, to be iterated over in the training loop. Of several, see `loaders`."""
        return LoopLoader(self, self._find(None))

    @property
    def loaders(self) -> dict[str, LoopLoader]:
        """The loaders by name, to be iterated over in the training loop."""
        return {name: LoopLoader(self, each) for name, each in self._training.loaders.items()}

    @property
    def batch(self) -> int:
        """The number in its epoch of the batch that comes next: `enumerate(ckpt.loader, ckpt.batch)`."""
        return self._find(None).upcoming

    # -- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._within = True
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._fail(error)

    def finish(self) -> None:
        """Training is over: the last save, if it was not made, and everything durable. May be repeated.

        Only for a loop that is neither over with `epochs` or `steps` nor in a `with` block. Raises what
        prevented the last save, and SaveFailedError for earlier ones where `on_save_error` asks for it.
        """
        if self._ended:
            return
        self._begin()
        self._ended = True
        try:
            self._loop.count()
            self.session.finish(self.global_step, self.epoch, self._training.capture)
        finally:
            self._close()

    # -- the loop ---------------------------------------------------------------------------------

    def epochs(self, total: int | Sequence[int]) -> Epochs:
        """The epochs that are left of `range(10)`, or of that many. A safe point lies between two of them.

        In an epoch that is resumed in its midst, the loader goes on where it was; what the loop's own
        variables held is gone, unless it is in `state`.
        """
        numbers = range(total) if isinstance(total, int) else total
        if not isinstance(numbers, Sequence):
            raise UsageError(f"epochs({total!r}): give a number or a range, as in epochs(range(10))")
        return Epochs(lambda: self._loop.epochs(numbers), lambda: max(0, len(numbers) - self.epoch))

    def steps(self, total: int) -> Iterator[int]:
        """Numbers of the steps that are left of `total`, from 0, for loops without epochs.

        Each turn is one step; call `step` in it to report metrics. A safe point lies between two of them.
        """
        return self._loop.steps(total)

    def batches(self, loader: Any = None) -> Iterator[Any]:
        """The batches that are left of this epoch, of the only loader or of the one that is named.

        The same as `loader`, and for several `loaders`: one is named by itself or by its name in the dict. A
        safe point lies between two batches, when a step was made with the first of them.
        """
        return self._loop.batches(self._find(loader))

    def step(self, **metrics: Any) -> None:
        """One step is done, at the end of an iteration: records its metrics, saves if it is time.

        An iteration in which an optimizer makes a step is one, whether this is called or not. The save
        itself is made when the iteration is over.
        """
        self._loop.step(metrics)

    def evaluated(self, **metrics: Any) -> None:
        """The weights as they are now were evaluated: these metrics are what `best` goes by."""
        self._loop.evaluated(metrics)

    def save(self, reason: str = "asked for") -> None:
        """Ask for a save, made at the next safe point."""
        self.session.request(reason)

    # -- details ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._ended:
            raise UsageError("this training is over: make another TorchCheckpointer to go on", kind="ended")
        if self._begun:
            return
        self._begun = True
        atexit.register(self._at_exit)
        lineage = self.manager.checkpoints(all_lineages=False) if self.resumption.step else []
        self._policy.remember(lineage)
        self.manager.hooks.register_hook(self._policy)
        self.session.begin(self.global_step, self.epoch)

    def _over(self) -> None:
        if not self._within:
            self.finish()

    def _left(self, advanced: Collection[int]) -> None:
        """The loop was dropped before its end. Nothing that is raised here is heard."""
        if self._within or self._ended:
            return
        # From here back: the generator that is being closed, and who closes it.
        chosen = left_by_choice(sys._getframe(1).f_back, advanced)
        if chosen:
            try:
                self.finish()
            except Exception as error:
                _log.error("the end of the training was not saved as it should be: %s", error)
        elif chosen is False:
            self._fail(LoopLeftError("an exception"))
        # Else finish() may still be called, and if it is not, the end of the process is noticed.

    def _fail(self, error: BaseException) -> None:
        """Saves the last good state, if it is still there; raises nothing."""
        if self._ended:
            return
        self._ended = True
        begun, now = self.resumption.step, self.global_step
        state = self._training.guard.state()
        if state is not None and state["loop"]["step"] != now:
            state = None
        if state is None and now > begun:
            _log.warning(
                "%s came when the state was no longer that of any moment between two iterations: what was not "
                "saved before is lost", type(error).__name__,
            )  # fmt: skip
        try:
            # Before the first step there is nothing worth a checkpoint.
            capture = None if state is None or now == begun else lambda: state
            self.session.fail(error, now, self.epoch, capture)
        finally:
            self._close()

    def _close(self) -> None:
        self._training.close()
        atexit.unregister(self._at_exit)
        if self._begun:
            self.session.close()
        if self._begun and not self._source.owned:
            self.manager.hooks.unregister_hook(self._policy)
        try:
            self._source.close()
        finally:
            if self._lazy is not None:
                self._lazy.close()

    def _find(self, loader: Any) -> TrackedLoader:
        loaders = self._training.loaders
        for name, each in loaders.items():
            if loader is each.loader or loader == name or (loader is None and len(loaders) == 1):
                return each
        known = ", ".join(loaders) or "there are none"
        raise UsageError(
            f"which loader? give the checkpointer loader=..., or name one of those it has ({known})",
            kind="loader",
        )


def _fail_at_exit(reference: weakref.ref[TorchCheckpointer]) -> None:
    ckpt = reference()
    if ckpt is not None:
        ckpt._fail(LoopLeftError("the end of the process"))
