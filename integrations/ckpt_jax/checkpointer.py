"""Checkpoints for a training loop over pytrees that one has written oneself, in four or five lines.

`JaxCheckpointer` knows the loop's safe points and counts its steps and epochs. What it shares with other
adapters is `ckpt_core.session`'s; what pytrees and data become, `pytrees.py`'s and `data.py`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from signal import Signals
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import jax

from ckpt_core import AnyOf, BaseHook, CheckpointManager, SaveFailedError, Session, UsageError
from ckpt_core.opening import ManagerOptions, ManagerSource
from ckpt_core.policies import RetentionPolicy, SavePolicy, SavePolicyHook, save_policy_from
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_jax.codec import Held, is_key
from ckpt_jax.data import Feed
from ckpt_jax.loading import Reading, read
from ckpt_jax.position import Position
from ckpt_jax.pytrees import as_state, donated, injected_rate
from ckpt_jax.shards import prefetch
from ckpt_jax.weights import Renames, part_of, with_weights

__all__ = ["JaxCheckpointer"]

_OWN = ("asked", "data", "extras", "loop", "rng", "session", "weak")
_NEVER: Any = object()
T = TypeVar("T")


class JaxCheckpointer:
    """Saves a training loop while it runs and goes on exactly where an earlier run of it was stopped.

        with JaxCheckpointer("checkpoints", experiment="digits", data=batches, every_n_steps=50) as ckpt:
            state = ckpt.restore(state)
            for epoch in ckpt.epochs(10):
                for batch in ckpt.batches():
                    state, loss = train_step(state, batch)
                    ckpt.step(state, loss=loss)

    The state is any pytree: parameters, optimizer state, random keys (flax, optax, equinox, one's own), with
    nnx objects in it or not. `data`: the training data, one iterable or a dict of them. `extras`: a dict of
    plain values that the loop changes (the best loss, an early-stopping count), restored in place.

    `root`, `experiment`, `metric`, `mode`, `retention`, `hooks` and the `options` (`max_pending`, `on_busy`,
    `staged_bytes` and so on) are those of `CheckpointManager`; or give a `manager` that is there. `save_policy`,
    `every_n_steps`, `every_n_epochs` and `every_minutes` say when to save; whatever they say, the end is
    saved. `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference.
    `init_from`: a reference whose weights a training starts with that has nothing to resume, with `strict`
    and `renames` as in `load_weights`; `weights` is the path of the weights in the state, which goes without
    saying where it is `params` or `model`, or the first of a tuple. `signals` are those after which it saves
    and then lets the earlier handler go on.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        data: Any = None,
        extras: MutableMapping[str, Any] | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_minutes: float | None = None,
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        resume: str | None = "auto",
        init_from: str | None = None,
        weights: str | None = None,
        strict: bool = True,
        renames: Renames | None = None,
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        metric: str | None = None,
        mode: Any = None,
        **options: Unpack[ManagerOptions],
    ) -> None:
        if jax.process_count() > 1:
            raise UsageError(
                "a JaxCheckpointer runs in one process, and this is one of several (jax.distributed): save "
                "through Orbax with ckpt_jax.OrbaxHandler",
                kind="processes",
            )
        self.extras: MutableMapping[str, Any] = {} if extras is None else extras
        self._at = Position(data)
        policy = save_policy_from(every_n_steps, every_n_epochs, every_minutes)
        self._source = ManagerSource(
            root, experiment, manager, call="JaxCheckpointer", metric=metric, mode=mode,
            retention=tuple(retention), hooks=tuple(hooks), **options,
        )  # fmt: skip
        self.manager = self._source.manager
        self.manager.hooks.register_hook(
            SavePolicyHook(AnyOf(save_policy, policy) if save_policy else policy)
        )
        self.session = Session(self.manager, signals=signals)
        self._resume = resume
        self._init = (init_from, weights, strict, renames)
        self._state: Any = _NEVER
        self._asked: dict[str, int] = {}
        self._asked_before: dict[str, int] = {}
        self._moment: dict[str, Any] | None = None
        self._depth = 0
        self._donates: bool | None = None
        self._told_rate: Any = None
        self.session.learning_rate = self._learning_rate

    # -- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def restore(self, state: T) -> T:
        """The state to train from: as it was saved, or as it is given where there is nothing to go on from.

        It comes back in the structure, dtypes and shardings of `state`, whose arrays may be
        `jax.ShapeDtypeStruct`s if a checkpoint is sure to be there; nnx objects are updated in place. Call
        it once, before the loop. Raises StateMismatchError (names the paths), NotFoundError, CorruptionError.
        """
        if self._state is not _NEVER:
            raise UsageError("restore() was called already: once, before the loop", kind="order")
        if self._resume is None or (self._resume == "auto" and self.manager.latest() is None):
            self.session.resume(self._resume)
            state = self._initialised(state)
        else:
            reference = "latest" if self._resume == "auto" else self._resume
            checkpoint, state, own = read(self.manager, reference, lambda r: _everything(r, state))
            self.session.resumed(checkpoint, own)
            self.extras.update(own["extras"])
            self._asked_before = own["asked"]
            self._at.restore(own)
        self._state = state
        self.session.begin(self.global_step, self.epoch)
        return state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._state is _NEVER:
                return
            if error is None:
                self.session.finish(self.global_step, self.epoch, lambda: self._captured(self._here()))
            else:
                # Arrays never change: the state of the last step is whole, whatever has happened since.
                self.session.fail(error, self.global_step, self.epoch, self._capture_last)
        finally:
            self.session.close()
            # What ended the loop says more than the saves that have failed in it.
            with contextlib.suppress(*([SaveFailedError] if error is not None else [])):
                self._source.close()

    @property
    def resumption(self) -> Resumption:
        """How this run began: `kind` (`fresh`, `resumed`, ...), `step`, and the `checkpoint` if there was one."""
        return self.session.resumption

    @property
    def global_step(self) -> int:
        """Steps made so far, those of earlier runs included."""
        return self._at.step

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._at.epoch

    # -- the loop ---------------------------------------------------------------------------------

    def epochs(self, total: int) -> Iterator[int]:
        """Numbers of the epochs that are left of `total`, from 0. A safe point lies between two of them.

        In an epoch that is resumed in its midst, `batches` goes on where it was; what the loop's own
        variables held is gone, unless it is in the state or in `extras`.
        """
        if self._complete("epochs", total):
            return
        while self.epoch < total:
            if self._at.between:
                self._at.restore_rng()
                self.session.epoch_begin(self.global_step, self.epoch)
                self._at.between = False
            yield self.epoch
            self._at.end_epoch()
            self._moment = None
            self.session.epoch_end(self.global_step, self.epoch - 1)
            self._safe_point(self._here(), finished=self.epoch == total)

    def steps(self, total: int) -> Iterator[int]:
        """Numbers of the steps that are left of `total`, from 0, for loops without epochs.

        Each turn is one step: call `step` in it. Take batches by `next(ckpt.data)`. A safe point lies
        between two of them.
        """
        if self._complete("steps", total):
            return
        self._at.between = False
        for feed in self._at.feeds.values():
            feed.seek()
        self._at.restore_rng()
        self._depth += 1
        try:
            while self.global_step < total:
                self._moment = self._here()
                self._safe_point(self._moment)
                step = self.global_step
                yield step
                if self.global_step == step:
                    raise UsageError("a turn of steps() has ended without ckpt.step(state)", kind="order")
            self._safe_point(self._here(), finished=True)
        finally:
            self._depth -= 1

    def batches(self, name: str | None = None) -> Iterator[Any]:
        """The batches that are left of this epoch, of the only data or of that with this name.

        Where `step` is called for each, a safe point lies between two of them. A pass without steps, as for
        an evaluation, is made anew from its beginning by a loop that is resumed.
        """
        self._check_restored()
        feed = self._at.find(name)
        if self._at.skips(feed):
            return
        if self._depth == 0 and self._moment is None:
            self._moment = self._here()
        self._at.between = False
        feed.seek()
        self._at.restore_rng()
        self._depth += 1
        try:
            yield from self._pass(iter(feed), outermost=self._depth == 1)
        finally:
            self._depth -= 1
            feed.closed = True
        if (
            self._depth == 0 and self._moment is None
        ):  # what follows in this epoch, as an evaluation, is made again by who resumes
            self._moment = self._here()

    def _pass(self, feed: Feed, *, outermost: bool) -> Iterator[Any]:
        began = before = self.global_step
        try:
            while True:
                moment = self._here() if outermost else {}
                stepped, before = outermost and self.global_step > before, self.global_step
                if outermost and before > began:
                    self._moment = moment
                if stepped and self.session.preempted is not None:  # no time for another fetch
                    self._safe_point(moment)
                try:
                    batch = next(feed)
                except StopIteration:
                    break
                if stepped:
                    self._safe_point(moment)
                yield batch
        finally:  # also when an exception ends the loop: then this is where it was
            if outermost and self._moment is None:
                self._moment = self._here()
            if self.global_step > began:
                self._at.over[feed.name] += 1
        if self.global_step > began:
            self._moment = None

    def step(self, state: Any, **metrics: Any) -> None:
        """One step is done, at the end of an iteration: `state` is what it has led to.

        Counts the step, records its metrics, and saves when the iteration is over, if it is time. Until
        then `state` must not be given to a function that reuses its memory (`donate_argnums`). Metrics that
        are arrays are waited for.
        """
        self._check_restored()
        before, self._state = self._state, state
        self._at.step += 1
        self._moment = None
        self._told_rate = metrics.get("learning_rate")
        self.session.step_end(self.global_step, self.epoch, metrics)
        if self._donates is None or self.session.due:
            self._donates = donated(before, state)
        if not self._depth:
            self._safe_point(self._here())

    def evaluated(self, **metrics: Any) -> None:
        """The state as it is now was evaluated: these metrics are what `best` goes by."""
        self.session.evaluate_end(self.global_step, self.epoch, metrics)

    def update(self, state: Any) -> None:
        """The state has changed without a step: an average was taken, statistics were collected anew."""
        self._check_restored()
        self._state = state

    def save(self, reason: str = "asked for") -> None:
        """Ask for a save, made at the next safe point."""
        self.session.request(reason)

    @property
    def data(self) -> Feed:
        """The only data, as an iterator: for `next(ckpt.data)` in a loop over `steps`."""
        return self._at.find(None)

    # -- saving -----------------------------------------------------------------------------------

    def _here(self) -> dict[str, Any]:
        return {"extras": dict(self.extras), **self._at.here()}

    def _safe_point(self, moment: Mapping[str, Any], *, finished: bool = False) -> None:
        if self.session.due:
            self.session.safe_point(
                self.global_step, self.epoch, partial(self._captured, moment), finished=finished
            )

    def _learning_rate(self) -> float | None:
        """As the loop tells it among its metrics, or else as optax's `inject_hyperparams` has it in the state."""
        rate = injected_rate(self._state) if self._told_rate is None else self._told_rate
        return None if rate is None else float(rate)

    def _capture_last(self) -> dict[str, Any]:
        """The end of the last step: before the batch was fetched that is being worked on, if one is."""
        return self._captured(self._moment or self._here())

    def _captured(self, moment: Mapping[str, Any]) -> dict[str, Any]:
        weak: list[str] = []
        arrays: list[jax.Array] = []

        def note(path: str | None, leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or is_key(leaf) or leaf.is_deleted():
                return leaf
            if leaf.weak_type:
                weak.append(path or "")
            arrays.append(leaf)
            # A view costs nothing and keeps what is saved as it is. But a loop that has the memory reused would
            # find none to reuse and take new one, which costs several times as much as a copy.
            return Held(leaf) if self._donates is False else leaf

        state = as_state(self._state, note, "state")
        prefetch(arrays)
        asked = self._asked_before | self._asked
        return {"state": state, "weak": weak, "asked": asked, **moment}

    def _initialised(self, state: T) -> T:
        """The state that a training starts with that has nothing to resume."""
        reference, part, strict, renames = self._init
        if reference is None:
            return state
        part = part_of(state) if part is None else part
        return with_weights(state, part, self.manager, reference, strict=strict, renames=renames)

    def _complete(self, what: str, total: int) -> bool:
        self._check_restored()
        self._asked[what] = total
        # Stopped early is complete, too, until more is asked for than then.
        complete = self.resumption.kind == "complete" and total <= self._asked_before.get(what, 0)
        if complete:
            self.session.nothing_to_do()
        return complete

    def _check_restored(self) -> None:
        if self._state is _NEVER:
            raise UsageError(
                "first say what is trained: `state = ckpt.restore(state)` before the loop, inside the with "
                "block; else a run that resumes would go on with a state that was never restored",
                kind="order",
            )


def _everything(reading: Reading, like: Any) -> tuple[Any, Any, dict[str, Any]]:
    own = reading.plain(_OWN)
    if "loop" not in own:
        raise UsageError(
            f"checkpoint {reading.checkpoint.id} was not saved by a JaxCheckpointer: take its arrays with "
            "ckpt_jax.load(manager, ref, like=..., path=...) and begin with resume=None",
            kind="reference",
        )
    return reading.checkpoint, reading.pytree("state", like, own["weak"]), own
