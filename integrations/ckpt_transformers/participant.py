"""What one callback has a training do: go on from where, save what, load the best, see to the end.

Its events are `callback.py`'s, the training `training.py`'s, and how a state is captured `watch.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from signal import Signals
from typing import Any, NamedTuple

from ckpt_core import CheckpointManager, NotFoundError, SaveFailedError, Session, UsageError
from ckpt_core.fitting import Renames
from ckpt_core.opening import ManagerSource
from ckpt_core.policies import SavePolicy, SavePolicyHook
from ckpt_torch.lazy import LazyParameters, Staging
from ckpt_torch.loader import ResumeData
from ckpt_torch.rates import learning_rate_of
from ckpt_transformers import dialect
from ckpt_transformers.folder import small_files
from ckpt_transformers.ingestion import read_folder
from ckpt_transformers.state import optimizers_of
from ckpt_transformers.watch import LoopWatch
from ckpt_transformers.weights import load_weights

__all__ = ["Beginning", "Participant"]

_log = logging.getLogger("ckpt_core.transformers")


class Beginning(NamedTuple):
    """What a participant would have the training go on from."""

    step: int = 0
    state: dict[str, Any] | None = None
    complete: bool = False


@dataclass
class Participant:
    """One callback's part in the trainings of its trainer.

    `where`: root, experiment, manager; with `options`, those of a manager to open. `said`: what the callback was
    told in the words of TrainingArguments. `policy`: when to save, if it is not for the arguments to say. `init`:
    the reference whose weights to start with, with `strict` and `renames`.
    """

    where: tuple[Any, str | None, CheckpointManager | None]
    options: Mapping[str, Any]
    said: Mapping[str, Any]
    policy: SavePolicy | None
    resume: str | None
    resume_data: ResumeData
    init: tuple[str | None, bool, Renames | None]
    ingests: bool
    signals: tuple[Signals, ...]
    staging: Staging
    trainer: Any = None
    session: Session | None = None

    def __post_init__(self) -> None:
        self._hook: SavePolicyHook | None = None
        self._files: dict[str, bytes] = {}
        self._folder: tuple[int, str] | None = None
        self._lazy: LazyParameters | None = None
        self._source = self._source_for(None)

    # -- what it is made of -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        return self._source.manager

    def attach(self, trainer: Any) -> None:
        """The trainer is known, and with it the arguments, by which a manager is opened."""
        self.trainer = trainer
        self._source.close()
        self._source = self._source_for(trainer.args)

    def _source_for(self, args: Any) -> ManagerSource:
        options, (root, experiment, manager) = self.options, self.where
        if manager is None:
            metric, mode = dialect.metric_of(args, self.said)
            limit = self.said.get("save_total_limit", getattr(args, "save_total_limit", None))
            kept = dialect.retention_of(None if self.ingests else limit, options["retention"])
            options = {**options, "metric": metric, "mode": mode, "retention": kept}
        elif "save_total_limit" in self.said:
            raise UsageError(
                "with manager=, these are the manager's to say: save_total_limit", kind="manager"
            )
        return ManagerSource(root, experiment, manager, call="CheckpointCallback", **options)

    @property
    def follows_arguments(self) -> bool:
        """Whether it is the arguments that say when to save."""
        given = self.where[2]
        return self.policy is None and (given is None or given.save_policy is None)

    def arguments(self, args: Any, *, own_policy: bool) -> Any:
        """The arguments as they hold while training."""
        return dialect.arguments_for(args, self.said, own_policy=own_policy, owns_saving=not self.ingests)

    # -- the beginning ----------------------------------------------------------------------------

    def begin(self, reference: str | None, folder: str | None) -> Beginning:
        """Decides what to go on from, loads it, and begins the session's attempt.

        `reference` and `folder` are what `train` was told, if it was: they go before `resume=`.
        """
        session = self.session = Session(self.manager, signals=self.signals)
        session.lazy = self._lazy = LazyParameters.chosen(self.staging, lambda: optimizers_of(self.trainer))
        session.learning_rate = lambda: learning_rate_of(optimizers_of(self.trainer))
        self._folder = None
        if folder is not None:
            session.resume(None)
            state = read_folder(folder)
            return Beginning(state["trainer"]["state"]["global_step"], state)
        reference = reference or self.resume
        if reference is None or (reference == "auto" and self.manager.latest() is None):
            session.resume(None)
            return Beginning()
        state = self.manager.load("latest" if reference == "auto" else reference)
        checkpoint = self.manager.loaded
        assert checkpoint is not None
        if reference == "auto" and "optimizer" not in state and not state["session"]["finished"]:
            _log.warning("the newest checkpoint holds the model only (save_only_model): training begins anew")
            session.resume(None)
            return Beginning()
        resumption = session.resumed(checkpoint, state)
        return Beginning(resumption.step, state, resumption.kind == "complete")

    def start(self, model: Any) -> None:
        """Training starts from nothing: with other weights than the program gave, if it was told so."""
        reference, strict, renames = self.init
        if reference is not None:
            load_weights(model, self.manager, reference, strict=strict, renames=renames)
            checkpoint = self.manager.loaded
            if checkpoint is not None and checkpoint.experiment != self.manager.experiment:
                self.manager.begin_attempt(checkpoint)  # which will tell where its weights came from

    def train_begins(self, watch: LoopWatch, args: Any) -> None:
        """Signals are noted from here on, and the save policy asked."""
        assert self.session is not None
        if self.policy is not None:
            lineage = self.manager.attempt.lineage
            saved = [each for each in self.manager.checkpoints() if each.attempt.lineage == lineage]
            self._hook = SavePolicyHook(self.policy, saved=saved)
            self.manager.hooks.register_hook(self._hook)
        self.session.begin(self.trainer.state.global_step, watch.epoch)
        if watch.nothing_to_do:
            self.session.nothing_to_do()
        else:  # now, as it takes longer than a save
            self._files = small_files(self.trainer, args)

    # -- saving -----------------------------------------------------------------------------------

    def ask(self, reason: str) -> None:
        """A save at the next safe point."""
        assert self.session is not None
        self.session.request(reason)

    def ask_to_ingest(self, step: int, folder: str) -> None:
        """Trainer has written a folder."""
        self._folder = (step, folder)
        self.ask(f"Trainer wrote {os.path.basename(folder)}")

    def safe_point(self, watch: LoopWatch) -> None:
        """A resume from this instant would be exact: the save that is due, if one is."""
        session = self.session
        assert session is not None
        session.safe_point(self.trainer.state.global_step, watch.epoch, lambda: self._capture(watch))

    def finish(self, watch: LoopWatch) -> None:
        """The last save. Returns when everything is durable; raises what prevented it."""
        session = self.session
        assert session is not None
        if not watch.nothing_to_do or session.resumption.kind == "complete":
            session.finish(self.trainer.state.global_step, watch.epoch, lambda: self._capture(watch))

    def fail(self, error: BaseException, watch: LoopWatch) -> None:
        """What is being written becomes durable; what was good before the failure is saved."""
        if self.session is not None:
            good = watch.is_good and not self.ingests
            capture = (lambda: self._capture(watch)) if good else None
            self.session.fail(error, self.trainer.state.global_step, watch.epoch, capture)

    def let_go(self, *, failed: bool) -> None:
        """Leaves signals and store as they were. Raises what `on_save_error` asks for, unless training `failed`."""
        if self.session is not None:
            self.session.close()
        if self._hook is not None:
            self.manager.hooks.unregister_hook(self._hook)
            self._hook = None
        try:
            self._source.close()
        except SaveFailedError:
            if not failed:
                raise
        finally:
            if self._lazy is not None:
                self._lazy.close()
            self._lazy = None

    def _capture(self, watch: LoopWatch) -> dict[str, Any]:
        if self._folder is not None and self._folder[0] == self.trainer.state.global_step:
            return {**read_folder(self._folder[1]), **watch.capture_place()}
        if self.trainer.args.save_only_model:
            return {
                **watch.capture_model(),
                "trainer": watch.capture_place()["trainer"],
                "files": self._files,
            }
        return {**watch.capture(), "files": self._files}

    # -- the best model ---------------------------------------------------------------------------

    def best_name(self, step: int) -> str:
        """The checkpoint of the best step, as a reference."""
        return f"{self.manager.experiment}@step={step}"

    def load_best(self, model: Any, step: int) -> bool:
        """Whether it was there to be loaded."""
        self.manager.wait()
        try:
            load_weights(model, self.manager, f"step={step}")
        except NotFoundError as error:
            _log.warning("the best model (step %d) cannot be loaded, the last one stays: %s", step, error)
            return False
        return True
