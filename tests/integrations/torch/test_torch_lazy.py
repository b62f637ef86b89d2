"""Every checkpoint is of one instant: with copies made at once, and with those made while training goes on.

A real training saves at every step, and a synchronous copy is taken at the same instant; every checkpoint that is
loaded must equal it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_core import CheckpointManager, SaveNotDoneError, UsageError
from ckpt_core.stores import MemoryStore
from ckpt_torch import TorchCheckpointer
from ckpt_torch.lazy import LazyParameters
from contract.instants import MODES, Instants, LateCopies
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


class Ascending(torch.optim.SGD):
    """Changes the parameters before it calls its closure, as sharpness-aware minimisation does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(0.01)
        return super().step(closure)


def enclosed(optimizer: Callable[[Any], torch.optim.Optimizer], *, named: bool = False) -> Made:
    model = network()
    made = optimizer(model.parameters())

    def step(number: int) -> None:
        def closure() -> float:
            made.zero_grad()
            loss = loss_of(model, number)
            loss.backward()
            return loss.item()

        made.step(closure=closure) if named else made.step(closure)

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
    "a closure": lambda: enclosed(lambda p: torch.optim.AdamW(p, fused=True)),
    "a closure that is named": lambda: enclosed(torch.optim.AdamW, named=True),
    "LBFGS": lambda: enclosed(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4)),
    "an optimizer that begins before its closure": lambda: enclosed(lambda p: Ascending(p, lr=0.1)),
}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    copies = LateCopies(monkeypatch)
    yield copies
    copies.release.set()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("mode", MODES)
def test_every_checkpoint_is_of_one_instant(
    make: Callable[[], Made], mode: str, request: pytest.FixtureRequest
) -> None:
    model, optimizer, step = make()
    lazy = LazyParameters.chosen(mode.partition(",")[0], lambda: [optimizer])
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants()
    instants.watch(lambda: state_of(model, optimizer))
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=2, hooks=[instants]) as manager:
        for number in range(1, STEPS + 1):
            step(number)
            handle = manager.save(state_of(model, optimizer), step=number, lazy=lazy)
            assert late is None or not handle.done()
        if lazy is not None:
            lazy.close()
        manager.wait()
        assert len(instants.truth) == STEPS
        instants.compare(manager)
    assert late is None or late.made > STEPS


def test_without_waiting_they_would_be_torn(late: LateCopies) -> None:
    """That the comparison above sees something."""
    model, optimizer, step = CASES["AdamW, fused"]()
    lazy = LazyParameters(lambda: [optimizer])
    lazy._hook.remove()
    lazy.changed = lambda: None  # type: ignore[method-assign] # the second guard would notice
    step(1)
    truth = digest(state_of(model, optimizer))
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        handle = manager.save(state_of(model, optimizer), step=1, lazy=lazy)
        step(2)
        late.release.set()
        handle.result(60)
        assert digest(manager.load("step=1")) != truth
    lazy.close()


def clamped(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.clamp_(-0.01, 0.01)


def decayed_uncounted(parameter: nn.Parameter) -> None:
    """Every value: of a write that PyTorch does not count, only what befalls the samples is seen."""
    parameter.data.mul_(0.9)


def replayed(parameter: nn.Parameter) -> None:
    """As a kernel that no line of Python calls."""
    parameter.detach().numpy()[:] *= 1.5


CHANGES = [clamped, decayed_uncounted, replayed]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_changed_by_somebody_else_give_the_save_up_and_copying_back(
    change: Callable[[nn.Parameter], None], late: LateCopies, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, step = CASES["AdamW, foreach"]()
    lazy = LazyParameters(lambda: [optimizer])
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        step(1)
        handle = manager.save(state_of(model, optimizer), step=1, lazy=lazy)
        change(next(model.parameters()))
        late.release.set()
        error = handle.exception(60)
        assert isinstance(error, SaveNotDoneError)
        assert error.kind == "changed"
        late.release.clear()
        truth = digest(state_of(model, optimizer))
        handle = manager.save(state_of(model, optimizer), step=2, lazy=lazy)
        change(next(model.parameters()))
        handle.result(60)
        assert digest(manager.load("step=2")) == truth
    assert caplog.text.count("from now on everything is copied before training goes on") == 1
    lazy.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", MODES)
def test_no_checkpoint_is_torn_by_a_loop_that_changes_them_before_every_step(
    change: Callable[[nn.Parameter], None], mode: str, request: pytest.FixtureRequest
) -> None:
    model, optimizer, step = CASES["SGD"]()
    lazy = LazyParameters.chosen(mode.partition(",")[0], lambda: [optimizer])
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants()
    instants.watch(lambda: state_of(model, optimizer))
    with CheckpointManager(MemoryStore(), experiment="x", hooks=[instants]) as manager:
        handles = []
        for number in range(1, STEPS + 1):
            change(next(model.parameters()))
            step(number)
            handles.append(manager.save(state_of(model, optimizer), step=number, lazy=lazy))
        if lazy is not None:
            lazy.close()
        given_up = [each.step for each in handles if each.exception(60) is not None]
        assert given_up == [1] if late is not None else len(given_up) <= 1
        instants.compare(manager, len(given_up))


@pytest.mark.parametrize(("kind", "waits_before"), [(torch.optim.SGD, False), (Ascending, True)])
def test_forward_and_backward_in_a_closure_do_not_wait_where_that_is_safe(
    kind: Any, waits_before: bool, late: LateCopies
) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1)
    lazy = LazyParameters(lambda: [optimizer])
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save(state_of(model, optimizer), step=1, lazy=lazy)
        waited: list[bool] = []
        assert optimizer.step(lambda: waited.append(late.release.is_set()) or 0.5) == 0.5
        assert waited == [waits_before]
        assert late.release.is_set()
        lazy.close()


def test_two_saves_without_a_step_between_are_both_whole(late: LateCopies) -> None:
    model, optimizer, step = CASES["AdamW, fused"]()
    lazy = LazyParameters(lambda: [optimizer])
    instants = Instants()
    instants.watch(lambda: state_of(model, optimizer))
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=3, hooks=[instants]) as manager:
        for number in range(1, 4):
            step(number)
            for again in range(2):
                manager.save(state_of(model, optimizer), step=2 * number + again, lazy=lazy)
        lazy.close()
        manager.wait()
        assert len(instants.truth) == 6
        instants.compare(manager)


class Unhooked(torch.optim.SGD):
    """As some that come from elsewhere: it puts its own method in the place of the one that PyTorch has hooked."""


class Wrapper:
    """No optimizer of PyTorch's at all, but looks like one."""

    def __init__(self, parameters: Any) -> None:
        self.inner = torch.optim.SGD(parameters, lr=0.1)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


def unhooked(parameters: Any) -> Any:
    made = Unhooked(parameters, lr=0.1)
    Unhooked.step = lambda self, closure=None: None  # type: ignore[assignment, method-assign]
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (unhooked, "Unhooked makes its steps without PyTorch's hooks"),
        (Wrapper, "Wrapper makes its steps without PyTorch's hooks"),
        (
            lambda p: torch.optim.Adam(p, capturable=True),
            "Adam is capturable, and the replay of a CUDA graph",
        ),
    ],
)
def test_where_steps_cannot_be_waited_for_everything_is_copied_at_once(
    make: Callable[[Any], Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer = make(model.parameters())
    lazy = LazyParameters(lambda: [optimizer])
    assert not lazy.begin(lambda: pytest.fail("waited for"))
    assert not lazy.begin(lambda: pytest.fail("waited for"))
    lazy.close()
    assert caplog.text.count("from now on everything is copied") == caplog.text.count(said) == 1


def test_what_has_gaps_or_is_of_another_class_is_copied_at_once() -> None:
    class Special(nn.Parameter): ...

    parameters = [
        nn.Parameter(torch.zeros(4, 6)[:, ::2]),
        Special(torch.zeros(2)),
        nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)),
    ]
    lazy = LazyParameters(lambda: [torch.optim.SGD(parameters)])
    assert lazy.begin(lambda: None)
    assert [each in lazy for each in parameters] == [False, False, True]
    lazy.close()


def test_a_closed_one_holds_no_optimizer_up() -> None:
    _, optimizer, step = CASES["SGD"]()
    lazy = LazyParameters(lambda: [optimizer])
    waited: list[bool] = []
    lazy.begin(lambda: waited.append(True))
    lazy.close()
    assert waited == [True], "what is being copied is not left unguarded"
    step(1)
    assert waited == [True]


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpointer_saves_one_instant_at_every_step(mode: str, request: pytest.FixtureRequest) -> None:
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    model = network(norm=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)

    def live() -> dict[str, Any]:
        return {**state_of(model, optimizer), "average": average.state_dict()}

    instants = Instants(late)
    instants.watch(live, lambda state: {name: state[name] for name in live()})
    with CheckpointManager(MemoryStore(), experiment="x", hooks=[instants]) as manager:
        ckpt = TorchCheckpointer(
            manager=manager, model=model, optimizer=optimizer, average=average, every_n_steps=1,
            staging=mode.partition(",")[0],
        )  # fmt: skip
        for number in ckpt.steps(STEPS):
            for part in range(2):
                loss_of(model, 10 * number + part).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
        assert len(instants.truth) >= STEPS
        instants.compare(manager)
    assert late is None or late.made > STEPS


def test_a_checkpointer_is_told_how_to_copy() -> None:
    with pytest.raises(UsageError, match="staging is 'later'"):
        TorchCheckpointer(MemoryStore(), experiment="x", model=network(), staging="later")  # type: ignore[arg-type]
