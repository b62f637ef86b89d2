"""Every checkpoint is of one instant: with copies made at once, and with those made while training goes on.

A real training saves at every step, and a synchronous copy is taken at the same instant; every checkpoint that is
loaded must equal it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_core import CheckpointManager, SaveNotDoneError, UsageError
from ckpt_core.pipeline import staging
from ckpt_core.stores import MemoryStore
from ckpt_torch import TorchCheckpointer
from ckpt_torch.lazy import LazyParameters
from contract.training import digest

STEPS = 6

Made = tuple[nn.Module, torch.optim.Optimizer, Callable[[int], None]]


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    middle: nn.Module = nn.BatchNorm1d(64) if norm else nn.ReLU()
    return nn.Sequential(nn.Linear(16, 64), middle, nn.Dropout(0.2), nn.Linear(64, 4))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(32, 16, generator=generator), torch.randint(0, 4, (32,), generator=generator)
    return nn.functional.cross_entropy(model(inputs), labels)


def plain(optimizer: Callable[[Any], torch.optim.Optimizer], norm: bool = False) -> Made:
    model = network(norm)
    made = optimizer(model.parameters())

    def step(number: int) -> None:
        made.zero_grad()
        loss_of(model, number).backward()
        made.step()

    return model, made, step


def accumulated() -> Made:
    model = network()
    made = torch.optim.AdamW(model.parameters())

    def step(number: int) -> None:
        for part in range(3):
            loss_of(model, 10 * number + part).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        made.step()
        made.zero_grad()

    return model, made, step


def averaged() -> Made:
    model = network(norm=True)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    both = nn.ModuleDict({"model": model, "average": average})
    made = torch.optim.AdamW(model.parameters())

    def step(number: int) -> None:
        made.zero_grad()
        loss_of(model, number).backward()
        average.update_parameters(model)  # before the step: while copies may still be made
        made.step()

    return both, made, step


def scaled() -> Made:
    model = network()
    made = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu")

    def step(number: int) -> None:
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, number)
        scaler.scale(loss).backward()
        scaler.unscale_(made)
        scaler.step(made)
        scaler.update()

    return model, made, step


CASES: dict[str, Callable[[], Made]] = {
    "SGD": lambda: plain(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "AdamW, foreach": lambda: plain(lambda p: torch.optim.AdamW(p, foreach=True)),
    "AdamW, fused": lambda: plain(lambda p: torch.optim.AdamW(p, fused=True)),
    "AdamW, single": lambda: plain(lambda p: torch.optim.AdamW(p, foreach=False)),
    "BatchNorm": lambda: plain(lambda p: torch.optim.AdamW(p), norm=True),
    "accumulation and clipping": accumulated,
    "an average": averaged,
    "GradScaler": scaled,
}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Late copies are made at the last moment at which they may be: when somebody waits for them."""
    here, waited, original = threading.get_ident(), threading.Event(), staging._copy

    def copied(leaf: Any, out: Any) -> None:
        if threading.get_ident() != here:
            assert waited.wait(60)
        original(leaf, out)

    monkeypatch.setattr(staging, "_copy", copied)
    yield waited
    waited.set()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("mode", ["copy", "lazy", "lazy, as late as may be"])
def test_every_checkpoint_is_of_one_instant(
    make: Callable[[], Made], mode: str, request: pytest.FixtureRequest
) -> None:
    model, optimizer, step = make()
    lazy = LazyParameters(lambda: [optimizer]) if mode != "copy" else None
    if lazy is not None and mode != "lazy":
        waited = request.getfixturevalue("late")
        begin = lazy.begin

        def begin_late(wait: Callable[[], None]) -> bool:
            waited.clear()
            return begin(lambda: (waited.set(), wait())[1])

        lazy.begin = begin_late  # type: ignore[method-assign]
    truth = []
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=2) as manager:
        handles = []
        for number in range(1, STEPS + 1):
            step(number)
            truth.append(digest(copy.deepcopy(state_of(model, optimizer))))
            handles.append(manager.save(state_of(model, optimizer), step=number, lazy=lazy))
            if lazy is not None and mode != "lazy" and number > 1:
                assert not handles[-1].done()
        if lazy is not None:
            lazy._wait()
        for handle in handles:
            handle.result(60)
        for number in range(1, STEPS + 1):
            assert digest(manager.load(f"step={number}")) == truth[number - 1], f"step {number} is torn"
    if lazy is not None:
        lazy.close()


def test_without_waiting_they_would_be_torn(late: threading.Event) -> None:
    """That the comparison above sees something."""
    model, optimizer, step = CASES["AdamW, fused"]()
    lazy = LazyParameters(lambda: [optimizer])
    lazy._hook.remove()
    lazy.changed = lambda: None  # type: ignore[method-assign] # the second guard would notice
    step(1)
    truth = digest(copy.deepcopy(state_of(model, optimizer)))
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        handle = manager.save(state_of(model, optimizer), step=1, lazy=lazy)
        step(2)
        late.set()
        handle.result(60)
        assert digest(manager.load("step=1")) != truth
    lazy.close()


def test_parameters_changed_by_somebody_else_give_the_save_up_and_copying_back(
    late: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, step = CASES["AdamW, foreach"]()
    lazy = LazyParameters(lambda: [optimizer])
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        step(1)
        handle = manager.save(state_of(model, optimizer), step=1, lazy=lazy)
        with torch.no_grad():
            next(model.parameters()).clamp_(-0.01, 0.01)
        late.set()
        error = handle.exception(60)
        assert isinstance(error, SaveNotDoneError)
        assert error.kind == "changed"
        late.clear()
        truth = digest(copy.deepcopy(state_of(model, optimizer)))
        handle = manager.save(state_of(model, optimizer), step=2, lazy=lazy)
        with torch.no_grad():
            next(model.parameters()).zero_()
        handle.result(60)
        assert digest(manager.load("step=2")) == truth
    assert caplog.text.count("from now on everything is copied before training goes on") == 1
    lazy.close()


def test_a_closed_one_holds_no_optimizer_up() -> None:
    _, optimizer, step = CASES["SGD"]()
    lazy = LazyParameters(lambda: [optimizer])
    lazy.begin(lambda: pytest.fail("waited for"))
    lazy.close()
    step(1)


def test_a_checkpointer_copies_so_if_it_is_told_to() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    ckpt = TorchCheckpointer(
        MemoryStore(), experiment="x", model=model, optimizer=optimizer, every_n_steps=1, staging="lazy"
    )
    assert isinstance(ckpt.session.lazy, LazyParameters)
    for number in ckpt.steps(3):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()
    with pytest.raises(UsageError, match="staging is 'later'"):
        TorchCheckpointer(MemoryStore(), experiment="x", model=model, staging="later")  # type: ignore[arg-type]
