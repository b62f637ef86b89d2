"""A Lightning training in several processes on scikit-learn's digits, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. With `strategy="ddp"` Lightning starts this script
again for each further process, as it does for anybody. Not a test itself.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the processes that Lightning starts
sys.path.insert(0, os.environ["PYTHONPATH"])

import lightning.pytorch as pl
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lightning import CheckpointCallback
from ckpt_torch import capture_rng
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "die": {}, "spoil": "none", "strategy": "ddp_fork", "devices": 2,
    "experiment": "digits", "resume": "auto", "ckpt_path": None, "every": 2, "every_epochs": None, "epochs": 3,
    "accumulate": 1, "workers": 0, "init_from": None, "fault": None, "on_save_error": "report", "ours": True,
    "task": "fit", "handler": False, "second": None, "broken_state": None, "strategy_options": {},
}  # fmt: skip
options: dict[str, Any] = OPTIONS | json.loads(sys.argv[1])
die = options["die"]
report = Report(options["report"])


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def here(what: str, at: Any) -> bool:
    return die.get(what) == at and die.get("rank", 0) == rank()


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 10))
        self.register_buffer("average", torch.zeros(()), persistent=False)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10)

    def on_train_start(self) -> None:
        torch.manual_seed(100 + rank())  # each process draws for itself

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels, indices = batch
        logits = self.net(images + 0.1 * torch.randn(images.shape))
        loss = nn.functional.cross_entropy(logits, labels)
        self.average.mul_(0.9).add_(0.1 * loss.detach())
        self.accuracy(logits, labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("shared_loss", loss, on_epoch=True, sync_dist=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        at = [self.current_epoch, batch_idx]
        report.add("step", at=[rank(), *at], indices=indices.tolist(), loss=loss.item())
        if here("raise", at):
            raise RuntimeError("on purpose")
        return loss

    def on_train_epoch_end(self) -> None:
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        report.add("step", at=[rank(), self.current_epoch, "metrics"], metrics=metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Seen(pl.Callback):
    """Has a state that is another one in each process."""

    def __init__(self) -> None:
        self.seen = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += int(batch[2].sum())
        at = [trainer.current_epoch, batch_idx]
        if here("batch", at):
            kill()
        if here("alone", at):
            os.kill(os.getpid(), signal.SIGKILL)
        if here("signal", at):
            os.kill(os.getpid(), getattr(signal, die["number"]))

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if here("epoch", trainer.current_epoch):
            kill()

    def state_dict(self) -> dict[str, Any]:
        if options["broken_state"] == rank():
            raise ValueError("no state today")
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Tell(pl.Callback):
    def __init__(self, callback: Any, seen: Seen) -> None:
        self.callback = callback
        self.seen = seen

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        how = self.callback.resumption if self.callback is not None else None
        if how is not None:
            report.add("begin" if rank() == 0 else f"begin {rank()}", how=how.kind, step=how.step)
        report.add("start", rank=rank(), weights=digest(module.state_dict()))

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        report.add(
            "end" if rank() == 0 else f"end {rank()}", weights=digest(module.state_dict()),
            optimizer=digest(trainer.optimizers[0].state_dict()), rng=digest(capture_rng()), seen=self.seen.seen,
            average=module.average.item(), step=trainer.global_step, epoch=trainer.current_epoch,
            schedule=digest(trainer.lr_scheduler_configs[0].scheduler.state_dict()),
        )  # fmt: skip


def spoil() -> None:
    """Leave one thing out of what each process gets back."""
    from ckpt_lightning import run

    what = options["spoil"]
    if what != "none":
        overlay = run.overlay
        run.overlay = lambda state, part: overlay(state, [each for each in part if what not in each[0]])


def main() -> None:
    log_to_output()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    spoil()
    if options["handler"]:
        signal.signal(signal.SIGUSR1, lambda number, _: report.add("handled", rank=rank()))
    digits = load_digits()
    images = torch.tensor(digits.data[:100] / 16, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target[:100]), torch.arange(100))
    training = DataLoader(
        torch.utils.data.Subset(data, range(60)), batch_size=4, shuffle=True, num_workers=options["workers"]
    )
    validation = DataLoader(torch.utils.data.Subset(data, range(60, 100)), batch_size=20)
    callback = CheckpointCallback(
        store_of(options), experiment=options["experiment"], every_n_train_steps=options["every"],
        every_n_epochs=options["every_epochs"], resume=options["resume"], monitor="val_loss",
        init_from=options["init_from"], on_save_error=options["on_save_error"], hooks=hooks_of(options),
    ) if options["ours"] else None  # fmt: skip
    second = options["second"]
    others = [CheckpointCallback(options["store"], **second)] if second else []
    seen = Seen()
    strategy: Any = options["strategy"]
    if options["strategy_options"]:
        strategy = pl.strategies.DDPStrategy(start_method="fork", **options["strategy_options"])
    trainer = pl.Trainer(
        max_epochs=options["epochs"], accelerator="cpu", devices=options["devices"], logger=False,
        strategy=strategy if options["devices"] > 1 else "auto", enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, accumulate_grad_batches=options["accumulate"],
        callbacks=[*([callback] if callback else []), *others, seen, Tell(callback, seen)],
        enable_checkpointing=callback is not None,
    )  # fmt: skip
    module = Module()
    if options["task"] == "validate":
        found = trainer.validate(module, validation, ckpt_path=options["ckpt_path"], verbose=False)
        if rank() == 0:
            report.add("evaluated", value=found[0]["val_loss"])
        return
    trainer.fit(module, training, validation, ckpt_path=options["ckpt_path"])
    if callback is not None and trainer.global_rank == 0:
        report.add("series", points=series_of(callback.manager))


if __name__ == "__main__":
    main()
