"""Loading with a cold cache, every digest checked: P7, P8 and the second half of P13."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import engine, limits, neighbours, states
from benchmarks.neighbours.contract import Start, Work
from benchmarks.results import Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Contender, Samples, race

__all__ = ["run"]

P7_RAW = Goal("P7", ">=", 0.85)
P7_OTHERS = Goal("P7", ">=", 1.5)
P8 = Goal("P8", "<=", 10.0, "ms")
P8_GROWTH = Goal("P8", "<=", 1.5)
P13 = Goal("P13", "<=", 1.0)
INTO, FRESH = "ckpt-core, into tensors", "ckpt-core, new tensors"
NAMES = {neighbour.name for neighbour in neighbours.ALL}


def run(settings: Settings, results: Results) -> None:
    """Whole states, then one tensor by its name."""
    standard = states.make(settings.state("standard"))
    found = _whole(standard, settings, results)
    others = [samples for name, samples in found.items() if name in NAMES]
    what = f"cold verified load, {standard.name} state"
    raw = found[limits.RAW_READ]
    results.against_limit("load", f"{what}, into tensors", found[INTO], raw, P7_RAW)
    said = "the same against neighbours, which check nothing"
    results.against_neighbours("load", said, found[INTO], others, P7_OTHERS)
    results.against_limit("load", f"{what}, new tensors", found[FRESH], raw)
    tiny = states.make("5,000 tiny tensors")
    found = _whole(tiny, settings, results)
    ours = min((found[INTO], found[FRESH]), key=lambda samples: samples.median)
    others = [samples for name, samples in found.items() if name in NAMES]
    results.against_neighbours("load", f"cold load, {tiny.name}", ours, others, P13, times=True)
    _one_tensor(standard, settings, results)


def _whole(state: State, settings: Settings, results: Results) -> dict[str, Samples]:
    base = settings.work / "load"
    contenders = [limits.raw_read(base / "raw", state.nbytes)]
    kept = _saved_by_us(state, base / "ours")
    contenders.append(Contender(INTO, lambda folder: engine.load_into(state, folder), state.check, keep=kept))
    contenders.append(
        Contender(FRESH, lambda folder: engine.load_fresh(state, folder), state.check, keep=kept)
    )
    failed = []
    everybody = neighbours.ALL if state.name == settings.state("standard") else neighbours.PLAIN
    for number, neighbour in enumerate(everybody):
        if neighbour.save is None or neighbour.load is None or neighbour.problem(state.nbytes) is not None:
            continue
        kept = base / f"neighbour-{number}"
        kept.mkdir()
        try:
            with neighbour.save(state, kept) as save:
                save()
        except Exception as error:
            failed.append(Samples(neighbour.name, problem=f"failed to save: {error}"[:200]))
            continue
        contenders.append(neighbour.contender(neighbour.load, state, check=state.check, keep=kept))
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    found |= {samples.name: samples for samples in failed}
    results.race("load", f"cold load, {state.name}, {state.nbytes / 1e6:,.0f} MB", found)
    shutil.rmtree(base)
    return found


def _saved_by_us(state: State, folder: Path) -> Path:
    folder.mkdir(parents=True)
    with engine.save(state, folder) as save:
        save()
    return folder


def _one_tensor(state: State, settings: Settings, results: Results) -> None:
    """A tensor of the state alone in a checkpoint, and the same one among all of the state."""
    name = "model/h.1.mlp.c_fc.weight"
    alone = State("alone", {"model": {name.partition("/")[2]: state.tensors[name]}})
    base = settings.work / "one"
    contenders = [limits.raw_read(base / "raw", state.tensors[name].nbytes)]
    for label, each in (("ckpt-core", state), ("ckpt-core, alone", alone)):
        kept = _saved_by_us(each, base / label)
        contenders.append(
            Contender(label, lambda folder: engine.one_tensor(name, folder), alone.check, keep=kept)
        )
    for number, neighbour in enumerate(neighbours.ALL):
        one = neighbour.one
        if neighbour.save is None or one is None or neighbour.problem(state.nbytes) is not None:
            continue
        kept = base / f"neighbour-{number}"
        kept.mkdir()
        with neighbour.save(state, kept) as save:
            save()
        contenders.append(neighbour.contender(_of_one(one, name), state, check=alone.check, keep=kept))
    found = race(contenders, settings.rounds, settings.work, warm_up=True)
    results.race("load", f"one tensor of {state.tensors[name].nbytes / 1e6:,.1f} MB, cold", found)
    shutil.rmtree(base)
    ours, raw = found["ckpt-core"], found[limits.RAW_READ]
    results.add(
        "load", "one tensor by name, cold, beyond its bytes",
        ours=ours, limit=raw, value=1e3 * (ours.median - raw.median), unit="ms", goal=P8,
    )  # fmt: skip
    results.add(
        "load", "one tensor of many ÷ a checkpoint of it alone",
        ours=ours, limit=found["ckpt-core, alone"], value=ours.median / found["ckpt-core, alone"].median,
        goal=P8_GROWTH,
    )  # fmt: skip
    others = [samples for each, samples in found.items() if each in NAMES]
    results.against_neighbours("load", "one tensor by name, cold, against neighbours", ours, others)


def _of_one(one: Callable[[str, Path], AbstractContextManager[Work]], name: str) -> Start:
    return lambda state, folder: one(name, folder)
