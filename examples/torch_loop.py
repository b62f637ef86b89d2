"""A plain PyTorch loop on scikit-learn's digits. Run it again and it resumes; kill it and it resumes.

python examples/torch_loop.py --store checkpoints --epochs 4

The lines that were added to the loop end with (1) to (4).
"""

from __future__ import annotations

import argparse
import logging

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import KeepBest, KeepLast
from ckpt_torch import TorchCheckpointer  # (1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    torch.manual_seed(7)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)

    ckpt = TorchCheckpointer(  # (2)
        options.store, experiment="digits-loop", model=model, optimizer=optimizer, scheduler=scheduler,
        loader=loader, every_n_steps=10, every_n_epochs=1, metric="val_loss",
        retention=[KeepLast(3), KeepBest(2)],
    )  # fmt: skip
    for epoch in ckpt.epochs(range(options.epochs)):  # (3) was: in range(options.epochs)
        model.train()
        for batch, target in ckpt.loader:  # (4) was: in loader
            loss = nn.functional.cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            val_loss = nn.functional.cross_entropy(model(images[1500:]), labels[1500:])
        ckpt.evaluated(val_loss=val_loss)  # only for `best`
        print(f"epoch {epoch}: val_loss {val_loss:.4f}")


if __name__ == "__main__":
    main()
