"""Three small models, each watched by the hook made for it: splats, a voxel grid, a CNN. All is computed here.

python examples/watched_models.py --store checkpoints --plots .

With `--plots` it draws the metric series into a folder (needs matplotlib); docs/watching.md shows them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from ckpt_core import CheckpointManager, SaveNotDoneError
from ckpt_core.watch import GridMonitor, QuaternionCheck, TensorHealth

Series = dict[str, dict[int, float]]


class Splats(nn.Module):
    """Anisotropic Gaussians in space, seen along z: an image is the sum of their projections."""

    def __init__(self, count: int) -> None:
        super().__init__()
        side = math.ceil(math.sqrt(count))
        places = torch.linspace(-0.9, 0.9, side)
        self.mean = nn.Parameter(torch.cartesian_prod(places, places)[:count].clone())
        self.scale = nn.Parameter(torch.full((count, 3), 0.09).log() + 0.3 * torch.randn(count, 3))
        self.rotation = nn.Parameter(functional.normalize(torch.randn(count, 4), dim=1))
        self.weight = nn.Parameter(torch.full((count,), 0.3))

    def forward(self, points: Tensor) -> Tensor:
        w, x, y, z = functional.normalize(self.rotation, dim=1).unbind(1)
        turn = torch.stack(
            [
                *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
                *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            ],
            dim=1,
        ).view(-1, 2, 3)
        stretched = turn * self.scale.exp()[:, None, :]
        inverse = torch.linalg.inv(stretched @ stretched.mT + 1e-4 * torch.eye(2))
        away = points[:, None, :] - self.mean
        return torch.exp(-0.5 * torch.einsum("pni,nij,pnj->pn", away, inverse, away)) @ self.weight


def fit_splats(store: str | Path, steps: int = 160) -> float:
    """Fits splats to sixteen digits in a square. The rotations are normalised after each step, but for the last
    quarter, when somebody has lost the line. Returns the last loss."""
    torch.manual_seed(1)
    digits = torch.tensor(load_digits().images[:16] / 16, dtype=torch.float32)
    image = digits.view(4, 4, 8, 8).permute(0, 2, 1, 3).reshape(-1)
    places = (torch.arange(32) + 0.5) / 16 - 1
    points = torch.cartesian_prod(places, places)
    model = Splats(144)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    watch = QuaternionCheck("rotation", action="tag")
    with CheckpointManager(store, experiment="splats", hooks=[watch]) as manager:
        for step in range(1, steps + 1):
            loss = functional.mse_loss(model(points), image)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step <= steps * 3 // 4:
                with torch.no_grad():
                    model.rotation.copy_(functional.normalize(model.rotation, dim=1))
            if step % 10 == 0:
                manager.save(model.state_dict(), step=step)
    return loss.item()


def signed_distance(points: Tensor) -> Tensor:
    """Of a torus and the ball in its middle; negative inside."""
    ring = torch.stack([points[:, :2].norm(dim=1) - 0.6, points[:, 2]], dim=1).norm(dim=1) - 0.15
    return torch.minimum(ring, points.norm(dim=1) - 0.25)


def fit_grid(store: str | Path, steps: int = 180) -> float:
    """Fits a voxel grid to a distance field, near its surface only: from coarse to fine, 8, 16 and 32 cells a side.
    Returns the last loss."""
    torch.manual_seed(2)
    grid = nn.Parameter(torch.zeros(1, 1, 8, 8, 8))
    watch = GridMonitor("sdf", axes=(2, 3, 4), occupied_above=0.01, fixed=True, action="tag")
    with CheckpointManager(store, experiment="grid", hooks=[watch]) as manager:
        for step in range(1, steps + 1):
            if step in (steps // 3 + 1, 2 * steps // 3 + 1):
                finer = functional.interpolate(grid.detach(), scale_factor=2.0, mode="trilinear")
                grid = nn.Parameter(finer)
            if step % (steps // 3) == 1:
                optimizer = torch.optim.Adam([grid], lr=0.02)
            points = torch.rand(4096, 3) * 2 - 1
            target = signed_distance(points)
            near = target.abs() < 0.2
            inside = points[near].view(1, -1, 1, 1, 3)
            found = functional.grid_sample(grid, inside, align_corners=False, padding_mode="border")
            loss = functional.mse_loss(found.view(-1), target[near])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                manager.save({"sdf": grid}, step=step)
    return loss.item()


def train_digits(store: str | Path, epochs: int = 12) -> str:
    """Trains a CNN on digits with a penalty that drives whole filters to zero, and makes one step of an absurd size
    at last. Returns why that was not saved."""
    torch.manual_seed(3)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-3)
    watch = TensorHealth(each=True, action="veto")
    with CheckpointManager(store, experiment="digits", hooks=[watch]) as manager:
        for epoch in range(1, epochs + 1):
            for chosen in torch.randperm(len(images)).split(64):
                loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                _shrink_filters(model[2].weight, 0.15 * schedule.get_last_lr()[0])
            schedule.step()
            manager.save({"model": model.state_dict()}, step=epoch)
        with torch.no_grad():
            model[5].weight.mul_(float("inf"))
        try:
            manager.save({"model": model.state_dict()}, step=epochs + 1, wait=True)
        except SaveNotDoneError as error:
            return str(error)
    return ""


@torch.no_grad()
def _shrink_filters(weight: Tensor, by: float) -> None:
    """The proximal step of a group lasso over filters: those that do little become exactly zero."""
    norms = weight.flatten(1).norm(dim=1).clamp_min(1e-12)
    weight.mul_((1 - by / norms).clamp_min(0)[:, None, None, None])


def series_of(store: str | Path, experiment: str) -> Series:
    """Every metric series of an experiment: values by step."""
    with CheckpointManager(store, experiment=experiment) as manager:
        catalog = manager.workspace.index.catalog()
        names = catalog.metric_names(experiment)
        return {
            name: {point.step: point.value for point in catalog.metric_series(experiment, name)}
            for name in names
        }


PLOTS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "splats": [
        ("share of violations", {"quaternions/violations/rotation": "violations"}),
        (
            "degrees in 10 steps",
            {"quaternions/drift_mean/rotation": "mean drift", "quaternions/drift_max/rotation": "largest"},
        ),
    ],
    "grid": [
        ("cells a side", {"grid/resolution_0/sdf": "resolution"}),
        ("share of cells", {"grid/occupancy/sdf": "occupied", "grid/dead/sdf": "dead"}),
        ("gradient energy", {"grid/gradient/sdf": "gradient energy"}),
    ],
    "digits": [
        ("share of filters", {"health/dead/model/2.weight": "dead"}),
        (
            "change in an epoch ÷ norm",
            {"health/update/model/0.weight": "first layer", "health/update/model/2.weight": "second"},
        ),
        ("norm", {"health/norm": "all weights"}),
    ],
}


def plot(store: str | Path, folder: Path) -> None:
    """One SVG for each experiment."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ckpt-core", "font.size": 8})
    from matplotlib import pyplot

    for experiment, panels in PLOTS.items():
        found = series_of(store, experiment)
        figure, axes = pyplot.subplots(1, len(panels), figsize=(7.2, 2.1), layout="constrained")
        for axis, (label, lines) in zip(axes, panels, strict=True):
            for name, line in lines.items():
                axis.plot(list(found[name]), list(found[name].values()), marker=".", label=line)
            axis.set(xlabel="epoch" if experiment == "digits" else "step", ylabel=label)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1:
                axis.legend(frameon=False)
        figure.savefig(folder / f"watch-{experiment}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    options = parser.parse_args()
    print(f"splats: loss {fit_splats(options.store):.4f}")
    print(f"grid: loss {fit_grid(options.store):.6f}")
    print(f"digits: {train_digits(options.store)}")
    if options.plots is not None:
        plot(options.store, options.plots)


if __name__ == "__main__":
    main()
