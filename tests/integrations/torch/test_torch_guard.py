"""The last good moment: what may happen after it, what ends it, and that it is told right which is which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_torch.gradients import Gradients
from ckpt_torch.guard import Guard


class Loop:
    """What a loop has, two steps on, with a mark after the second."""

    def __init__(self, *, mark: bool = True) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                torch.optim.lr_scheduler.ConstantLR(self.optimizer),
                torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9),
            ],
            [1],
        )
        self.scaler = torch.amp.GradScaler("cpu")
        self.state: dict[str, Any] = {"best": 1.0, "losses": [2.0, 1.0]}
        objects = {"model": self.model, "optimizer": self.optimizer, "others": [self.scheduler, self.scaler]}
        self.gradients = Gradients(objects)
        self.guard = Guard(objects, self.state, self.gradients)
        for step in range(2):
            self.guard.mark({"at": step})
            self.gradients.begin_iteration()
            self.forward_and_backward()
            self.optimize()
        if mark:
            self.guard.mark({"at": 2})
            self.gradients.begin_iteration()

    def forward_and_backward(self) -> None:
        self.scaler.scale(self.model(torch.randn(4, 3)).square().sum()).backward()

    def optimize(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad()


def forward(loop: Loop) -> None:
    loop.model(torch.randn(4, 3))


HARMLESS: list[Callable[[Loop], Any]] = [
    lambda loop: None,
    forward,
    lambda loop: loop.forward_and_backward(),
    lambda loop: (loop.forward_and_backward(), loop.scaler.unscale_(loop.optimizer)),
    lambda loop: loop.model.eval(),
    lambda loop: loop.state.update(best=0.0),
    lambda loop: loop.state["losses"].append(0.5),
]
HARMFUL: list[Callable[[Loop], Any]] = [
    lambda loop: loop.optimizer.step(),
    lambda loop: nn.init.zeros_(loop.model[0].weight),
    lambda loop: loop.model[0].weight.data.mul_(0.5),
    lambda loop: setattr(loop.model[0].weight, "data", torch.ones(2, 3)),
    lambda loop: loop.model.register_parameter("more", nn.Parameter(torch.ones(1))),
    lambda loop: setattr(loop.model[0], "bias", nn.Parameter(torch.zeros(2))),
    lambda loop: loop.model[1].register_buffer("running_var", torch.ones(2)),
    lambda loop: loop.optimizer.param_groups[0].update(lr=0.3),
    lambda loop: loop.optimizer.param_groups[0].update(new=1),
    lambda loop: loop.scheduler.step(),
    lambda loop: setattr(loop.scheduler._schedulers[1], "gamma", 0.5),
    lambda loop: loop.scaler.set_growth_factor(3.0),
    lambda loop: loop.scaler._scale.mul_(2),  # type: ignore[union-attr]
]


@pytest.mark.parametrize("number", range(len(HARMLESS)))
def test_what_an_iteration_may_do_before_its_step(number: int) -> None:
    wanted = Loop().guard.state()
    loop = Loop()
    HARMLESS[number](loop)
    state = loop.guard.state()
    assert state is not None and wanted is not None
    assert state["at"] == 2
    assert state["state"] == {"best": 1.0, "losses": [2.0, 1.0]}
    assert state["gradients"] == wanted["gradients"] == {"accumulated": {}, "held": []}
    assert state["others"] == wanted["others"]
    for name, tensor in wanted["model"].items():
        assert torch.equal(state["model"][name], tensor), name
    assert not torch.equal(state["model"]["1.running_mean"], torch.zeros(2))


@pytest.mark.parametrize("number", range(len(HARMFUL)))
def test_what_ends_it(number: int) -> None:
    loop = Loop()
    HARMFUL[number](loop)
    assert loop.guard.state() is None


def test_a_large_buffer_is_copied_once_it_was_seen_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_torch.guard._SMALL", 8)
    loop = Loop(mark=False)
    loop.model.register_buffer("memory", torch.zeros(4))
    wanted = []
    for _ in range(3):
        loop.guard.refresh() if not wanted else None
        loop.guard.mark({})
        wanted.append(loop.model.memory.clone())
        state = loop.guard.state()
        assert state is not None
        loop.model.memory += 1
        state = loop.guard.state()
        if len(wanted) == 1:
            assert state is None
        else:
            assert state is not None
            assert torch.equal(state["model"]["memory"], wanted[-1])


def test_gradients_that_had_accumulated_must_still_be_the_same() -> None:
    for end in (False, True):
        loop = Loop(mark=False)
        loop.gradients.begin_iteration()
        loop.forward_and_backward()
        loop.guard.mark({"at": 2})
        forward(loop)
        held = {name: each.grad for name, each in loop.model.named_parameters()}
        if end:
            loop.forward_and_backward()
        state = loop.guard.state()
        assert (state is None) == end
        if state is not None:
            assert state["gradients"]["accumulated"] == {f"model/{name}": grad for name, grad in held.items()}


def test_gradients_of_the_step_before_are_not_kept_alive() -> None:
    loop = Loop(mark=False)
    loop.forward_and_backward()
    loop.optimizer.step()
    loop.guard.mark({"at": 2})
    loop.gradients.begin_iteration()
    loop.optimizer.zero_grad()
    state = loop.guard.state()
    assert state is not None
    assert state["gradients"] == {
        "accumulated": {},
        "held": ["model/0.bias", "model/0.weight", "model/1.bias", "model/1.weight"],
    } or (state["gradients"] == {"accumulated": {}, "held": True})


class Opaque:
    """An object whose changes nobody can see."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return 1

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("objects", "state"),
    [
        ({"opaque": Opaque()}, {}),
        ({"model": Extra(1, 1)}, {}),
        ({}, {"object": object()}),
        ({}, {"long": list(range(20_000))}),
    ],
)
def test_what_cannot_be_watched_is_never_taken_for_unchanged(objects: Any, state: Any) -> None:
    guard = Guard(objects, state, Gradients(objects))
    for _ in range(2):
        guard.mark({})
        assert guard.state() is None


def test_large_buffers_are_not_copied_at_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_torch.guard._MOST_BYTES", 23)  # of two means, variances and a count: 24
    loop = Loop()
    assert loop.guard.state() is None
