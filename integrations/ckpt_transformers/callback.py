"""The callback: what its users say, and Trainer's events told to the session.

What follows from them is `participant.py`'s; how a state is captured and put back is `watch.py`'s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from signal import Signals
from types import FrameType
from typing import TYPE_CHECKING, Any, Unpack

from ckpt_core import BaseHook, Checkpoint, CheckpointManager, MissingExtraError, UsageError
from ckpt_core.fitting import Renames, WeightsReport
from ckpt_core.opening import ManagerOptions
from ckpt_core.policies import RetentionPolicy, SavePolicy
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_torch.lazy import Staging, checked_staging
from ckpt_torch.loader import ResumeData
from ckpt_transformers import dialect
from ckpt_transformers.folder import materialize
from ckpt_transformers.ingestion import ingest
from ckpt_transformers.participant import Participant
from ckpt_transformers.training import Training
from ckpt_transformers.watch import LoopWatch
from ckpt_transformers.weights import load_weights, whole_model

if TYPE_CHECKING:

    class TrainerCallback: ...
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError(
            "transformers is not installed: pip install 'ckpt-core[transformers]'", extra="transformers"
        ) from error

__all__ = ["CheckpointCallback"]


class CheckpointCallback(TrainerCallback):
    """Saves what a Trainer trains, and goes on exactly where an earlier run of it was stopped.

        trainer = Trainer(..., callbacks=[CheckpointCallback("checkpoints", experiment="minilm")])
        trainer.train()

    `root`, `experiment`, `retention`, `hooks` and the `options` (`max_pending`, `on_busy`, `staged_bytes` and so
    on) are those of `CheckpointManager`; or give a `manager` that is there. When to save, what is best and how
    many to keep is read from TrainingArguments: `save_strategy`, `save_steps`, `save_total_limit`, `save_only_model`,
    `metric_for_best_model`, `greater_is_better`, `load_best_model_at_end`; what is given here goes before it.
    `every_n_steps`, `every_n_epochs`, `every_minutes`, `save_policy` stand in the place of `save_strategy`.
    `metric` and `mode` are the engine's words for the best.

    `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference; what is given to
    `trainer.train(resume_from_checkpoint=...)` goes before it, a reference or a folder of Trainer's.
    `resume_data`: how to go back to a position in the data, `"auto"`, `"skip"` or `"replay"`.
    `init_from`: a reference whose weights a training starts with that has nothing to resume, with `strict` and
    `renames` as in `load_weights`. With `ingest`, Trainer goes on to save its folders, and each is read into
    the store. `signals` are those after which it saves and lets the earlier handler go on. `staging="lazy"`:
    parameters and what optimizers keep are copied while forward and backward run, and the next step of an optimizer
    waits for it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Any = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        save_strategy: str | None = None,
        save_steps: float | None = None,
        save_total_limit: int | None = None,
        save_only_model: bool | None = None,
        metric_for_best_model: str | None = None,
        greater_is_better: bool | None = None,
        load_best_model_at_end: bool | None = None,
        metric: str | None = None,
        mode: str | None = None,
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
        ingest: bool = False,
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        staging: Staging = "copy",
        **options: Unpack[ManagerOptions],
    ) -> None:
        greater = None if mode is None else mode == "max"
        said = {
            "save_strategy": save_strategy if save_strategy is not None or save_steps is None else "steps",
            "save_steps": save_steps, "save_total_limit": save_total_limit, "save_only_model": save_only_model,
            "metric_for_best_model": dialect.one_of(metric_for_best_model=metric_for_best_model, metric=metric),
            "greater_is_better": dialect.one_of(greater_is_better=greater_is_better, mode=greater),
            "load_best_model_at_end": load_best_model_at_end,
        }  # fmt: skip
        policy = dialect.policy_of(save_policy, every_n_steps, every_n_epochs, every_minutes)
        if ingest and policy is not None:
            raise UsageError(
                "with ingest=True it is Trainer that saves, and its arguments say when", kind="ingest"
            )
        of_manager: dict[str, Any] = {
            "metric": metric, "mode": mode, "retention": tuple(retention), "hooks": tuple(hooks), **options,
        }  # fmt: skip
        self.participant = Participant(
            where=(root, experiment, manager), options=of_manager, said=dialect.completed(said), policy=policy,
            resume=resume, resume_data=resume_data, init=(init_from, strict, renames), ingests=ingest,
            signals=tuple(signals), staging=checked_staging(staging),
        )  # fmt: skip

    # -- what users look at -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        return self.participant.manager

    @property
    def resumption(self) -> Resumption | None:
        """How the present or last training began: `kind`, `step`, `checkpoint`; None before there was one."""
        session = self.participant.session
        return session.resumption if session is not None else None

    def load(
        self, ref: str = "best", *, strict: bool = True, renames: Renames | None = None
    ) -> WeightsReport:
        """The weights of a checkpoint into the trainer's model, to evaluate or predict with: `load_weights`."""
        trainer = self.participant.trainer
        if trainer is None:
            raise UsageError(
                "no Trainer has this callback yet: make it first, or use load_weights", kind="detached"
            )
        return load_weights(whole_model(trainer), self.manager, ref, strict=strict, renames=renames)

    def materialize(self, ref: str, folder: str | os.PathLike[str]) -> Path:
        """A checkpoint as a folder of Trainer's. See `ckpt_transformers.materialize`."""
        trainer = self.participant.trainer
        model = whole_model(trainer) if trainer is not None else None
        return materialize(self.manager, ref, folder, model=model)

    def ingest(self, folder: str | os.PathLike[str]) -> Checkpoint:
        """A folder of Trainer's as a checkpoint. See `ckpt_transformers.ingest`."""
        return ingest(self.manager, folder)

    def attach(self, trainer: Any) -> None:
        """For a callback that a Trainer is given after it was made, by `trainer.add_callback(callback)`."""
        self.participant.attach(trainer)
        Training.of(trainer).add(self, self.participant)

    # -- Trainer's events -------------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer is made: it is found by who calls."""
        trainer = _trainer_that_calls(self)
        if trainer is not None:
            self.attach(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """By now others have their signal handlers, which ours let go on."""
        training = self._training
        if training is None:
            raise UsageError(
                "the callback was added when the Trainer was made already: give it to Trainer(callbacks=[...]), or "
                "call callback.attach(trainer) before trainer.train()",
                kind="detached",
            )
        training.train_begins(self.participant)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """EPOCH_BEGIN."""
        watch, session = self._watch, self.participant.session
        if watch is not None and session is not None and not watch.in_the_midst:
            session.epoch_begin(state.global_step, watch.epoch)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here to the next safe point the state is neither the old nor the new one."""
        if self._watch is not None:
            self._watch.stepping()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """STEP_END."""
        watch, session = self._watch, self.participant.session
        if watch is not None and session is not None:
            session.step_end(state.global_step, watch.epoch, loss=watch.loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Metrics of this step; those of an evaluation come with its own event."""
        session = self.participant.session
        if self._watch is not None and session is not None:
            found = {name: value for name, value in _numbers(logs).items() if not name.startswith("eval_")}
            session.log(found, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """EVALUATE_END."""
        watch, session = self._watch, self.participant.session
        if watch is not None and session is not None:
            session.evaluate_end(state.global_step, watch.epoch, _numbers(metrics))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """EPOCH_END."""
        watch, session = self._watch, self.participant.session
        if watch is not None and session is not None:
            session.epoch_end(state.global_step, watch.epoch)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With `ingest`: Trainer has written a folder."""
        if self.participant.ingests and self._watch is not None:
            step = state.global_step
            self.participant.ask_to_ingest(step, os.path.join(args.output_dir, f"checkpoint-{step}"))

    @property
    def _training(self) -> Training | None:
        trainer = self.participant.trainer
        return Training.of(trainer) if trainer is not None else None

    @property
    def _watch(self) -> LoopWatch | None:
        """The watch, in a training that is ours."""
        return self._training.watch if self._training is not None else None


def _trainer_that_calls(callback: Any) -> Any:
    """Trainer gives its callbacks everything but itself: it is the one in whose method we were called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        handler = getattr(caller, "callback_handler", None)
        if callback in getattr(handler, "callbacks", ()):
            return caller
        frame = frame.f_back
    return None


def _numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in (logs or {}).items():
        if name != "epoch" and not isinstance(value, (str, bool)):
            try:
                found[name] = float(value)
            except (TypeError, ValueError):
                continue
    return found
