"""Bytes written against bytes changed: P9. No time is measured here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine, neighbours, states
from benchmarks.neighbours import moonclip
from benchmarks.results import Curve, Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Samples

__all__ = ["run"]

P9 = Goal("P9", "<=", 1.02)
P9_NOTHING = Goal("P9", "<=", 0.0, "MB")
SHARES = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def run(settings: Settings, results: Results) -> None:
    """What people change between two saves, then the curve over an embedding's rows."""
    lora = states.make(settings.state("LoRA"))
    adapters = states.flat(lora.tree["adapters"]).values()
    _case(settings, results, "LoRA, the base frozen", lora, adapters)
    del lora
    standard = states.make(settings.state("standard"))
    _case(settings, results, "half of the layers frozen", standard, states.halves(standard))
    one = [standard.tree["model"]["h.0.mlp.c_fc.weight"]]
    _case(settings, results, "one tensor changed", standard, one)
    _case(settings, results, "nothing changed", standard, ())
    del standard
    _rows(settings, results)


def _case(settings: Settings, results: Results, name: str, state: State, changing: Iterable[Any]) -> None:
    tensors = list(changing)

    def change() -> None:
        for tensor in tensors:
            tensor.add_(1)

    changed = sum(tensor.nbytes for tensor in tensors)
    written, manifest = _written(settings.work, state, change)
    ours = Samples("ckpt-core", "B", [written])
    others = _others(settings.work, state, change)
    found = {ours.name: ours, others.name: others, "bytes changed": Samples("bytes changed", "B", [changed])}
    results.race("dedup", f"bytes written by a second save: {name}", found)
    said = f"and a manifest of {manifest / 1e3:,.0f} kB" + (
        f"; moonclip: {others.problem}" if others.problem else ""
    )
    value = (written - manifest) / changed if changed else (written - manifest) / 1e6
    results.add(
        "dedup", f"bytes written ÷ changed: {name}" if changed else f"bytes written: {name}",
        ours=ours, neighbour=others if others else None, limit=found["bytes changed"], value=value,
        unit="" if changed else "MB", goal=P9 if changed else P9_NOTHING,
        note=said,
    )  # fmt: skip


def _written(work: Path, state: State, change: Callable[[], object]) -> tuple[int, int]:
    """Bytes of the files that a second save adds to a store, and those of its manifest among them."""
    folder = work / "dedup"
    with engine.manager_at(folder) as manager:
        manager.save(state.tree, step=1, wait=True)
        before = _files(folder)
        change()
        manager.save(state.tree, step=2, wait=True)
        after = _files(folder)
    shutil.rmtree(folder, ignore_errors=True)
    added = {name: size - before.get(name, 0) for name, size in after.items()}
    return sum(added.values()), sum(size for name, size in added.items() if name.startswith("checkpoints/"))


def _files(folder: Path) -> dict[str, int]:
    """Sizes of a store's files by name. The catalog is an index of them, and not counted."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("catalog.db")
    }


def _others(work: Path, state: State, change: Callable[[], object]) -> Samples:
    """moonclip is the only neighbour that writes less than everything."""
    samples = Samples("moonclip", "B")
    samples.problem = neighbours.MOONCLIP.problem(state.nbytes)
    if samples.problem is not None:
        return samples
    folder = work / "dedup"
    try:
        manager = moonclip.manager_at(folder)
        manager.save(step=1, extra={"state": state.tree})
        manager.flush()
        before = sum(_files(folder).values())
        change()
        manager.save(step=2, extra={"state": state.tree})
        manager.flush()
        samples.values.append(sum(_files(folder).values()) - before)
    except Exception as error:
        samples.problem = f"failed: {error}"[:200]
    shutil.rmtree(folder, ignore_errors=True)
    return samples


def _rows(settings: Settings, results: Results) -> None:
    """Rows of an embedding changed here and there: a chunk is written anew if one of its rows changed."""
    state = states.embedding(100_000 if not settings.quick else 24_000)
    weight = state.tree["model"]["embedding.weight"]
    rows, width = weight.shape
    random = np.random.default_rng(5)
    scattered, together, delta = [], [], []
    for share in SHARES:
        count = max(1, int(rows * share))
        places = random.choice(rows, count, replace=False)

        def change(places: Any = places) -> None:
            weight[places] += 1

        def change_head(count: int = count) -> None:
            weight[:count] += 1

        changed = count * width * 4
        scattered.append((share, _written(settings.work, state, change)[0] / changed))
        together.append((share, _written(settings.work, state, change_head)[0] / changed))
        others = _others(settings.work, state, change)
        if others:
            delta.append((share, others.median / changed))
    lines = {
        "ckpt-core, rows here and there": scattered,
        "ckpt-core, rows side by side": together,
        "moonclip, rows here and there": delta,
    }
    for line, points in lines.items():
        if points:
            results.curves.append(
                Curve("embedding", line, "share of rows changed", "bytes written ÷ changed", tuple(points))
            )
    said = ", ".join(f"{share:g}: {ratio:,.1f}" for share, ratio in scattered)
    results.add(
        "dedup", f"embedding of {state.nbytes / 1e6:,.0f} MB, 1 % of rows changed here and there",
        value=dict(scattered)[0.01], note=f"by share of rows: {said}",
    )  # fmt: skip
