"""The behaviour of the Lightning callback, without its base class: events, safe points, resume, the end.

`__init__.py` joins it to the `Checkpoint` class of the package in use. The loop's private parts are
`loops.py`'s, what Lightning leaves out of its checkpoints `results.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from signal import Signals
from typing import Any

from ckpt_core import BaseHook, CheckpointManager, Session, UsageError
from ckpt_core.policies import RetentionPolicy, SavePolicy, SavePolicyHook
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_lightning import results
from ckpt_lightning.dialect import retention_of, save_policy_of
from ckpt_lightning.io import ReferenceReader, as_reference
from ckpt_lightning.loops import LoopWatch
from ckpt_lightning.parameters import Parameters
from ckpt_torch.loader import ResumeData
from ckpt_torch.objects import Gradients, mend_dtypes
from ckpt_torch.rng import capture_rng, restore_rng

__all__ = ["CallbackBehaviour"]

_log = logging.getLogger("ckpt_core.lightning")


class CallbackBehaviour:
    """Saves a Lightning run while it trains and goes on exactly where an earlier run of it was stopped.

        trainer = Trainer(callbacks=[CheckpointCallback("checkpoints", experiment="digits")])

    `root`, `experiment`, `catalog`, `metric`, `mode`, `retention`, `hooks`, `max_pending`, `on_busy` are
    those of `CheckpointManager`; or give a `manager` that is there. `monitor` is Lightning's word for
    `metric`. When to save: `every_n_train_steps` (or `every_n_steps`), `every_n_epochs`,
    `train_time_interval` (or `every_minutes`), `save_policy`; with none of them, after every epoch and
    whenever `monitor` improves. What to keep: `save_top_k`, `save_last`, `retention`; with none, everything.
    `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference; what is given
    to `trainer.fit(ckpt_path=...)` goes before it. `resume_data`: how to go back to a position in the data,
    `"auto"`, `"skip"` or `"replay"`. `signals` are those after which it saves and lets the earlier handler
    go on.
    """

    state_key: str

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        monitor: str | None = None,
        metric: str | None = None,
        mode: str | None = None,
        save_top_k: int | None = None,
        save_last: bool | str | None = None,
        every_n_train_steps: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        every_minutes: float | None = None,
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        resume: str | None = "auto",
        resume_data: ResumeData = "auto",
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        catalog: str | None = None,
        max_pending: int = 1,
        on_busy: Any = "wait",
    ) -> None:
        super().__init__()
        if monitor is not None and metric is not None and monitor != metric:
            raise UsageError(
                f"monitor={monitor!r} and metric={metric!r} are the same thing: give one of them"
            )
        monitor = metric if monitor is None else monitor
        self.policy = save_policy_of(
            monitor=monitor, mode=mode or "min", save_policy=save_policy, every_n_steps=every_n_steps,
            every_n_train_steps=every_n_train_steps, every_n_epochs=every_n_epochs,
            every_minutes=every_minutes, train_time_interval=train_time_interval,
        )  # fmt: skip
        if manager is not None:
            if root is not None or experiment is not None or save_top_k is not None or retention or hooks:
                raise UsageError(
                    "with manager=, root, experiment, retention, save_top_k and hooks are the manager's to say",
                    kind="manager",
                )
        elif root is None or experiment is None:
            raise UsageError(
                'say where to save: CheckpointCallback("checkpoints", experiment="...")', kind="root"
            )
        kept = retention_of(monitor=monitor, save_top_k=save_top_k, save_last=save_last, retention=retention)
        self._options: dict[str, Any] = {
            "experiment": experiment, "metric": monitor, "mode": mode or "min", "retention": kept,
            "hooks": tuple(hooks), "catalog": catalog, "max_pending": max_pending, "on_busy": on_busy,
        }  # fmt: skip
        self._root = root
        self._given = manager
        self._manager = manager
        self._resume = resume
        self._resume_data: ResumeData = resume_data
        self._signal_numbers = tuple(signals)
        self.session: Session | None = None
        self._watch: LoopWatch | None = None
        self._gradients: Gradients | None = None
        self._reader: Any = None
        self._capturing: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._optimizer_states: list[Any] = []
        self._last_step = 0
        self._parameters = Parameters()

    # -- what users look at -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        if self._manager is None:
            assert self._root is not None
            self._manager = CheckpointManager(self._root, **self._options)
        return self._manager

    @property
    def resumption(self) -> Resumption | None:
        """How the present or last fit began: `kind`, `step`, `checkpoint`; None before there was one."""
        return self.session.resumption if self.session is not None else None

    @property
    def best_model_path(self) -> str:
        """What `ckpt_path="best"` means: a reference; empty where no checkpoint carries the metric."""
        best = self.manager.best() if self.manager.metric is not None else None
        return f"{best.experiment}@{best.id}" if best is not None else ""

    # -- Lightning's hooks: beginning -------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts a CheckpointIO that understands references before the trainer's; in fit, watches the loop."""
        if trainer.fast_dev_run:
            return
        if trainer.world_size > 1:
            raise UsageError(
                f"the training runs in {trainer.world_size} processes, and this callback saves from one: "
                "use devices=1 for now",
                kind="processes",
            )
        strategy = trainer.strategy
        if not isinstance(strategy.checkpoint_io, ReferenceReader):
            from ckpt_lightning import io_class_for

            strategy.checkpoint_io = io_class_for(type(strategy.checkpoint_io))(
                lambda: self.manager, strategy.checkpoint_io
            )
        self._reader = strategy.checkpoint_io
        if stage == "fit":
            self._set_up_fit(trainer)

    def _set_up_fit(self, trainer: Any) -> None:
        self.session = Session(self.manager, signals=self._signal_numbers)
        self._loaded = None
        self._last_step = 0
        self._watch = LoopWatch(
            trainer,
            resume_data=self._resume_data,
            safe_point=lambda boundary: self._safe_point(trainer, boundary),
            restore=lambda: self._restore(trainer),
        )
        self._watch.install()
        connector = trainer._checkpoint_connector
        original = connector._restore_modules_and_callbacks

        def restore(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> Any:
            vars(connector).pop("_restore_modules_and_callbacks", None)
            return original(self._choose(checkpoint_path), *args, **kwargs)

        # Lightning has decided on ckpt_path before it calls any callback: this is where it begins to load.
        connector._restore_modules_and_callbacks = restore

    def _choose(self, path: Any) -> Any:
        """What is loaded: what the user told `fit`, or else what `resume` says."""
        assert self.session is not None
        reference = as_reference(path) if path else self._resume
        if path and reference is None:
            self.session.resume(None)  # somebody else's file: nothing here is continued
            return path
        resumption = self.session.resume(reference)
        if resumption.state is None or resumption.checkpoint is None:
            return None
        name = f"{resumption.checkpoint.experiment}@{resumption.checkpoint.id}"
        self._reader.ready[name] = resumption.state
        return name

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """The loop goes to where the checkpoint was made."""
        mine = checkpoint.get("callbacks", {}).get(self.state_key)
        if self._watch is not None and mine:
            self._watch.resume(mine["loop"], checkpoint["loops"]["fit_loop"])
            self._optimizer_states = checkpoint.get("optimizer_states", [])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the loop is where it was."""
        self._loaded = state_dict

    def state_dict(self) -> dict[str, Any]:
        """What Lightning leaves out; only in a checkpoint of our own, made at a safe point."""
        return self._capturing or {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing is trained that was complete, unless there is more to do now."""
        if self.session is None or self.session.resumption.kind != "complete" or self._loaded is None:
            return
        asked = self._loaded["asked"]
        if _no_more(trainer.max_epochs, asked["max_epochs"]) and _no_more(
            trainer.max_steps, asked["max_steps"]
        ):
            self.session.nothing_to_do()
            trainer.should_stop = True  # it may have been stopped early, before its limits
            results.restore_module(pl_module, self._loaded["module"])
            restore_rng(self._loaded["rng"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """By now Lightning has its own signal handlers, which ours let go on."""
        if self.session is None:
            return
        policies = [hook for hook in self.manager.hooks.hooks() if isinstance(hook, SavePolicyHook)]
        if not any(hook.policy is self.policy for hook in policies):
            self.manager.hooks.register_hook(SavePolicyHook(self.policy))
        for optimizer, state in zip(trainer.optimizers, self._optimizer_states, strict=False):
            mend_dtypes(optimizer, state)
        self._optimizer_states = []
        self._gradients = Gradients({"module": pl_module, "optimizers": list(trainer.optimizers)})
        self._last_step = trainer.global_step
        self.session.begin(trainer.global_step, trainer.current_epoch)

    # -- Lightning's hooks: events ----------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """EPOCH_BEGIN."""
        if self.session is not None:
            self.session.epoch_begin(trainer.global_step, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """An iteration begins."""
        if self._gradients is not None:
            self._gradients.begin_iteration()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """STEP_END, if an optimizer made a step."""
        if self.session is None or trainer.global_step == self._last_step:
            return
        self._last_step = step = trainer.global_step
        # To read a metric waits for the device; so as often as Lightning's own loggers, and no more.
        every = trainer.log_every_n_steps
        metrics = results.fresh(trainer) if every and step % every == 0 else {}
        self.session.step_end(step, trainer.current_epoch, metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """EVALUATE_END."""
        if self.session is None or trainer.sanity_checking or self._gradients is None:
            return
        self.session.evaluate_end(trainer.global_step, trainer.current_epoch, results.fresh(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """EPOCH_END."""
        if self.session is not None:
            self.session.epoch_end(trainer.global_step, trainer.current_epoch, results.fresh(trainer))

    # -- Lightning's hooks: the end ---------------------------------------------------------------

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last save; everything is durable when this returns."""
        if self.session is not None:
            self.session.finish(
                trainer.global_step, trainer.current_epoch, lambda: self._capture(trainer, "end")
            )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """No safe point: what is being written becomes durable, and no more is saved."""
        if self.session is not None and self._gradients is not None:
            self.session.fail(exception, trainer.global_step, trainer.current_epoch)
        self._let_go(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves trainer, signals and store as they were."""
        self._let_go(trainer)

    def _let_go(self, trainer: Any) -> None:
        vars(trainer._checkpoint_connector).pop("_restore_modules_and_callbacks", None)
        if self._watch is not None:
            self._watch.remove()
        if self._gradients is not None:
            self._gradients.close()
        if self.session is not None:
            self.session.close()
        self._watch = self._gradients = self._loaded = None
        if self._manager is not None:
            self._manager.wait()
            if self._given is None:
                self._manager.close()
                self._manager = None

    # -- safe points ------------------------------------------------------------------------------

    def _safe_point(self, trainer: Any, boundary: str) -> None:
        session = self.session
        if session is not None and session.due and self._gradients is not None:
            session.safe_point(
                trainer.global_step, trainer.current_epoch, lambda: self._capture(trainer, boundary)
            )

    def _capture(self, trainer: Any, boundary: str) -> dict[str, Any]:
        assert self._watch is not None and self._gradients is not None
        self._capturing = {
            "loop": self._watch.capture(boundary),
            "rng": capture_rng(),
            "logged": results.capture_logged(trainer),
            "module": results.capture_module(trainer.lightning_module),
            "gradients": self._gradients.capture(),
            "asked": {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps},
        }
        try:
            return self._parameters.storable(
                trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            )
        finally:
            self._capturing = None

    def _restore(self, trainer: Any) -> None:
        """At the boundary that was resumed: what Lightning's own restoring leaves out or disturbs."""
        state, self._loaded = self._loaded, None
        assert state is not None and self._gradients is not None
        results.restore_logged(trainer, state["logged"])
        results.restore_module(trainer.lightning_module, state["module"])
        self._gradients.restore(state["gradients"])
        for missing in restore_rng(state["rng"]):
            _log.warning("%s is in the checkpoint, but cannot be restored here", missing)


def _no_more(now: int | None, then: int | None) -> bool:
    """Whether a limit asks for no more than an earlier one did; None and -1 are no limit."""
    return then in (None, -1) or (now not in (None, -1) and now <= then)
