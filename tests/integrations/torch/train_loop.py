"""A plain training loop on scikit-learn's digits, as one writes it, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_torch import TorchCheckpointer, capture_rng, load_weights
from ckpt_torch.wrappers import unwrapped
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "experiment": "digits", "resume": "auto", "resume_data": "auto", "staging": "copy",
    "task": "train", "init_from": None, "second": None, "fault": None, "on_save_error": "report",
    "mechanism": "ours", "form": "bare", "epochs": 3, "every": 3, "every_epochs": None, "samples": 60,
    "workers": 0, "persistent": False, "augment": "none", "mask": False, "stream": False, "norm": True,
    "accumulate": 1, "scheduler": "none", "patience": 0, "evaluate_every": 0, "compile": None, "amp": None,
    "gan": False, "step": "none", "die": {}, "handler": "none", "spoil": "none",
}  # fmt: skip


class Digits(Dataset[Any]):
    poisoned = -1  # the sample that cannot be read

    def __init__(self, samples: int, augment: str) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.data[:samples] / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target[:samples])
        self.augment = augment
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        if index == Digits.poisoned:
            raise RuntimeError("on purpose")
        image = self.images[index]
        if self.augment == "globals":
            image = image + 0.1 * torch.randn(64) + 0.1 * np.random.rand() + 0.1 * random.random()
        elif self.augment == "own":
            image = image + 0.1 * torch.tensor(self.rng.normal(size=64), dtype=torch.float32)
        return image, self.labels[index], index


class Stream(IterableDataset[Any]):
    """The same samples as they come, to each worker its share, shuffled a little by a generator of its own."""

    def __init__(self, data: Digits) -> None:
        self.data = data

    def __iter__(self) -> Any:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        waiting: list[int] = []
        for index in range(worker, len(self.data), workers):
            waiting.append(index)
            if len(waiting) > 5:
                yield self.data[waiting.pop(random.randrange(len(waiting)))]
        while waiting:
            yield self.data[waiting.pop(random.randrange(len(waiting)))]


class Net(nn.Module):
    def __init__(self, *, norm: bool = True, changed: bool = False) -> None:
        super().__init__()
        setattr(self, "trunk" if changed else "body", nn.Linear(64, 32))
        self.between = nn.Sequential(nn.BatchNorm1d(32) if norm else nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(32, 12 if changed else 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.between(self.body(images)))


def masked(samples: list[Any]) -> Any:
    images, labels, indices = torch.utils.data.default_collate(samples)
    return images * (torch.rand(images.shape) > 0.15), labels, indices


class Run:
    """What the loops below share: the data, the model and what goes with it, ways to die, the report."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.die = options, options["die"]
        self.report = Report(options["report"])
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        data = Digits(options["samples"], options["augment"])
        self.loader: Any = DataLoader(
            Stream(data) if options["stream"] else data, batch_size=8, shuffle=None if options["stream"] else True,
            num_workers=options["workers"], persistent_workers=options["persistent"],
            collate_fn=masked if options["mask"] else None,
        )  # fmt: skip
        self.held_out = DataLoader(Digits(40, "none"), batch_size=20)
        self.model: Any = Net(norm=options["norm"])
        if options["compile"]:
            self.model = torch.compile(self.model, backend=options["compile"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler: Any = None
        if options["scheduler"] == "multistep":
            self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [1, 2], gamma=0.5)
        elif options["scheduler"] == "plateau":
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, patience=0, threshold=1.0
            )
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**18, growth_interval=5, enabled=bool(options["amp"])
        )
        self.state: dict[str, Any] = {"best": float("inf"), "bad": 0}

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        amp = self.options["amp"]
        with torch.autocast("cpu", getattr(torch, amp)) if amp else contextlib.nullcontext():
            return nn.functional.cross_entropy(self.model(images), labels) / self.options["accumulate"]

    def backward(self, loss: torch.Tensor) -> None:
        (self.scaler.scale(loss) if self.options["amp"] else loss).backward()

    def optimize(self) -> None:
        if self.options["amp"]:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self, epoch: int, batch: Any) -> float:
        self.model.eval()
        losses: list[float] = []
        with torch.no_grad():
            for images, labels, _ in self.held_out:
                losses.append(nn.functional.cross_entropy(self.model(images), labels).item())
                self.ends("evaluation", epoch, batch)
                self.ends("raise", epoch, ["evaluation", batch])
        self.model.train()
        return sum(losses)

    def ends(self, what: str, epoch: int, batch: Any) -> None:
        """Dies, if this is where it is to."""
        if self.die.get(what) == [epoch, batch]:
            if what == "raise":
                raise RuntimeError("on purpose")
            kill()
        if what == "raise" and self.die.get("signal", [None])[0] == [epoch, batch]:  # in the midst of a step
            os.kill(os.getpid(), getattr(signal, self.die["signal"][1]))

    def done(self, steps: int) -> None:
        self.report.add(
            "end", weights=digest(unwrapped(self.model).state_dict()), optimizer=digest(self.optimizer.state_dict()),
            schedule=digest(self.scheduler.state_dict()) if self.scheduler else None, stopping=self.state,
            scaler=digest(self.scaler.state_dict()), rng=digest(capture_rng()), steps=steps,
        )  # fmt: skip


def train(run: Run, ckpt: TorchCheckpointer, second: TorchCheckpointer | None = None) -> None:
    """The loop with the lines that a user adds to it."""
    options, report = run.options, run.report
    for epoch in ckpt.epochs(range(options["epochs"])):
        run.ends("boundary", epoch, 0)
        if "poisoned" in run.die and run.die["poisoned"][0] == epoch:
            Digits.poisoned = run.die["poisoned"][1]
        run.model.train()
        for batch, (images, labels, indices) in enumerate(ckpt.loader, ckpt.batch):
            loss = run.loss(images, labels)
            run.backward(loss)
            run.ends("raise", epoch, batch)
            stepped = (batch + 1) % options["accumulate"] == 0 or batch + 1 == len(ckpt.loader)
            if stepped:
                run.optimize()
            report.add("step", at=[epoch, batch], indices=indices.tolist(), loss=loss.item(),
                       lr=run.optimizer.param_groups[0]["lr"])  # fmt: skip
            if options["step"] == "batch" or (options["step"] == "step" and stepped):
                ckpt.step(loss=loss)
            if second is not None:
                second.step()
            if options["evaluate_every"] and (batch + 1) % options["evaluate_every"] == 0:
                ckpt.evaluated(val_loss=run.evaluate(epoch, batch))
            run.ends("batch", epoch, batch)
            run.ends("raise", epoch, ["after", batch])
        val = run.evaluate(epoch, "end")
        ckpt.evaluated(val_loss=val)
        report.add("step", at=[epoch, "end"], val=val)
        if options["scheduler"] == "plateau":
            run.scheduler.step(val)
        elif run.scheduler is not None:
            run.scheduler.step()
        run.state["bad"] = run.state["bad"] + 1 if val > run.state["best"] - 0.25 else 0
        run.state["best"] = min(val, run.state["best"])
        if options["patience"] and run.state["bad"] >= options["patience"]:
            break


def train_gan(run: Run, ckpt: TorchCheckpointer, nets: dict[str, Any], optimizers: dict[str, Any]) -> None:
    """Two models, two optimizers; the critic's gradients are not cleared before the generator adds to them."""
    report = run.report
    for epoch in ckpt.epochs(range(run.options["epochs"])):
        for batch, (images, _, indices) in enumerate(ckpt.loader, ckpt.batch):
            fake = nets["generator"](torch.randn(len(images), 6))
            loss = nets["critic"](fake.detach()).mean() - nets["critic"](images).mean()
            loss.backward()
            optimizers["critic"].step()
            optimizers["critic"].zero_grad()
            if batch % 2:
                optimizers["generator"].zero_grad()
                (-nets["critic"](fake).mean()).backward()
                optimizers["generator"].step()
            report.add("step", at=[epoch, batch], indices=indices.tolist(), loss=loss.item())
            run.ends("batch", epoch, batch)
    report.add(
        "end", nets=digest({name: each.state_dict() for name, each in nets.items()}), steps=ckpt.global_step
    )


def train_natively(run: Run) -> None:
    """As PyTorch's tutorials say: `torch.save` of the states of model and optimizer, the epoch and the step."""
    options, report = run.options, run.report
    path = Path(options["store"]) / "checkpoint.pt"
    path.parent.mkdir(exist_ok=True)
    saves = [run.die.get("fsync", 0) // 10]

    def save(epoch: int, step: int) -> None:
        state = {
            "epoch": epoch, "step": step, "model_state_dict": run.model.state_dict(),
            "optimizer_state_dict": run.optimizer.state_dict(), "scheduler_state_dict": run.scheduler.state_dict(),
        }  # fmt: skip
        saves[0] -= 1
        torch.save(state, path)
        if saves[0] == 0:  # it is written from its beginning to its end
            os.truncate(path, path.stat().st_size // 2)
            kill()

    first, skip = 0, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        run.model.load_state_dict(saved["model_state_dict"])
        run.optimizer.load_state_dict(saved["optimizer_state_dict"])
        run.scheduler.load_state_dict(saved["scheduler_state_dict"])
        first, skip = saved["epoch"], saved["step"]
    report.add("begin", how="resumed" if path.exists() else "fresh", step=first * len(run.loader) + skip)
    for epoch in range(first, options["epochs"]):
        run.ends("boundary", epoch, 0)
        run.model.train()
        for batch, (images, labels, indices) in enumerate(run.loader):
            if epoch == first and batch < skip:
                continue
            loss = run.loss(images, labels)
            run.backward(loss)
            run.optimize()
            report.add("step", at=[epoch, batch], indices=indices.tolist(), loss=loss.item(),
                       lr=run.optimizer.param_groups[0]["lr"])  # fmt: skip
            if options["evaluate_every"] and (batch + 1) % options["evaluate_every"] == 0:
                run.evaluate(epoch, batch)
            if (batch + 1) % options["every"] == 0:
                save(epoch, batch + 1)
            run.ends("batch", epoch, batch)
        val = run.evaluate(epoch, "end")
        report.add("step", at=[epoch, "end"], val=val)
        run.scheduler.step()
        run.state["bad"] = run.state["bad"] + 1 if val > run.state["best"] - 0.25 else 0
        run.state["best"] = min(val, run.state["best"])
        save(epoch + 1, 0)
    run.done(options["epochs"] * len(run.loader))


def other_tasks(run: Run) -> None:
    with CheckpointManager(run.options["store"], experiment="digits", metric="val_loss") as manager:
        if run.options["task"] == "evaluate":
            load_weights(run.model, manager)
            run.report.add("evaluated", weights=digest(run.model.state_dict()), value=run.evaluate(0, 0))
            return
        changed = Net(changed=True)
        try:
            load_weights(changed, manager)
        except StateMismatchError as error:
            run.report.add("refused", paths=error.paths)
        fitted = load_weights(changed, manager, strict=False, renames={"body": "trunk"})
        names = ("loaded", "missing", "unexpected", "misshapen", "left_out")
        run.report.add("fitted", **{name: getattr(fitted, name) for name in names})


def handle_signals(options: dict[str, Any], report: Report) -> None:
    if options["handler"] == "python":
        for name in ("SIGTERM", "SIGUSR1"):
            signal.signal(getattr(signal, name), lambda number, _: report.add("handled", signal=number))
    elif options["handler"] == "exit":
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(3))
    elif options["handler"] == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def spoil(what: str, ckpt: TorchCheckpointer) -> None:
    """Break one thing that a resume restores: what is compared afterwards must show it."""
    training = ckpt._training
    if what == "rng":
        training._rng = None
    elif what == "data":
        training.loaders["train"]._pending = None
    elif what == "optimizer":
        training.objects["optimizer"].state.clear()
    elif what == "scheduler":
        training.objects["scheduler"].last_epoch += 1
    elif what == "state":
        ckpt.state.update(best=-1.0, bad=7)
    elif what == "weights":
        nn.init.zeros_(training.objects["model"].head.bias)
    elif what == "buffers":
        training.objects["model"].between[0].reset_running_stats()


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    log_to_output()
    torch.set_num_threads(1)
    run = Run(options)
    handle_signals(options, run.report)
    if options["task"] != "train":
        other_tasks(run)
        return
    if options["mechanism"] == "native":
        train_natively(run)
        return
    objects: dict[str, Any] = {"model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler}
    if options["amp"]:
        objects["scaler"] = run.scaler
    if options["gan"]:
        nets = {
            "generator": nn.Linear(6, 64),
            "critic": nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 1)),
        }
        optimizers = {name: torch.optim.Adam(each.parameters(), 1e-2) for name, each in nets.items()}
        objects = {"nets": nets, "optimizers": optimizers}
    second = None
    if options["second"]:
        second = TorchCheckpointer(options["store"], model=run.model, resume=None, **options["second"])

    ckpt = TorchCheckpointer(
        store_of(options), experiment=options["experiment"], loader=run.loader, state=run.state,
        every_n_steps=options["every"], every_n_epochs=options["every_epochs"], resume=options["resume"],
        resume_data=options["resume_data"], staging=options["staging"], metric="val_loss", init_from=options["init_from"],
        hooks=hooks_of(options), on_save_error=options["on_save_error"], **objects,
    )  # fmt: skip
    how = ckpt.resumption
    run.report.add("begin", how=how.kind, step=how.step, attempt=ckpt.manager.attempt.number)
    if options["init_from"]:
        run.report.add("started", weights=digest(run.model.state_dict()))
    spoil(options["spoil"], ckpt)
    with ckpt if options["form"] == "with" else contextlib.nullcontext():
        if options["gan"]:
            train_gan(run, ckpt, nets, optimizers)
            return
        train(run, ckpt, second)
    if second is not None:
        second.finish()
    run.done(ckpt.global_step)
    run.report.add("series", points=series_of(ckpt.manager))


if __name__ == "__main__":
    main()
