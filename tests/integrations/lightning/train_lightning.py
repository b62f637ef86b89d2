"""A Lightning training on scikit-learn's digits, as one writes it, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`, and `contract.adapter` for what those mean that all
scripts have. Not a test itself.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_lightning import CheckpointCallback, load_weights
from ckpt_torch import capture_rng
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "package": "lightning.pytorch", "store": "store", "report": "report", "die": {}, "spoil": "none",
    "experiment": "digits", "resume": "auto", "task": "train", "init_from": None, "second": None, "fault": None,
    "on_save_error": "report", "mechanism": "ours",
    "every": 2, "epochs": 3, "max_steps": -1, "samples": 60, "bare": False,
    "workers": 0, "persistent": False, "val_workers": 0, "augment": "none", "mask": False, "stream": False,
    "accumulate": 1, "val_check": 1.0, "scheduler": "none", "patience": 0, "manual": False, "two": False,
    "metrics": False, "limit": None, "monitor": None, "save_top_k": None, "handler": "none", "hparams": False,
    "trainer": {}, "noise": 0.01,
}  # fmt: skip
options: dict[str, Any] = OPTIONS | json.loads(sys.argv[1])
pl = importlib.import_module(options["package"])
report = Report(options["report"])
die = options["die"]


class Digits(Dataset[Any]):
    def __init__(self, samples: int, augment: str = "none") -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.data[:samples] / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target[:samples])
        self.augment = augment
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index]
        if self.augment == "globals":
            image = image + 0.1 * torch.randn(64) + 0.1 * np.random.rand() + 0.1 * random.random()
        elif self.augment == "own":
            image = image + 0.1 * torch.tensor(self.rng.normal(size=64), dtype=torch.float32)
        return image, self.labels[index], index


class Stream(IterableDataset[Any]):
    """The digits in an order that is drawn as they are asked for."""

    def __init__(self, data: Digits) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        left = list(range(len(self.data)))
        while left:
            yield self.data[left.pop(int(torch.randint(len(left), ())))]


fetched = 0


def masked(samples: list[Any]) -> Any:
    global fetched
    fetched += 1
    if die.get("fetch") == fetched:
        raise RuntimeError("on purpose")
    images, labels, indices = torch.utils.data.default_collate(samples)
    return images * (torch.rand(images.shape) > 0.15), labels, indices


class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, width: int = 32, chosen: Any = None) -> None:
        super().__init__()
        if options["hparams"]:
            self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 10)
        )
        self.register_buffer("average", torch.zeros(()), persistent=False)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10)
        self.automatic_optimization = not options["manual"]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if options["two"]:
            batch, other = batch["digits"], batch["others"]
        images, labels, indices = batch
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels)
        if options["two"]:
            loss = loss + self.net(other[0]).square().mean()
        self.average.mul_(0.9).add_(0.1 * loss.detach())
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_max", loss, reduce_fx="max")
        self.log("average", self.average)
        if options["metrics"]:
            self.accuracy(logits, labels)
            self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        if options["manual"]:
            self.manual_backward(loss / 2)
            if (batch_idx + 1) % 2 == 0 or self.trainer.is_last_batch:
                self.optimizers().step()
                self.optimizers().zero_grad()
        Logger.batch = (self.current_epoch, batch_idx)
        others = other[2].tolist() if options["two"] else []
        report.add(
            "step", at=[self.current_epoch, batch_idx], indices=indices.tolist() + others, loss=loss.item()
        )
        if die.get("raise_in_step") == [self.current_epoch, batch_idx]:
            raise RuntimeError("on purpose")
        return loss

    def on_train_epoch_start(self) -> None:
        self.noise = torch.rand(()).item()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():  # after all callbacks, and still before the next batch
            self.net[0].bias.mul_(0.999)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels, _ = batch
        Logger.batch = (self.current_epoch, self.trainer.fit_loop.batch_idx)
        images = images + options["noise"] * torch.randn(images.shape)
        if die.get("validating") == self.global_step and not self.trainer.sanity_checking:
            kill()
        if die.get("raise_in_validation") == self.global_step and batch_idx == 1:
            raise RuntimeError("on purpose")
        self.log("val_loss", nn.functional.cross_entropy(self.net(images), labels))

    def on_validation_end(self) -> None:
        if die.get("raise_after_validation") == self.global_step:  # every callback has had its turn
            raise RuntimeError("on purpose")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if options["scheduler"] == "none":
            return optimizer
        if options["scheduler"] == "step":
            scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if options["scheduler"] == "multistep":
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], 0.5)]
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        interval = options["scheduler"].removeprefix("plateau by ")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss", "interval": interval, "frequency": 1,
                             "strict": False},
        }  # fmt: skip


class Changed(Module):
    """With another head, and its first layer by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.net[0] = self.net[0], nn.Identity()
        self.net[3] = nn.Linear(32, 12)


class Logger(pl.loggers.Logger):  # type: ignore[misc, name-defined]
    name, version = "report", 0
    batch = (-1, -1)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if options["mechanism"] == "ours":
            report.add("step", at=["logged", *self.batch, step, sorted(metrics)], metrics=metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Die(pl.Callback):  # type: ignore[misc, name-defined]
    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if die.get("epoch") == trainer.current_epoch:
            kill()
        if die.get("fail_epoch") == trainer.current_epoch:
            raise RuntimeError("on purpose")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        at = [trainer.current_epoch, batch_idx]
        if die.get("batch") == at:
            kill()
        if die.get("signal", [None])[0] == at:
            os.kill(os.getpid(), getattr(signal, die["signal"][1]))
        if die.get("raise") == at:
            raise RuntimeError("on purpose")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if die.get("validated") == trainer.global_step and not trainer.sanity_checking:
            kill()


def failing(name: str) -> Any:
    """A hook that raises what `die["fail"]` says, in a certain batch: [hook, epoch, batch, error]."""

    def hook(self: Any, trainer: Any, *args: Any) -> None:
        at = [name, trainer.current_epoch, trainer.fit_loop.batch_idx]
        if die.get("fail", [])[:3] == at:
            raise {"RuntimeError": RuntimeError, "KeyboardInterrupt": KeyboardInterrupt}[die["fail"][3]](
                "on purpose"
            )

    return hook


class Counts(pl.Callback):  # type: ignore[misc, name-defined]
    """Counts batches before the optimizer moves, and what fails in them."""

    batches = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        failing("on_train_batch_start")(self, trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


for each in ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"):
    setattr(Counts, each, failing(each))


class Tell(pl.Callback):  # type: ignore[misc, name-defined]
    def __init__(self, callback: Any) -> None:
        self.callback = callback

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        how = self.callback.resumption if self.callback is not None else None
        if how is not None:
            report.add("begin", how=how.kind, step=how.step)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if options["mechanism"] == "native":
            report.add("begin", how="resumed" if trainer.global_step else "fresh", step=trainer.global_step)
        if options["init_from"]:
            report.add("started", weights=digest(module.state_dict()))


def spoil() -> None:
    """Break one thing that a resume restores: what is compared afterwards must show it."""
    from ckpt_lightning import loops, run

    what = options["spoil"]
    if what == "rng":
        run.restore_rng = lambda state: []
    elif what == "logged":
        run.results.restore_logged = lambda trainer, state: None
    elif what == "module":
        run.results.restore_module = lambda module, state: None
    elif what == "data":
        loops.LoopWatch._resume_positions = lambda self, pending: [
            setattr(each, "dormant", False) for each in self._training
        ]
    elif what == "counters":
        loops.LoopWatch._put_counters = lambda self, pending: None


def loaders() -> tuple[Any, Any]:
    data: Any = Digits(options["samples"], options["augment"])
    loader_options: dict[str, Any] = {
        "batch_size": 8, "num_workers": options["workers"], "persistent_workers": options["persistent"],
        "collate_fn": masked if options["mask"] else None,
    }  # fmt: skip
    if options["stream"]:
        training: Any = DataLoader(Stream(data), **loader_options)
    else:
        training = DataLoader(data, shuffle=True, **loader_options)
    if options["two"]:
        others = DataLoader(Digits(26, options["augment"]), batch_size=8, shuffle=True)
        training = {"others": others, "digits": training}
    workers = options["val_workers"]
    return training, DataLoader(
        Digits(40), batch_size=20, num_workers=workers, persistent_workers=workers > 0
    )


def own_callbacks() -> list[Any]:
    """What saves: ours, a second one of ours, or Lightning's own."""
    if options["mechanism"] == "native":
        if "fsync" in die:
            die_before_a_file_is_in_its_place(die["fsync"])
        folder = options["store"] + "-files"
        return [
            pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=options["every"]),
        ]
    if options["bare"]:
        return []
    callback = CheckpointCallback(
        store_of(options), experiment=options["experiment"], every_n_train_steps=options["every"],
        resume=options["resume"], monitor=options["monitor"], save_top_k=options["save_top_k"],
        init_from=options["init_from"], on_save_error=options["on_save_error"], hooks=hooks_of(options),
    )  # fmt: skip
    second = options["second"]
    return [callback] if second is None else [callback, CheckpointCallback(store_of(options), **second)]


def die_before_a_file_is_in_its_place(number: int) -> None:
    """The files of Lightning are written beside their place first; the process ends before one is moved there."""
    move, left = shutil.move, [number]

    def moved(*places: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            kill()
        return move(*places)

    shutil.move = moved


def changed() -> None:
    module, store = Changed(), options["store"]
    with CheckpointManager(store, experiment=options["experiment"], metric=options["monitor"]) as manager:
        try:
            load_weights(module, manager, "best")
        except StateMismatchError as error:
            report.add("refused", paths=list(error.paths))
        found = load_weights(module, manager, "best", strict=False, renames={"net.0": "stem"})
    report.add(
        "fitted", loaded=found.loaded, missing=found.missing, unexpected=found.unexpected,
        misshapen=found.misshapen, left_out=found.left_out,
    )  # fmt: skip


def main() -> None:
    log_to_output()
    logging.getLogger(options["package"]).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    if options["handler"] == "python":
        signal.signal(signal.SIGUSR1, lambda number, _: report.add("handled", signal=number))
    if options["task"] == "changed":
        return changed()

    training, validation = loaders()
    saving = own_callbacks()
    ours = saving[0] if saving and options["mechanism"] == "ours" else None
    counts = Counts()
    callbacks: list[Any] = [*saving, Die(), Tell(ours), counts]
    stopping = pl.callbacks.EarlyStopping("val_loss", patience=options["patience"] or 1, min_delta=0.25)
    if options["patience"]:
        callbacks.append(stopping)
    trainer = pl.Trainer(
        max_epochs=options["epochs"], max_steps=options["max_steps"], accelerator="cpu", logger=Logger(),
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, log_every_n_steps=1,
        val_check_interval=options["val_check"], accumulate_grad_batches=options["accumulate"],
        limit_train_batches=options["limit"] or 1.0, default_root_dir=options["store"] + "-root",
        enable_checkpointing=bool(saving), **options["trainer"],
    )  # fmt: skip
    module = Module(chosen=nn.ReLU())
    spoil()
    if options["task"] == "evaluate":
        found = trainer.validate(module, validation, ckpt_path="best", verbose=False)
        return report.add("evaluated", weights=digest(module.state_dict()), value=found[0]["val_loss"])
    path = "last" if options["mechanism"] == "native" else None
    trainer.fit(module, training, validation, ckpt_path=path)
    if ours is not None:
        report.add("series", points=series_of(ours.manager))
    return report.add(
        "end", weights=digest(module.state_dict()), average=module.average.item(), steps=trainer.global_step,
        optimizer=digest([each.state_dict() for each in trainer.optimizers]), epoch=trainer.current_epoch,
        schedulers=digest([each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]),
        rng=digest(capture_rng()), stopping=digest(stopping.state_dict()), counts=counts.batches,
    )  # fmt: skip


main()
