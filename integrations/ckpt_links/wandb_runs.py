"""Weights & Biases: each checkpoint a reference artifact with aliases. The bytes stay where they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Unpack

from ckpt_core import Checkpoint, HookContext, HookEvent, UsageError
from ckpt_core.hooks import HookOptions
from ckpt_links.link import Link, require
from ckpt_links.places import place_of

__all__ = ["WandbLink"]


class WandbLink(Link):
    """Logs checkpoints and metrics to a run of W&B.

    Each checkpoint is a version of the artifact named `artifact` (`checkpoint-<experiment>` if left out), of type
    `model`, that refers to it by its `ckpt://` address and the address of its manifest, with the aliases
    `step-<step>` and those of its tags; the best one gets the alias `best`. `run`: a run of yours; left out, the one
    that is active, or one that is begun in `project` with `config`, and finished when the manager closes.
    Raises UsageError, MissingExtraError.
    """

    events = (
        HookEvent.TRAIN_BEGIN,
        HookEvent.EVALUATE_END,
        HookEvent.EPOCH_END,
        HookEvent.AFTER_SAVE,
        HookEvent.NEW_BEST,
        HookEvent.TRAIN_FAILED,
        HookEvent.PREEMPTED,
    )
    timeout = 120.0

    def __init__(
        self,
        *,
        project: str | None = None,
        artifact: str | None = None,
        config: Mapping[str, bool | float | str] | None = None,
        run: Any = None,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        if run is not None and (project is not None or config is not None):
            raise UsageError("a run= has its project and its config already", kind="option")
        self._wandb = require("wandb", "wandb")
        self.project = project
        self.artifact = artifact
        self.config = dict(config or {})
        self.run = run
        self._own = False
        self._failed = False

    def execute(self, context: HookContext) -> None:
        run = self._run(context)
        if context.event in (HookEvent.AFTER_SAVE, HookEvent.NEW_BEST) and context.checkpoint is not None:
            best = ["best"] if context.event is HookEvent.NEW_BEST else []
            self._refer(run, context.checkpoint, best)
        if context.metrics and context.event is not HookEvent.NEW_BEST:
            run.log({**context.metrics, "trainer/step": context.step})
        if context.event is HookEvent.PREEMPTED:
            run.mark_preempting()  # W&B then tells a run that ends with an error, or is heard of no more, as preempted
        if context.event is HookEvent.TRAIN_FAILED:
            self._failed = True

    def detach(self) -> None:
        failed, self._failed = self._failed, False  # the next manager's training is another
        if self.run is not None and self._own:
            run, self.run, self._own = self.run, None, False
            run.finish(exit_code=int(failed))

    def _run(self, context: HookContext) -> Any:
        if self.run is None:
            self._own = self._wandb.run is None
            self.run = self._wandb.run or self._wandb.init(
                project=self.project, name=context.experiment, config=self.config
            )
        return self.run

    def _refer(self, run: Any, checkpoint: Checkpoint, aliases: list[str]) -> None:
        artifact = self._wandb.Artifact(
            self.artifact or f"checkpoint-{_named(checkpoint.experiment)}",
            type="model",
            metadata={
                "checkpoint": checkpoint.id,
                "experiment": checkpoint.experiment,
                "step": checkpoint.step,
                "digest": checkpoint.digest,
                "logical_bytes": checkpoint.logical_bytes,
                **{f"metric/{name}": value for name, value in checkpoint.metrics.items()},
            },
        )
        store = self.manager.workspace.repository.store.url.rstrip("/")
        # Not read and hashed by W&B: a checkpoint's own digest says what it is.
        artifact.add_reference(place_of(self.manager, checkpoint), name="checkpoint", checksum=False)
        artifact.add_reference(f"{store}/{checkpoint.key}", name="manifest.json", checksum=False)
        names = [f"step-{checkpoint.step}", *(_named(tag) for tag in checkpoint.tags), *aliases]
        run.log_artifact(artifact, aliases=["latest", *dict.fromkeys(names)])


def _named(name: str) -> str:
    """A name as W&B takes it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)
