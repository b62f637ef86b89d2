"""How long a save keeps the training thread: P3 (copy), P4 (lazy) and P5 (JAX)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import engine, limits, neighbours, states
from benchmarks.results import Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Contender, Samples, race

__all__ = ["run"]

P3 = Goal("P3", "<=", 1.2)
P4 = Goal("P4", "<=", 5.0, "ms")
P5 = Goal("P5", "<=", 0.2)
ORBAX = (neighbours.ORBAX_V0, neighbours.ORBAX_V1)


def run(settings: Settings, results: Results) -> None:
    """PyTorch, then a lazy copy during a forward and a backward pass, then JAX."""
    state = states.make(settings.state("standard"))
    copied = _torch(state, settings, results)
    _lazy(state, copied, settings, results)
    _jax(state, settings, results)


def _torch(state: State, settings: Settings, results: Results) -> float:
    """Returns the seconds of one memcpy."""
    contenders = [
        limits.memcpy(state.bytes_of()),
        Contender("ckpt-core", lambda folder: engine.save_second(state.tree, folder, state.step)),
        Contender("ckpt-core, the first save", lambda folder: engine.save_first(state.tree, folder)),
    ]
    for neighbour in neighbours.ALL:
        if neighbour.stall and neighbour not in ORBAX and neighbour.problem(state.nbytes) is None:
            contenders.append(neighbour.contender(neighbour.stall, state))
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    results.race("stall", f"stall of an asynchronous save, PyTorch, {state.name}", found)
    what = f"stall, PyTorch, copy, {state.name} state"
    memcpy, ours = found["one memcpy"], found["ckpt-core"]
    others = [samples for name, samples in found.items() if name in {each.name for each in neighbours.ALL}]
    results.against_limit("stall", what, ours, memcpy, P3, times=True)
    first = found["ckpt-core, the first save"]
    results.against_limit("stall", "the same, the first save of a process", first, memcpy, times=True)
    results.against_neighbours("stall", "the same against neighbours", ours, others, times=True)
    return memcpy.median


def _jax(state: State, settings: Settings, results: Results) -> None:
    """Arrays of JAX never change, so that a reference will do."""
    what = f"stall, JAX on CPU, {state.name} state"
    absent = neighbours.ORBAX_V0.problem(state.nbytes)
    if absent is not None:
        results.not_measured("stall", what, f"Orbax: {absent}", P5)
        return
    tree = state.as_jax()
    contenders = [Contender("ckpt-core", lambda folder: engine.save_second_jax(tree, folder))]
    contenders += [each.contender(each.stall, state) for each in ORBAX if each.stall is not None]
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    results.race("stall", f"stall of an asynchronous save, JAX on CPU, {state.name}", found)
    others = [found[each.name] for each in ORBAX]
    results.against_neighbours("stall", what, found["ckpt-core"], others, P5, times=True)


# -- lazy ----------------------------------------------------------------------------------------------


def _lazy(state: State, copied: float, settings: Settings, results: Results) -> None:
    """What a step of training takes longer because of a save: all that the loop itself can notice.

    Forward and backward are a sleep of twice a copy's time, so that nothing else runs on the thread. The
    optimizer holds the state and its step changes nothing, so that its time is that of the hooks alone.
    """
    from ckpt_torch import TorchCheckpointer

    what = f"stall, PyTorch, lazy, {state.name} state"
    problem = engine.not_built(TorchCheckpointer, engine.LAZY)
    if problem is not None:
        results.not_measured("stall", what, problem, P4)
        return
    samples = Samples("ckpt-core, lazy")

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        model, optimizer = _still_training(state)
        ckpt = engine.torch_checkpointer(folder, model, optimizer, every_n_steps=1, **engine.LAZY)
        with ckpt:
            steps = ckpt.steps(5)
            for _ in range(2):  # the second turn begins with the save of the first
                next(steps)
                optimizer.step()
            ckpt.manager.wait()

            def run() -> None:
                begin = time.perf_counter()
                next(steps)
                saving = time.perf_counter() - begin
                time.sleep(2 * copied + 0.05)
                begin = time.perf_counter()
                optimizer.step()
                samples.values.append(saving + time.perf_counter() - begin)

            yield run
            ckpt.manager.wait()

    race([Contender(samples.name, start)], settings.rounds, settings.work, warm_up=False)
    results.race("stall", f"stall of a lazy save, PyTorch, {state.name}", {samples.name: samples})
    results.add("stall", what, ours=samples, value=1e3 * samples.median, unit="ms", goal=P4)


def _still_training(state: State) -> tuple[Any, Any]:
    """A model and an optimizer that hold the state's tensors, and change nothing."""
    import torch

    class Still(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> Any:
            return None

    weights = [torch.nn.Parameter(each, requires_grad=False) for each in state.tree["model"].values()]
    optimizer = Still(weights, {})
    for weight, moments in zip(weights, state.tree["optimizer"].values(), strict=True):
        optimizer.state[weight] = moments
    return torch.nn.ParameterList(weights), optimizer
