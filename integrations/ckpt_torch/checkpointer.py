"""Checkpoints for a training loop that one has written oneself, in four or five lines.

`TorchCheckpointer` knows the loop's safe points and counts its steps and epochs. What it shares with other
adapters is `ckpt_core.session`'s; how objects and data become state is `objects.py`'s and `loader.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from signal import Signals
from types import TracebackType
from typing import Any, Self

from ckpt_core import BaseHook, CheckpointManager, Session, UsageError
from ckpt_core.policies import AnyOf, RetentionPolicy, SavePolicy, SavePolicyHook, save_policy_from
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_torch import objects as parts
from ckpt_torch.loader import ResumeData, TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng

__all__ = ["TorchCheckpointer"]

_log = logging.getLogger("ckpt_core.torch")

_RESERVED = frozenset({"data", "gradients", "loop", "rng", "session", "state"})


class TorchCheckpointer:
    """Saves a training loop while it runs and goes on exactly where an earlier run of it was stopped.

        with TorchCheckpointer("checkpoints", experiment="digits", model=model, optimizer=optimizer,
                               loader=loader, every_n_steps=50) as ckpt:
            for epoch in ckpt.epochs(10):
                for batch in ckpt.batches():
                    ...
                    ckpt.step(loss=loss.item())

    `model=`, `optimizer=`, `scheduler=`, `scaler=` and any other name: what has `state_dict` and
    `load_state_dict`, or a list or dict of such; the name is its path in the checkpoint. `loader`: the
    training data, one DataLoader or a dict of them. `state`: a dict of plain values that the loop changes
    (the best loss, an early-stopping count), restored in place.

    `root`, `experiment`, `catalog`, `metric`, `mode`, `save_policy`, `retention`, `hooks`, `max_pending`,
    `on_busy` are those of `CheckpointManager`; or give a `manager` that is there. `every_n_steps`,
    `every_n_epochs` and `every_minutes` say when to save; whatever they say, the end is saved.
    `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference.
    `resume_data`: how to go back to a position in the data, `"auto"`, `"skip"` or `"replay"`.
    `signals` are those after which it saves and then lets the earlier handler go on.
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
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        catalog: str | None = None,
        metric: str | None = None,
        mode: Any = None,
        max_pending: int | None = None,
        on_busy: Any = None,
        **objects: Any,
    ) -> None:
        taken = _RESERVED & objects.keys()
        if taken:
            raise UsageError(
                f"{', '.join(sorted(taken))}: the checkpointer keeps that name itself; choose another"
            )
        parts.check(objects)
        self._objects = objects
        self.state = {} if state is None else state
        self._loaders = _tracked(loader, resume_data)
        options: dict[str, Any] = {
            "catalog": catalog, "metric": metric, "mode": mode, "max_pending": max_pending, "on_busy": on_busy,
            "retention": tuple(retention), "hooks": tuple(hooks),
        }  # fmt: skip
        self._owned, self.manager = _manager(root, experiment, manager, options)
        policy = save_policy_from(every_n_steps, every_n_epochs, every_minutes)
        self.manager.hooks.register_hook(
            SavePolicyHook(AnyOf(save_policy, policy) if save_policy else policy)
        )
        self._resume = resume
        self.session = Session(self.manager, signals=signals)
        self._gradients = parts.Gradients(objects)
        self.global_step = 0
        self.epoch = 0
        self._asked: dict[str, int] = {}
        self._asked_before: dict[str, int] = {}
        self._rng: Mapping[str, Any] | None = None
        self._resumed_gradients: Mapping[str, Any] | None = None
        self._between = True
        self._iteration_done = False
        self._walking = 0

    # -- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            resumption = self.session.resume(self._resume)
            if resumption.state is not None:
                self._restore(resumption.state)
            self.session.begin(self.global_step, self.epoch)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.session.finish(self.global_step, self.epoch, self._capture)
            else:
                self.session.fail(error, self.global_step, self.epoch)
        finally:
            self._close()

    @property
    def resumption(self) -> Resumption:
        """How this run began: `kind` (`fresh`, `resumed`, ...), `step`, and the `checkpoint` if there was one."""
        return self.session.resumption

    # -- the loop ---------------------------------------------------------------------------------

    def epochs(self, total: int) -> Iterator[int]:
        """Numbers of the epochs that are left of `total`, from 0. A safe point lies between two of them.

        In an epoch that is resumed in its midst, `batches` goes on where it was; what the loop's own
        variables held is gone, unless it is in `state`.
        """
        self._asked["epochs"] = total
        if self._complete("epochs", total):
            return
        while self.epoch < total:
            if self._between:
                self._restore_rng()
                self.session.epoch_begin(self.global_step, self.epoch)
                self._between = False
            yield self.epoch
            self._end_epoch()

    def steps(self, total: int) -> Iterator[int]:
        """Numbers of the steps that are left of `total`, from 0, for loops without a data loader.

        Each turn is one step; call `step` in it to report metrics. A safe point lies between two of them.
        """
        self._asked["steps"] = total
        if self._complete("steps", total):
            return
        self._walking += 1
        try:
            while self.global_step < total:
                self._restore_rng()
                self._safe_point()
                step = self.global_step
                self._begin_iteration()
                yield step
                if self.global_step == step:
                    self.step()
            self._safe_point(finished=True)
        finally:
            self._walking -= 1

    def batches(self, loader: Any = None) -> Iterator[Any]:
        """The batches that are left of this epoch, of the only loader or of the one that is named.

        A loader is named by itself or by its name in the dict of loaders. A safe point lies between two
        batches, when `step` was called for the first of them.
        """
        tracked = self._find(loader)
        self._between = False
        self._restore_rng()
        iterator = iter(tracked)
        self._walking += 1
        try:
            while True:
                moment = self._moment()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except Exception:
                    self._save(moment)  # the state is as good as before the fetch
                    raise
                self._save(moment)
                self._begin_iteration()
                yield batch
        finally:
            self._walking -= 1

    def step(self, **metrics: Any) -> None:
        """One step is done, at the end of an iteration: counts it, records its metrics, saves if it is time.

        With accumulated gradients call it once for each step of the optimizer. The save itself is made
        when the iteration is over.
        """
        self.global_step += 1
        self._iteration_done = True
        self.session.step_end(self.global_step, self.epoch, _numbers(metrics))
        if not self._walking:
            self._safe_point()

    def evaluated(self, **metrics: Any) -> None:
        """The weights as they are now were evaluated: these metrics are what `best` goes by."""
        self.session.evaluate_end(self.global_step, self.epoch, _numbers(metrics))

    def save(self, reason: str = "asked for") -> None:
        """Ask for a save, made at the next safe point."""
        self.session.request(reason)

    # -- safe points ------------------------------------------------------------------------------

    def _moment(self) -> dict[str, Any] | None:
        """What a fetch of data would change, if there is a save to be made; before it is made."""
        if not (self._iteration_done and self.session.due):
            return None
        moment = {"rng": capture_rng(), "data": self._positions()}
        if self.session.preempted is not None:  # no time for a fetch, for which workers may be gone
            self._save(moment)
            return None
        return moment

    def _save(self, moment: Mapping[str, Any] | None) -> None:
        if moment is not None:
            self.session.safe_point(self.global_step, self.epoch, lambda: self._capture(moment))

    def _safe_point(self, *, finished: bool = False) -> None:
        if self.session.due:
            self.session.safe_point(self.global_step, self.epoch, self._capture, finished=finished)

    def _begin_iteration(self) -> None:
        if self._iteration_done:
            self._gradients.begin_iteration()
        self._iteration_done = False

    def _end_epoch(self) -> None:
        self.epoch += 1
        self._between = True
        self.session.epoch_end(self.global_step, self.epoch - 1)
        self._safe_point(finished=self.epoch == self._asked["epochs"])

    # -- state ------------------------------------------------------------------------------------

    def _capture(self, moment: Mapping[str, Any] | None = None) -> dict[str, Any]:
        moment = moment if moment is not None else {"rng": capture_rng(), "data": self._positions()}
        return {
            **{name: parts.capture(value) for name, value in self._objects.items()},
            "gradients": self._gradients.capture(),
            "state": dict(self.state),
            "loop": {
                "step": self.global_step, "epoch": self.epoch, "between": self._between,
                "asked": self._asked_before | self._asked,
            },
            **moment,
        }  # fmt: skip

    def _positions(self) -> dict[str, Any]:
        return {name: each.position(between=self._between) for name, each in self._loaders.items()}

    def _restore(self, state: dict[str, Any]) -> None:
        loop = state["loop"]
        for name, value in self._objects.items():
            if name not in state:
                _log.warning("%s is not in the checkpoint: it starts as it is", name)
                continue
            parts.restore(name, value, state[name])
        left = state.keys() - self._objects.keys() - _RESERVED
        if left:
            _log.warning("in the checkpoint, but not given to the checkpointer: %s", ", ".join(sorted(left)))
        self.state.update(state["state"])
        self.global_step, self.epoch, self._between = loop["step"], loop["epoch"], loop["between"]
        self._asked_before = loop["asked"]
        self._gradients.restore(state["gradients"])
        for name, tracked in self._loaders.items():
            if name in state["data"]:
                tracked.resume(state["data"][name])
        self._rng = state["rng"]

    def _restore_rng(self) -> None:
        """At the first batch, or at the first epoch: what was drawn while everything was set up is undone."""
        if self._rng is not None:
            for tracked in self._loaders.values():
                tracked.go()
            for missing in restore_rng(self._rng):
                _log.warning("%s is in the checkpoint, but cannot be restored here", missing)
            self._rng = None

    def _complete(self, what: str, total: int) -> bool:
        # Stopped early is complete, too, until more is asked for than then.
        complete = self.resumption.kind == "complete" and total <= self._asked_before.get(what, 0)
        if complete:
            self._restore_rng()
            self.session.nothing_to_do()
        return complete

    def _find(self, loader: Any) -> TrackedLoader:
        for name, tracked in self._loaders.items():
            if loader is tracked.loader or loader == name or (loader is None and len(self._loaders) == 1):
                return tracked
        known = ", ".join(self._loaders) or "there are none"
        raise UsageError(
            f"which loader? give the checkpointer loader=..., or name one of those it has ({known})",
            kind="loader",
        )

    def _close(self) -> None:
        self._gradients.close()
        self.session.close()
        if self._owned:
            self.manager.close()


def _manager(
    root: Any, experiment: str | None, manager: CheckpointManager | None, options: Mapping[str, Any]
) -> tuple[bool, CheckpointManager]:
    """Whether the manager is our own, and the manager."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if manager is not None:
        if root is not None or experiment is not None or given:
            extra = ["root"] * (root is not None) + ["experiment"] * (experiment is not None) + list(given)
            raise UsageError(
                f"with manager=, these are the manager's to say: {', '.join(extra)}", kind="manager"
            )
        return False, manager
    if root is None or experiment is None:
        raise UsageError('say where to save: TorchCheckpointer("checkpoints", experiment="...")', kind="root")
    return True, CheckpointManager(root, experiment=experiment, **given)


def _tracked(loader: Any, resume_data: ResumeData) -> dict[str, TrackedLoader]:
    if loader is None:
        return {}
    named = dict(loader) if isinstance(loader, Mapping) else {"train": loader}
    return {name: TrackedLoader(each, name=name, resume_data=resume_data) for name, each in named.items()}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of one value as numbers; what is none is left for the manager to refuse."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
