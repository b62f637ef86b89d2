"""A plain training loop on scikit-learn's digits, as one writes it, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ckpt_core import BaseHook, HookContext, HookEvent
from ckpt_torch import TorchCheckpointer, capture_rng
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "resume": "auto", "resume_data": "auto", "epochs": 3, "every": 3,
    "every_epochs": None, "samples": 60, "workers": 0, "persistent": False, "augment": "none", "mask": False,
    "norm": True, "accumulate": 1, "scheduler": "none", "patience": 0, "die": {}, "handler": "none",
    "step_each_batch": False, "spoil": "none", "scaler": False,
}  # fmt: skip


class Digits(Dataset[Any]):
    def __init__(self, samples: int, augment: str) -> None:
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
            kill()


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    report, die = Report(options["report"]), options["die"]
    torch.set_num_threads(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    if options["handler"] == "python":
        for name in ("SIGTERM", "SIGUSR1"):
            signal.signal(getattr(signal, name), lambda number, _: report.add("handled", signal=number))
    elif options["handler"] == "exit":
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(3))
    elif options["handler"] == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    data = Digits(options["samples"], options["augment"])
    loader = DataLoader(
        data, batch_size=8, shuffle=True, num_workers=options["workers"],
        persistent_workers=options["persistent"], collate_fn=masked if options["mask"] else None,
    )  # fmt: skip
    layers = [nn.Linear(64, 32), nn.BatchNorm1d(32) if options["norm"] else nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler: Any = None
    if options["scheduler"] == "multistep":
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)
    elif options["scheduler"] == "plateau":
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
    state = {"best": float("inf"), "bad": 0}

    with TorchCheckpointer(
        options["store"], experiment="digits", model=model, optimizer=optimizer, scheduler=scheduler,
        loader=loader, state=state, every_n_steps=options["every"], every_n_epochs=options["every_epochs"],
        resume=options["resume"], resume_data=options["resume_data"], metric="val_loss",
        hooks=[Kill(die["saved"])] if "saved" in die else [],
    ) as ckpt:  # fmt: skip
        report.add(
            "begin", how=ckpt.resumption.kind, step=ckpt.resumption.step, attempt=ckpt.manager.attempt.number
        )
        spoil(options["spoil"], ckpt)
        seen = 0
        for epoch in ckpt.epochs(options["epochs"]):
            model.train()
            for images, labels, indices in ckpt.batches():
                loss = nn.functional.cross_entropy(model(images), labels) / options["accumulate"]
                loss.backward()
                seen += 1
                batch = loop_batch(ckpt, epoch)
                last = (batch + 1) * 8 >= len(data)
                stepped = (batch + 1) % options["accumulate"] == 0 or last
                if stepped:
                    optimizer.step()
                    optimizer.zero_grad()
                report.add("step", at=[epoch, batch], indices=indices.tolist(), loss=loss.item(),
                           lr=optimizer.param_groups[0]["lr"])  # fmt: skip
                if stepped or options["step_each_batch"]:
                    ckpt.step(loss=loss)
                if die.get("batch") == [epoch, batch]:
                    kill()
                if die.get("signal", [None])[0] == [epoch, batch]:
                    os.kill(os.getpid(), getattr(signal, die["signal"][1]))
                if die.get("raise") == [epoch, batch]:
                    raise RuntimeError("on purpose")
            model.eval()
            with torch.no_grad():
                val = nn.functional.cross_entropy(model(data.images), data.labels).item()
            ckpt.evaluated(val_loss=val)
            report.add("step", at=[epoch, "end"], val=val)
            if options["scheduler"] == "plateau":
                scheduler.step(val)
            elif scheduler is not None:
                scheduler.step()
            state["bad"] = state["bad"] + 1 if val > state["best"] - 0.25 else 0
            state["best"] = min(val, state["best"])
            if options["patience"] and state["bad"] >= options["patience"]:
                break
    report.add(
        "end", weights=digest(model.state_dict()), optimizer=digest(optimizer.state_dict()), state=state,
        rng=digest(capture_rng()), steps=ckpt.global_step, epoch=ckpt.epoch,
    )  # fmt: skip


def loop_batch(ckpt: TorchCheckpointer, epoch: int) -> int:
    """The number of the batch in its epoch, also after a resume."""
    del epoch
    return ckpt._loaders["train"].delivered - 1


def spoil(what: str, ckpt: TorchCheckpointer) -> None:
    """Break one thing that a resume restores: what is compared afterwards must show it."""
    if what == "rng":
        ckpt._rng = None
    elif what == "data":
        ckpt._loaders["train"]._pending = None
    elif what == "optimizer":
        ckpt._objects["optimizer"].state.clear()
    elif what == "state":
        ckpt.state.update(best=-1.0, bad=7)


if __name__ == "__main__":
    main()
