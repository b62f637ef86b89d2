"""A training run with a save every ten steps against the same run without any: P6.

A byte-level language model learns the source of Python's standard library. Each way to save gets the same
model, the same data and the same number of steps; the run is over when its last save is durable.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import engine, neighbours
from benchmarks.neighbours import dcp, moonclip, torch_checkpointing
from benchmarks.results import Goal, Results, Settings
from benchmarks.timing import Contender, make_durable, race

if TYPE_CHECKING:
    import torch

__all__ = ["run"]

P6 = Goal("P6", "<=", 1.03)
EVERY = 10
NONE = "no saves"

Saving = Callable[["Run", Path, int], Iterator[int]]
"""Numbers of the steps to make, from 1; saves between them, and is at its end when all is durable."""
Saver = Callable[["Run", int], object]


@dataclass
class Run:
    """One training run: its model, its optimizer, and what one step is."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], None]

    def state(self) -> dict[str, Any]:
        """What is saved."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def run(settings: Settings, results: Results) -> None:
    """The run itself, the run with each way to save, in turn."""
    from ckpt_torch import TorchCheckpointer

    steps = 20 if settings.quick else 60
    size = (64, 2, 16, 2) if settings.quick else (256, 6, 64, 16)
    contenders = [_contender(NONE, _nothing, size, steps), _contender("ckpt-core", _ours, size, steps)]
    lazy = engine.not_built(TorchCheckpointer, engine.LAZY)
    if lazy is None:
        contenders.append(_contender("ckpt-core, lazy", _ours_lazy, size, steps))
    else:
        results.not_measured("training", "training with saves ÷ without: ckpt-core, lazy", lazy)
    for neighbour, saving in NEIGHBOURS.items():
        if neighbour.problem() is None and (not settings.quick or neighbour in QUICK):
            contenders.append(_contender(neighbour.name, saving, size, steps, optional=True))
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    results.race("training", f"a training run of {steps} steps, a save every {EVERY}", found)
    for name, samples in found.items():
        if name == NONE:
            continue
        mine = name.startswith("ckpt-core")
        if not samples:
            results.not_measured("training", f"training with saves ÷ without: {name}", samples.problem or "")
            continue
        results.add(
            "training", f"training with saves ÷ without: {name}", ours=samples if mine else None,
            neighbour=None if mine else samples, limit=found[NONE], value=samples.median / found[NONE].median,
            goal=P6 if name == "ckpt-core" else None,
        )  # fmt: skip


def _contender(
    name: str, saving: Saving, size: tuple[int, int, int, int], steps: int, *, optional: bool = False
) -> Contender:
    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        training = _training(*size)
        training.step()  # the optimizer makes its state now

        def work() -> None:
            for _ in saving(training, folder, steps):
                training.step()

        yield work

    return Contender(name, start, optional=optional)


def _text() -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))[: 1 << 20]


def _training(width: int, layers: int, context: int, batch: int) -> Run:
    import torch
    from torch import nn

    torch.manual_seed(7)
    text = torch.frombuffer(bytearray(_text()), dtype=torch.uint8).long()
    block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(256, width),
            "blocks": nn.TransformerEncoder(block, layers, enable_nested_tensor=False),
            "head": nn.Linear(width, 256),
        }
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mask = nn.Transformer.generate_square_subsequent_mask(context)

    def step() -> None:
        starts = torch.randint(len(text) - context - 1, (batch,))
        rows = torch.stack([text[begin : begin + context + 1] for begin in starts])
        hidden = model["blocks"](model["embed"](rows[:, :-1]), mask=mask, is_causal=True)
        loss: Any = nn.functional.cross_entropy(model["head"](hidden).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Run(model, optimizer, step)


# -- ways to save --------------------------------------------------------------------------------------


def _nothing(training: Run, folder: Path, steps: int) -> Iterator[int]:
    yield from range(1, steps + 1)


def _ours(training: Run, folder: Path, steps: int, **options: Any) -> Iterator[int]:
    ckpt = engine.torch_checkpointer(
        folder, training.model, training.optimizer, every_n_steps=EVERY, **options
    )
    with ckpt:
        yield from ckpt.steps(steps)


def _ours_lazy(training: Run, folder: Path, steps: int) -> Iterator[int]:
    yield from _ours(training, folder, steps, **engine.LAZY)


def _every(saving: Callable[[Run, Path], AbstractContextManager[Saver]]) -> Saving:
    """A neighbour's way: told to save by hand, after every so many steps."""

    def run(training: Run, folder: Path, steps: int) -> Iterator[int]:
        with saving(training, folder) as save:
            for number in range(1, steps + 1):
                yield number
                if number % EVERY == 0:
                    save(training, number)

    return run


@contextmanager
def _torch(training: Run, folder: Path) -> Iterator[Saver]:
    import torch

    def save(training: Run, step: int) -> None:
        torch.save(training.state(), folder / f"{step}.pt")
        make_durable(folder / f"{step}.pt")

    yield save


@contextmanager
def _lightning(training: Run, folder: Path) -> Iterator[Saver]:
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    io = AsyncCheckpointIO(TorchCheckpointIO())
    try:
        yield lambda training, step: io.save_checkpoint(training.state(), folder / f"{step}.ckpt")
    finally:
        io.teardown()


@contextmanager
def _dcp(training: Run, folder: Path) -> Iterator[Saver]:
    module, stager = dcp.module(), dcp.held_stager()
    pending: list[Any] = []

    def save(training: Run, step: int) -> None:
        if pending:
            pending.pop().result()
        writer = module.FileSystemWriter(folder / str(step), sync_files=True)
        saving = module.async_save(training.state(), storage_writer=writer, async_stager=stager, no_dist=True)
        pending.append(getattr(saving, "upload_completion", saving))

    try:
        yield save
        pending.pop().result()
    finally:
        stager.close()


@contextmanager
def _torch_checkpointing(training: Run, folder: Path) -> Iterator[Saver]:
    manager = torch_checkpointing.asynchronous()
    try:
        yield lambda training, step: manager.save(str(folder / str(step)), training.state())
    finally:
        manager.close()


@contextmanager
def _moonclip(training: Run, folder: Path) -> Iterator[Saver]:
    manager = moonclip.manager_at(folder)
    yield lambda training, step: manager.save(step=step, model=training.model, optimizer=training.optimizer)
    manager.flush()


NEIGHBOURS: dict[neighbours.Neighbour, Saving] = {
    neighbours.TORCH: _every(_torch),
    neighbours.LIGHTNING: _every(_lightning),
    neighbours.DCP_1: _every(_dcp),
    neighbours.TORCH_CHECKPOINTING: _every(_torch_checkpointing),
    neighbours.MOONCLIP: _every(_moonclip),
}
QUICK = (neighbours.TORCH, neighbours.DCP_1, neighbours.MOONCLIP)
"""Those that start no process of their own and import little."""
