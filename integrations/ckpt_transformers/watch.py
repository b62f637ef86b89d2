"""Where Trainer's loop can be stopped and gone on with exactly, and how it is put back there.

Written against transformers 5.3 to 5.24. The safe points lie just before the batches of an update are fetched,
after an epoch, and after the last one: at each, everything that belongs to what came before is done (logs,
evaluation, callbacks). Nothing is written here; what stands in the place of Trainer's saving is `training.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from torch.utils.data import DataLoader

from ckpt_core import UsageError, clock
from ckpt_torch.loader import ResumeData
from ckpt_torch.rng import capture_rng, restore_rng
from ckpt_transformers import state as parts
from ckpt_transformers.data import EvaluationData, TrainingData
from ckpt_transformers.overrides import Overrides
from ckpt_transformers.weights import ModelWeights, whole_model

__all__ = ["LoopWatch", "Owner"]

_log = logging.getLogger("ckpt_core.transformers")

_OURS = "resumed-by-ckpt-transformers"
"""Stands where Trainer has the folder that it resumes from, so that its counters begin where ours do."""
_EVAL = "eval"
"""How Trainer calls the loader of its only evaluation dataset."""
_NO_DATA: Any = (0,)


class Owner(Protocol):
    """Whom the watch tells what it sees."""

    @property
    def resume_data(self) -> ResumeData: ...

    def start(self, model: Any) -> None:
        """Training starts from nothing: the model may be given other weights now."""

    def safe_point(self) -> None:
        """A resume from this instant would be exact."""

    def finish(self) -> None:
        """And it is the last such instant: all is trained, and the best model not loaded yet."""


class LoopWatch:
    """Watches one call of `trainer.train`, from `install` to `remove`. `epoch` is the present one, from 0."""

    def __init__(self, trainer: Any, owner: Owner) -> None:
        self._trainer = trainer
        self._owner = owner
        self._overrides = Overrides(trainer)
        self._data: TrainingData | None = None
        self._evaluation = EvaluationData()
        self._weights: ModelWeights | None = None
        self._state: dict[str, Any] | None = None
        self._complete = False
        self._holding: list[dict[str, Any]] = []
        self._loop: Mapping[str, Any] | None = None
        self._rng: Mapping[str, Any] | None = None
        self._iterator: Any = None
        self._moment: dict[str, Any] | None = None
        self._losses: list[Any] = []
        self._seconds = 0.0
        self._begun = clock.monotonic()
        self.nothing_to_do = False
        self.epoch = 0

    # -- being there ------------------------------------------------------------------------------

    def install(self) -> None:
        """Begin to watch."""
        self._overrides.put_all({
            "_init_training_state": self._init_state, "_prepare_for_training": self._prepare,
            "_run_epoch": self._run_epoch, "get_batch_samples": self._fetch, "_load_rng_state": self._load_rng,
            "_finalize_training": self._finalize, "get_eval_dataloader": self._eval_loader,
            "training_step": self._train_on,
        })  # fmt: skip

    def remove(self) -> None:
        """Leave the trainer as it was."""
        self._overrides.remove_all()
        self._evaluation.release()
        if self._data is not None:
            self._data.release()

    # -- state ------------------------------------------------------------------------------------

    def resume(self, state: dict[str, Any], *, complete: bool) -> None:
        """Have the training go on from what `capture` gave, or from what Trainer's own folder holds.

        What is large is taken out of it when it is where it belongs.
        """
        self._state, self._complete = state, complete

    @property
    def in_the_midst(self) -> bool:
        """Whether the epoch that begins now was begun before the resume."""
        return self._loop is not None and self._loop["batches"] > 0

    def capture(self) -> dict[str, Any]:
        """Everything, as it is at this safe point. Tensors in it are the live ones."""
        assert self._moment is not None
        return {**self.capture_model(), **parts.capture_objects(self._trainer), **self.capture_place()}

    def capture_model(self) -> dict[str, Any]:
        """The weights."""
        assert self._weights is not None
        state: dict[str, Any] = self._weights.capture()
        return state

    def capture_place(self) -> dict[str, Any]:
        """What is small: counters, logs, random states, the place in the loop and in the data."""
        assert self._moment is not None
        counters = parts.capture_counters(self._trainer)
        counters["state"]["num_input_tokens_seen"] = self._moment["tokens"]
        place = {name: self._moment[name] for name in ("rng", "data", "evaluation", "loop", "sums")}
        return {"trainer": counters, **place}

    @property
    def is_good(self) -> bool:
        """Whether the weights are still those of the last safe point, after an exception since."""
        return self._moment is not None and self._buffers() == self._moment["buffers"]

    def stepping(self) -> None:
        """The optimizer is about to change the weights."""
        self._moment = None

    def _note_moment(self, *, epoch: int, batches: int) -> None:
        """Remember what an update changes even if it fails, and a checkpoint of this instant needs."""
        assert self._data is not None
        self._moment = {
            "rng": capture_rng(),
            "data": self._data.position(between=batches == 0),
            "evaluation": self._evaluation.positions(),
            "loop": {
                "epoch": epoch, "batches": batches, "max_steps": self._trainer.state.max_steps,
                "seconds": self._seconds + clock.monotonic() - self._begun,
            },
            "sums": parts.capture_sums(self._trainer),
            "tokens": self._trainer.state.num_input_tokens_seen,
            "buffers": self._buffers(),
        }  # fmt: skip

    def _buffers(self) -> list[tuple[int, int]]:
        held = (buffer for buffers in self._holding for buffer in buffers.values() if buffer is not None)
        return [(id(buffer), buffer._version) for buffer in held]

    # -- what Trainer calls: the beginning --------------------------------------------------------

    def _init_state(self, max_steps: int, updates: int, epochs: int, folder: Any, trial: Any) -> Any:
        trainer = self._trainer
        begin = self._overrides.original("_init_training_state")(max_steps, updates, epochs, None, trial)
        if self._state is None:
            return begin
        parts.restore_counters(trainer, self._state["trainer"])
        loop = self._state.get("loop")
        accumulated = trainer.args.gradient_accumulation_steps
        if loop is None:  # a folder of Trainer's: what can be told from the step
            epoch, done = divmod(trainer.state.global_step, updates)
            loop = {"epoch": epoch, "batches": done * accumulated, "seconds": 0.0}
            loop["max_steps"] = self._state["trainer"]["state"]["max_steps"]
        self._seconds = loop["seconds"]
        self.nothing_to_do = self._complete and trainer.state.max_steps <= loop["max_steps"]
        if self.nothing_to_do:
            return epochs, 0
        if "optimizer" not in self._state:
            raise UsageError(
                "this checkpoint holds the model only (save_only_model): training cannot go on from it; give "
                "resume=None for a new attempt, with init_from= this checkpoint to begin with its weights",
                kind="model-only",
            )
        if trainer.args.ignore_data_skip and loop["batches"]:
            _log.warning("ignore_data_skip: the epoch begins anew, and is not what it would have been")
            loop = {**loop, "batches": 0}
        self._loop, self.epoch = loop, loop["epoch"]
        return loop["epoch"], -(-loop["batches"] // accumulated) * accumulated

    def _prepare(self, max_steps: int, loader: Any, folder: Any) -> Any:
        model, loader = self._overrides.original("_prepare_for_training")(max_steps, loader, None)
        trainer, state = self._trainer, self._state
        whole = whole_model(trainer)
        self._weights = ModelWeights(whole)
        self._holding = [module._buffers for module in whole.modules() if module._buffers]
        self._data = TrainingData(
            loader, resume_data=self._owner.resume_data, before_fetch=self._before_fetch
        )
        if state is None:
            self._owner.start(whole)
        else:
            self._weights.restore(state)
            parts.restore_objects(trainer, state)
            if not trainer.args.auto_find_batch_size:  # which may begin again
                for name in parts.LARGE & state.keys():
                    del state[name]
            self._rng = state.get("rng")
            for name in state.get(
                "evaluation", {}
            ):  # while all that they share with others is as it was then
                trainer.get_eval_dataloader(None if name == _EVAL else name)
            self._evaluation.resume(state.get("evaluation", {}))
        return model, self._data.loader

    def begin(self) -> None:
        """Trainer has set its sums to zero and is about to begin the first epoch."""
        self._begun = clock.monotonic()
        if self._state is None:
            return
        if "sums" in self._state:
            parts.restore_sums(self._trainer, self._state["sums"])
        if not self.in_the_midst:
            self._restore_rng()
        if self._trainer.args.eval_on_start:  # that was at the start
            self._overrides.put("_evaluate", lambda *_, **__: {})

    # -- what Trainer calls: the loop -------------------------------------------------------------

    def _run_epoch(self, **facts: Any) -> None:
        trainer, data, epoch = self._trainer, self._data, facts["epoch"]
        assert data is not None
        self._overrides.remove("_evaluate")
        self.epoch, self._iterator = epoch, None
        data.consumed = 0
        facts["start_time"] -= self._seconds
        if self._loop is not None:
            loop, self._loop = self._loop, None
            data.resume(self._state.get("data") if self._state else None, loop["batches"])
            if loop["batches"]:
                self._iterator = data.iterate(epoch)
                # Trainer counts from where we are, and skips batches of a loader that nobody reads.
                facts["resume_from_checkpoint"] = _OURS
                facts["train_dataloader"] = DataLoader(_NO_DATA)
        self._moment = None
        self._overrides.original("_run_epoch")(**facts)
        if not trainer.control.should_training_stop and epoch + 1 < trainer.state.num_train_epochs:
            self._note_moment(epoch=epoch + 1, batches=0)
            self.epoch = epoch + 1
            self._owner.safe_point()

    def _fetch(self, iterator: Any, count: int, device: Any) -> Any:
        """Between two updates."""
        data = self._data
        assert data is not None
        if self._iterator is None:
            self._iterator = iterator
        if self._rng is None:  # else what was resumed is not complete before the first batch is there
            self._note_moment(epoch=self.epoch, batches=data.consumed)
            self._owner.safe_point()
        self._losses.clear()
        batches, items = self._overrides.original("get_batch_samples")(self._iterator, count, device)
        data.consumed += len(batches)
        return batches, items

    def _train_on(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._overrides.original("training_step")(*args, **kwargs)
        self._losses.append(loss)  # what Trainer logs is smoothed, and leaves out what is NaN
        return loss

    def loss(self) -> float | None:
        """That of the update just made, of all its batches. To read it waits for the device."""
        return sum(float(each) for each in self._losses) if self._losses else None

    def _eval_loader(self, dataset: Any = None) -> Any:
        loader = self._overrides.original("get_eval_dataloader")(dataset)
        self._evaluation.watch(dataset if isinstance(dataset, str) else _EVAL, loader)
        return loader

    def _before_fetch(self) -> None:
        self._restore_rng()

    def _restore_rng(self) -> None:
        if self._rng is not None:
            for missing in restore_rng(self._rng):
                _log.warning("%s is in the checkpoint, but cannot be restored here", missing)
            self._rng = None

    def _load_rng(self, folder: Any) -> None:
        if folder != _OURS:
            self._overrides.original("_load_rng_state")(folder)

    def _finalize(self, trial: Any, samples: Any, start_time: float) -> Any:
        self._overrides.remove("_evaluate")
        if not self.nothing_to_do:
            assert self._data is not None
            # Stopped early, there is a rest of the epoch to go on with, should more be asked for later.
            stopped = self._trainer.control.should_training_stop and self._data.has_more
            place = (self.epoch, self._data.consumed) if stopped else (self.epoch + 1, 0)
            self._note_moment(epoch=place[0], batches=place[1])
        self._owner.finish()
        self._moment = None
        return self._overrides.original("_finalize_training")(trial, samples, start_time - self._seconds)
