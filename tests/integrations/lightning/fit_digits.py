"""A Lightning training on scikit-learn's digits, as one writes it, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import signal
import sys
from typing import Any

import numpy as np
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ckpt_core import BaseHook, HookContext, HookEvent
from ckpt_lightning import CheckpointCallback
from contract.training import Report, digest

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "package": "lightning.pytorch", "resume": "auto", "ckpt_path": None,
    "epochs": 3, "every": 3, "every_epochs": None, "samples": 60, "workers": 0, "augment": False, "mask": False,
    "accumulate": 1, "scheduler": "none", "stop": False, "val_every": 1.0, "die": {},
}  # fmt: skip


class Digits(Dataset[Any]):
    def __init__(self, samples: int, augment: bool) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.data[:samples] / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target[:samples])
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        if self.augment:
            image = image + 0.1 * torch.randn(64) + 0.1 * np.random.rand() + 0.1 * random.random()
        return image, self.labels[index], index


def masked(samples: list[Any]) -> Any:
    images, labels, indices = torch.utils.data.default_collate(samples)
    return images * (torch.rand(images.shape) > 0.15), labels, indices


class Kill(BaseHook):
    """Ends the process as soon as a save of this step or of a later one is acknowledged."""

    events = (HookEvent.AFTER_SAVE,)

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def execute(self, context: HookContext) -> None:
        if context.step is not None and context.step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def module_of(pl: Any, options: dict[str, Any], report: Report) -> Any:
    die = options["die"]

    class Net(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
            )
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=10)
            self.save_hyperparameters({"width": 32, "activation": nn.ReLU()})

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, labels, indices = batch
            at = [self.current_epoch, batch_idx]
            if die.get("batch") == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if die.get("signal", [None])[0] == at:
                os.kill(os.getpid(), getattr(signal, die["signal"][1]))
            if die.get("raise") == at:
                raise RuntimeError("on purpose")
            logits = self.net(images)
            loss = nn.functional.cross_entropy(logits, labels)
            self.accuracy(logits, labels)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
            rate = self.optimizers().param_groups[0]["lr"]
            report.add("step", at=at, indices=indices.tolist(), loss=loss.item(), lr=rate)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                at = [self.current_epoch, self.global_step, "validation"]
                report.add("step", at=at, loss=self.trainer.callback_metrics["val_loss"].item())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            if options["scheduler"] == "none":
                return optimizer
            if options["scheduler"] == "cosine":
                each = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": each, "interval": "step"}}
            if options["scheduler"] == "multistep":
                return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)]
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    return Net()


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    pl = importlib.import_module(options["package"])
    report, die = Report(options["report"]), options["die"]
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    if die.get("handler"):
        signal.signal(signal.SIGTERM, lambda number, _: report.add("handled", signal=number))

    class Tell(pl.Callback):  # type: ignore[name-defined,misc]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            report.add("begin", step=trainer.global_step, epoch=trainer.current_epoch)

    data = Digits(options["samples"], options["augment"])
    loader: Any = DataLoader(
        data, batch_size=8, shuffle=True, num_workers=options["workers"],
        collate_fn=masked if options["mask"] else None,
    )  # fmt: skip
    callback = CheckpointCallback(
        options["store"], experiment="digits", monitor="val_loss", every_n_train_steps=options["every"],
        every_n_epochs=options["every_epochs"], resume=options["resume"],
        hooks=[Kill(die["saved"])] if "saved" in die else [],
    )  # fmt: skip
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=0.5)
    trainer = pl.Trainer(
        max_epochs=options["epochs"], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, accumulate_grad_batches=options["accumulate"],
        val_check_interval=options["val_every"], callbacks=[callback, Tell(), *([stopping] if options["stop"] else [])],
    )  # fmt: skip
    module = module_of(pl, options, report)
    trainer.fit(module, loader, DataLoader(data, batch_size=30), ckpt_path=options["ckpt_path"])
    manager = callback.manager
    catalog = manager.workspace.index.catalog()
    series = {
        name: [(point.step, point.value) for point in catalog.metric_series("digits", name)]
        for name in catalog.metric_names("digits")
    }
    report.add(
        "end", weights=digest(module.state_dict()), optimizer=digest(trainer.optimizers[0].state_dict()),
        series=series, steps=trainer.global_step, epoch=trainer.current_epoch, stopped=stopping.stopped_epoch,
        waited=stopping.wait_count, latest=manager.load("latest")["global_step"],
    )  # fmt: skip
    assert callback.resumption is not None
    report.add("how", resumption=callback.resumption.kind, step=callback.resumption.step)
    manager.close()


if __name__ == "__main__":
    main()
