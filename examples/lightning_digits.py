"""Train a small network on scikit-learn's digits with Lightning. Run it again and it resumes; kill it and it resumes.

python examples/lightning_digits.py --store checkpoints --epochs 4
"""

from __future__ import annotations

import argparse
import logging

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from ckpt_core import KeepBest, KeepLast
from ckpt_lightning import CheckpointCallback


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=400)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    pl.seed_everything(7)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    training, validation = random_split(data, [1500, len(data) - 1500])
    checkpoints = CheckpointCallback(
        options.store, experiment="digits", monitor="val_loss", every_n_train_steps=10, every_n_epochs=1,
        retention=[KeepLast(3), KeepBest(2)],
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=options.epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, callbacks=[checkpoints],
    )  # fmt: skip
    trainer.fit(
        Digits(),
        DataLoader(training, batch_size=32, shuffle=True),
        DataLoader(validation, batch_size=128),
    )


if __name__ == "__main__":
    main()
