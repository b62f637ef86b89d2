"""Save policies and hooks in a Lightning fit: every event, schedules of every kind, a loss that is NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import BaseHook, EverySteps, HookEvent, OnLearningRateDrop, OnLossSpike
from ckpt_lightning import CheckpointCallback
from contract.strategies import EXPERIMENT, check_all_events, kept, reasons

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much to say


class Linear(pl.LightningModule):
    """Four steps an epoch. `schedule`: what is given to Lightning; `bad`: the step whose loss is NaN."""

    def __init__(self, schedule: str = "none", bad: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.schedule, self.bad = schedule, bad

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        return loss * torch.nan if self.global_step + 1 == self.bad else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean() if self.schedule != "plateau" else 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        match self.schedule:
            case "step":
                schedule = torch.optim.lr_scheduler.StepLR(optimizer, 6)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
            case "epoch":
                return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]
            case "plateau":
                schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
                }
        return optimizer


def run(root: Path, module: Any = None, epochs: int = 2, beside: Any = None, **options: Any) -> None:
    callback = CheckpointCallback(root, **{"experiment": EXPERIMENT, **options})
    callbacks = [callback] if beside is None else [callback, beside]
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=callbacks, max_epochs=epochs, logger=False, log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.arange(8.0).reshape(8, 1) / 8), batch_size=2)
    trainer.fit(module or Linear(), data, data)


def test_every_event_reaches_hooks(tmp_path: Path) -> None:
    check_all_events(lambda root, **options: run(root, monitor="val_loss", **options), tmp_path)


class Counting(BaseHook):
    """Counts steps, through all resumes."""

    name = "counting"
    events = (HookEvent.STEP_END,)

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def execute(self, context: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"]


def test_each_of_two_callbacks_has_its_own_to_remember(tmp_path: Path) -> None:
    for epochs in (1, 2):
        counting = [Counting(), Counting()]
        run(
            tmp_path / "a", epochs=epochs, hooks=[counting[0]],
            beside=CheckpointCallback(tmp_path / "b", experiment="b", hooks=[counting[1]]),
        )  # fmt: skip
        assert [each.steps for each in counting] == [4 * epochs] * 2


@pytest.mark.parametrize(("schedule", "fell"), [("step", 6), ("epoch", 8), ("plateau", 12)])
def test_before_and_after_the_learning_rate_drops(schedule: str, fell: int, tmp_path: Path) -> None:
    run(tmp_path / "s", Linear(schedule), 4, save_policy=OnLearningRateDrop(settle=2))
    assert reasons(tmp_path / "s")[:2] == [
        (fell, "before the learning rate drops from 0.01 to 0.001"),
        (fell + 2, "2 steps after the learning rate dropped from 0.01 to 0.001"),
    ]


def test_the_last_good_is_kept_when_the_loss_is_nan(tmp_path: Path) -> None:
    run(tmp_path / "s", Linear(bad=11), 4, save_policy=OnLossSpike() | EverySteps(3))
    assert kept(tmp_path / "s") == 9
