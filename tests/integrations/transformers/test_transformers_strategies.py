"""Save policies and hooks in a Trainer's training: every event, schedules, a loss that is NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_case import plain_trainer

from ckpt_core import EverySteps, OnLearningRateDrop, OnLossSpike
from ckpt_transformers import CheckpointCallback
from contract.strategies import EXPERIMENT, check_all_events, kept, reasons


def run(
    root: Path, bad: int | None = None, optimizers: Any = None, policy: Any = None, **options: Any
) -> Any:
    arguments = {name: options.pop(name) for name in list(options) if name in ("lr_scheduler_type",)}
    callback = CheckpointCallback(root, **{"experiment": EXPERIMENT, "save_policy": policy, **options})
    trainer = plain_trainer(root.parent, [callback], **arguments)
    if optimizers is not None:
        trainer.optimizer, trainer.lr_scheduler = optimizers(trainer.model)
    if bad is not None:
        inner = trainer.compute_loss

        def compute_loss(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            loss = inner(model, inputs, *rest, **more)
            return loss * torch.nan if model.training and trainer.state.global_step + 1 == bad else loss

        trainer.compute_loss = compute_loss
    trainer.train()
    return trainer


def test_every_event_reaches_hooks(tmp_path: Path) -> None:
    heard = check_all_events(
        lambda root, **options: run(root, metric="eval_loss", mode="min", **options), tmp_path
    )
    assert heard.rates[0][2] == pytest.approx(3e-3)
    assert len(heard.rates) > 10  # the schedule goes down a little with every update


def stepwise(model: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 5)


def test_before_and_after_the_learning_rate_drops(tmp_path: Path) -> None:
    run(tmp_path / "s", optimizers=stepwise, policy=OnLearningRateDrop(settle=2))
    assert reasons(tmp_path / "s") == [
        (5, "before the learning rate drops from 0.01 to 0.001"),
        (7, "2 steps after the learning rate dropped from 0.01 to 0.001"),
        (10, "before the learning rate drops from 0.001 to 0.0001"),
        (12, "end of training"),
    ]


def test_the_last_good_is_kept_when_the_loss_is_nan(tmp_path: Path) -> None:
    # Trainer's own log leaves a loss out that is NaN: this one is not of the log.
    run(tmp_path / "s", bad=11, policy=OnLossSpike() | EverySteps(3))
    assert kept(tmp_path / "s") == 9
