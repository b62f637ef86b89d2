"""A training loop with Lightning's Fabric on scikit-learn's digits, for the tests to kill. Not a test itself.

Its one argument is a JSON object of options; see `OPTIONS`.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_torch import TorchCheckpointer, capture_rng
from contract.script import hooks_of, log_to_output
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "die": {}, "workers": 0, "every": 2, "epochs": 3, "ours": True,
    "precision": "32-true", "fail": None, "wrapped": True,
}  # fmt: skip
options: dict[str, Any] = OPTIONS | json.loads(sys.argv[1])
report = Report(options["report"])


def augmented(samples: list[Any]) -> Any:
    images, labels, indices = torch.utils.data.default_collate(samples)
    return images + 0.1 * torch.randn(images.shape), labels, indices


def main() -> None:
    log_to_output()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=1, precision=options["precision"])
    fabric.launch()
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.data[:60] / 16, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target[:60]), torch.arange(60))
    module = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 10))
    model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=1e-2))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    loader: Any = DataLoader(
        data, batch_size=8, shuffle=True, collate_fn=augmented, num_workers=options["workers"]
    )
    if options["wrapped"]:
        loader = fabric.setup_dataloaders(loader)
    epochs: Any = range(options["epochs"])
    ckpt = None
    if options["ours"]:
        ckpt = TorchCheckpointer(
            options["store"], experiment="digits", model=model, optimizer=optimizer, scheduler=scheduler,
            loader=loader, every_n_steps=options["every"], hooks=hooks_of(options),
        )  # fmt: skip
        report.add("begin", how=ckpt.resumption.kind, step=ckpt.resumption.step)
        epochs, loader = ckpt.epochs(epochs), ckpt.loader
    for epoch in epochs:
        for number, (batch, labels, indices) in enumerate(loader, ckpt.batch if ckpt else 0):
            batch, labels = fabric.to_device((batch, labels))
            loss = nn.functional.cross_entropy(model(batch), labels)
            report.add("step", at=[epoch, number], indices=indices.tolist(), loss=loss.item())
            if options["fail"] == [epoch, number]:
                raise RuntimeError("on purpose")
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if options["die"].get("batch") == [epoch, number]:
                kill()
    report.add(
        "end", weights=digest(module.state_dict()), optimizer=digest(optimizer.state_dict()),
        schedule=digest(scheduler.state_dict()), rng=digest(capture_rng()),
    )  # fmt: skip


main()
