"""One call of `trainer.train` with the callbacks that are attached to the trainer: beginning, failure, end.

What is done in between Trainer calls itself: the loop is `watch.py`'s, events are `callback.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from ckpt_core import NotFoundError, UsageError
from ckpt_torch.loader import ResumeData
from ckpt_transformers.overrides import Overrides
from ckpt_transformers.participant import Participant
from ckpt_transformers.watch import LoopWatch

__all__ = ["Training", "whole_model"]

_log = logging.getLogger("ckpt_core.transformers")
_NAME = "_ckpt_training"


class Training:
    """Stands before the `train` of one trainer, as long as that lives."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._all: list[tuple[Any, Participant]] = []
        self._present: list[Participant] = []
        self._overrides = Overrides(trainer)
        self._overrides.put("train", self._train)
        self.watch: LoopWatch | None = None
        self.args: Any = None

    @classmethod
    def of(cls, trainer: Any) -> Training:
        """The one of this trainer."""
        if _NAME not in vars(trainer):
            setattr(trainer, _NAME, cls(trainer))
        return getattr(trainer, _NAME)  # type: ignore[no-any-return]

    def add(self, callback: Any, participant: Participant) -> None:
        """A callback that takes part in every training, while it is among the trainer's callbacks."""
        if all(each is not callback for each, _ in self._all):
            self._all.append((callback, participant))

    def train_begins(self, participant: Participant) -> None:
        """Trainer's event has come to the callback of this participant."""
        if self.watch is not None:
            participant.train_begins(self.watch, self.args)
            if participant is self._present[-1]:
                self.watch.begin()

    # -- what the watch is told by: it tells all ---------------------------------------------------

    @property
    def resume_data(self) -> ResumeData:
        return self._present[0].resume_data

    @property
    def owns_saving(self) -> bool:
        return not self._present[0].ingests

    def start(self, model: Any) -> None:
        """The first that has other weights gives them."""
        for each in self._present:
            each.start(model)

    def safe_point(self) -> None:
        """Each saves what it is asked to."""
        assert self.watch is not None
        for each in self._present:
            each.safe_point(self.watch)

    def finish(self) -> None:
        """Each saves what was trained, whatever prevents another one from doing so."""
        watch = self.watch
        assert watch is not None
        with ExitStack() as all_of_them:
            for each in reversed(self._present):
                all_of_them.callback(each.finish, watch)

    def ask(self, reason: str) -> None:
        """Where only some have policies of their own, this is for the others."""
        following = [each for each in self._present if each.follows_arguments]
        for each in following or self._present:
            each.ask(reason)

    def best_name(self, step: int) -> str:
        return self._present[0].best_name(step)

    def load_best(self, model: Any, step: int) -> bool:
        """The first that has it loads it."""
        return any(each.load_best(model, step) for each in self._present)

    # -- one training -----------------------------------------------------------------------------

    def _train(self, resume_from_checkpoint: Any = None, trial: Any = None, **others: Any) -> Any:
        original: Callable[..., Any] = self._overrides.original("train")
        trainer = self._trainer
        callbacks = trainer.callback_handler.callbacks
        present = [each for callback, each in self._all if callback in callbacks]
        if trial is not None and present:
            _log.warning("a trial of a search for hyperparameters: Trainer saves as it would by itself")
        if trial is not None or not present:
            return original(resume_from_checkpoint, trial, **others)
        _refuse_unknown(trainer, present)
        self._present, self.args = present, trainer.args
        watch = self.watch = LoopWatch(trainer, self)
        failed = True
        try:
            trainer.args = self._arguments()
            self._choose(watch, resume_from_checkpoint)
            watch.install()
            result = original(None, None, **others)
            failed = False
            return result
        except BaseException as error:
            for each in present:
                each.fail(error, watch)
            raise
        finally:
            watch.remove()
            trainer.args = self.args
            self.watch = None
            with ExitStack() as all_of_them:
                for each in reversed(present):
                    all_of_them.callback(each.let_go, failed=failed)

    def _arguments(self) -> Any:
        args = self.args
        own_policy = not any(each.follows_arguments for each in self._present)
        for each in self._present:
            args = each.arguments(args, own_policy=own_policy)
        if args.push_to_hub and self.owns_saving:
            _log.warning(
                "checkpoints are not pushed to the hub while training; trainer.push_to_hub() at the end is"
            )
        return args

    def _choose(self, watch: LoopWatch, given: Any) -> None:
        """What is gone on from: of what the callbacks have, that which is furthest."""
        folder = None
        if given is True:
            given = None if any(each.manager.latest() is None for each in self._present) else "latest"
            folder = None if given else self._last_folder()
        elif given and os.path.isdir(given):
            folder = os.fspath(given)
        begun = [each.begin(given or None, folder) for each in self._present]
        furthest = max(begun, key=lambda each: (each.state is not None, each.step))
        if furthest.state is None:
            return
        watch.resume(furthest.state, complete=furthest.complete)
        size = furthest.state["trainer"]["state"].get("train_batch_size")
        if self._trainer.args.auto_find_batch_size and size is not None:
            self._trainer._train_batch_size = size

    def _last_folder(self) -> str:
        from transformers import trainer_utils

        place, theirs = self._trainer.args.output_dir, cast(Any, trainer_utils)
        folder = theirs.get_last_checkpoint(place) if os.path.isdir(place) else None
        if folder is None:
            raise NotFoundError(
                f"resume_from_checkpoint=True, but neither the store nor {place} has a checkpoint; with "
                'resume="auto" training starts from nothing where there is none'
            )
        return str(folder)


def whole_model(trainer: Any) -> Any:
    """The model itself, whatever was put around it for training."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def _refuse_unknown(trainer: Any, present: list[Participant]) -> None:
    if len({each.ingests for each in present}) > 1:
        raise UsageError(
            "either Trainer saves or a callback does: give ingest=True to all of them or to none"
        )
    distributed = trainer.args.world_size > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if distributed:
        raise UsageError("training in several processes is not known here yet: use one", kind="distributed")
