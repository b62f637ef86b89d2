"""Lightning trainings of the less common kinds, for the tests to kill: rival optimizers, averaged weights.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lightning import CheckpointCallback
from ckpt_torch import capture_rng
from contract.script import hooks_of, log_to_output
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "package": "lightning.pytorch", "store": "store", "report": "report", "die": {}, "kind": "plain", "spoil": "none",
    "epochs": 4, "every": 1, "norm": "batch", "toggle": True, "ours": True,
    "val_check": 1.0,
}  # fmt: skip
options: dict[str, Any] = OPTIONS | json.loads(sys.argv[1])
pl = importlib.import_module(options["package"])
report = Report(options["report"])
die = options["die"]


class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(16) if options["norm"] == "batch" else nn.LayerNorm(16)
        self.net = nn.Sequential(nn.Linear(64, 16), norm, nn.Dropout(0.2), nn.Linear(16, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        tell(self, batch_idx, batch, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            at = [self.current_epoch, self.global_step, "validation", batch_idx]
            report.add("step", at=at, loss=loss.item())
            if die.get("raise_in_validation") == self.global_step:
                raise RuntimeError("on purpose")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


class Taught(Classifier):
    """Has a copy that follows it, moved before each step behind torch's back."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            for theirs, mine in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                theirs.data.mul_(0.9).add_(mine.data, alpha=0.1)
        logits = self.net(batch[0]) + self.teacher(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        tell(self, batch_idx, batch, loss)
        if die.get("raise") == [self.current_epoch, batch_idx]:
            raise RuntimeError("on purpose")
        return loss


class Rivals(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A generator and a critic with an optimizer and a schedule each; the critic learns twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64))
        self.critic = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images = batch[0]
        first, second = self.optimizers()
        drawn = self.generator(torch.randn(len(images), 8))
        if batch_idx % 2:
            loss = self.learn(first, lambda: -self.critic(drawn).mean())
        else:
            loss = self.learn(second, lambda: (self.critic(drawn.detach()) - self.critic(images)).mean())
        tell(self, batch_idx, batch, loss)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def learn(self, optimizer: Any, loss_of: Any) -> Any:
        if options["toggle"]:
            self.toggle_optimizer(optimizer)
        loss = loss_of()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if options["toggle"]:
            self.untoggle_optimizer(optimizer)
        return loss

    def configure_optimizers(self) -> Any:
        both = [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (self.generator, self.critic)]
        return both, [torch.optim.lr_scheduler.StepLR(each, 1, 0.7) for each in both]


def tell(module: Any, batch_idx: int, batch: Any, loss: Any) -> None:
    optimizers = module.trainer.optimizers
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    at = [module.current_epoch, batch_idx]
    report.add("step", at=at, indices=batch[2].tolist(), loss=loss.item(), rates=rates)


def averaging() -> list[Any]:
    callbacks = pl.callbacks
    if options["kind"] == "swa":
        return [callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2)]
    if options["kind"] == "ema":
        return [callbacks.EMAWeightAveraging(decay=0.8, update_starting_at_step=3)]
    if options["kind"] == "average by epoch":

        class ByEpoch(callbacks.WeightAveraging):  # type: ignore[misc, name-defined]
            def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
                return epoch_idx is not None

        return [ByEpoch()]
    return []


def state_of(callback: Any) -> dict[str, Any]:
    """All that an averaging callback remembers, whether Lightning saves it or not."""
    state = dict(callback.state_dict())
    for name in ("_latest_update_epoch", "_initialized"):
        state[name] = getattr(callback, name, None)
    model = callback._average_model
    return {**state, "model": None if model is None else model.state_dict()}


class Die(pl.Callback):  # type: ignore[misc, name-defined]
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        at = [trainer.current_epoch, batch_idx]
        if die.get("batch") == at:
            kill()
        if die.get("signal") == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        momenta = [each.momentum for each in module.modules() if isinstance(each, nn.BatchNorm1d)]
        report.add(
            "end", weights=digest(module.state_dict()), rng=digest(capture_rng()), momenta=momenta,
            optimizers=[digest(each.state_dict()) for each in trainer.optimizers], step=trainer.global_step,
            schedules=[digest(each.scheduler.state_dict()) for each in trainer.lr_scheduler_configs],
            averaging=[digest(state_of(each)) for each in trainer.callbacks if hasattr(each, "_average_model")],
            accumulate=trainer.accumulate_grad_batches, epochs=[trainer.current_epoch, trainer.max_epochs],
        )  # fmt: skip


def spoil() -> None:
    """Leave one thing out of what a resume does."""
    from ckpt_lightning import averaging as ours

    if options["spoil"] != "none":
        setattr(ours, options["spoil"], lambda *_: None)


def main() -> None:
    log_to_output()
    logging.getLogger(options["package"]).setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    spoil()
    digits = load_digits()
    images = torch.tensor(digits.data[:60] / 16, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target[:60]), torch.arange(60))
    callback = CheckpointCallback(
        options["store"], experiment="digits", every_n_train_steps=options["every"], hooks=hooks_of(options)
    )
    trainer = pl.Trainer(
        max_epochs=options["epochs"], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, enable_checkpointing=options["ours"],
        val_check_interval=options["val_check"],
        callbacks=[*([callback] if options["ours"] else []), *averaging(), Die()],
    )  # fmt: skip
    rivals = options["kind"] == "rivals"
    module = {"rivals": Rivals, "taught": Taught}.get(options["kind"], Classifier)()
    trainer.fit(
        module,
        DataLoader(data, batch_size=10, shuffle=True),
        None if rivals else DataLoader(data, batch_size=60),
    )
    how = callback.resumption
    report.add("begin", how=how.kind if how else None, step=how.step if how else None)
    report.add("after", weights=digest(module.state_dict()))


main()
