"""Saving until all is durable, every byte under a SHA-256: P1, P2 and the first half of P13."""

from __future__ import annotations

import importlib.util

from benchmarks import engine, limits, neighbours, states
from benchmarks.results import Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Contender, Samples, race

__all__ = ["run"]

P1 = Goal("P1", ">=", 0.95)
P2 = Goal("P2", ">=", 1.3)
P13 = Goal("P13", "<=", 1.0)
OURS, BLAKE3 = "ckpt-core", "ckpt-core, blake3"


def run(settings: Settings, results: Results) -> None:
    """Every state against every neighbour that can save it."""
    standard = states.make(settings.state("standard"))
    found = _race(standard, settings, results, raw=True)
    ours, others = found[OURS], _others(found)
    results.against_limit(
        "save", f"durable verified save, {standard.name} state", ours, found[limits.RAW_WRITE], P1
    )
    results.against_neighbours("save", "the same against neighbours, which check nothing", ours, others, P2)
    results.against_limit(
        "save", "the same against SHA-256 alone, one core", ours, found["SHA-256, one core"]
    )
    if found.get(BLAKE3):
        results.against_limit(
            "save",
            'the same with digest="blake3", against a raw write',
            found[BLAKE3],
            found[limits.RAW_WRITE],
        )
    del standard
    for name, goal in (("5,000 tiny tensors", P13), ("bf16", None), ("one tensor", None)):
        state = states.make(settings.state(name))
        found = _race(state, settings, results, raw=False)
        what = f"durable save, {state.name}"
        results.against_neighbours("save", what, found[OURS], _others(found), goal, times=goal is P13)


def _race(state: State, settings: Settings, results: Results, *, raw: bool) -> dict[str, Samples]:
    contenders = [Contender(OURS, lambda folder: engine.save(state, folder))]
    if raw:
        sources = state.bytes_of()
        if importlib.util.find_spec("blake3") is not None:
            contenders.append(Contender(BLAKE3, lambda folder: engine.save(state, folder, digest="blake3")))
        contenders += [limits.raw_write(state.nbytes), limits.memcpy(sources), limits.sha256(sources)]
    for neighbour in neighbours.ALL if raw else neighbours.PLAIN:
        if neighbour.save is not None and neighbour.problem(state.nbytes) is None:
            contenders.append(neighbour.contender(neighbour.save, state))
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    results.race("save", f"durable save, {state.name}, {state.nbytes / 1e6:,.0f} MB", found)
    return found


def _others(found: dict[str, Samples]) -> list[Samples]:
    names = {neighbour.name for neighbour in neighbours.ALL}
    return [samples for name, samples in found.items() if name in names]
