"""Weights of checkpoints into models that are, or are not, what they were: `load_weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_core import CheckpointManager, NotFoundError, StateMismatchError, UsageError
from ckpt_torch import fit_weights, load_weights
from ckpt_torch import objects as parts


class Tied(nn.Module):
    """A language model in little: its head is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def net(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, classes))


def filled(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.state_dict().values():
            each.copy_(torch.rand(each.shape, generator=generator).mul(9).to(each.dtype))
    return model


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(parts.capture(one).items(), parts.capture(two).items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with CheckpointManager(tmp_path / "store", experiment="first", metric="loss") as manager:
        yield manager


def save(manager: CheckpointManager, state: Any, loss: float = 1.0) -> None:
    manager.save(state, step=1, metrics={"loss": loss}, wait=True)


@pytest.mark.parametrize("home", ["model", "state_dict"])
def test_weights_are_found_in_checkpoints_of_any_trainer(manager: CheckpointManager, home: str) -> None:
    source, target = filled(net(), 1), filled(net(), 2)
    assert not same(source, target)
    save(manager, {home: source.state_dict(), "optimizer": {"momentum": torch.ones(3)}, "epoch": 1})
    report = load_weights(target, manager)
    assert same(source, target)
    assert report.ok and report.checkpoint == manager.best()
    assert set(report.loaded) == set(source.state_dict())


def test_weights_of_another_experiment(manager: CheckpointManager, tmp_path: Path) -> None:
    source, target = filled(net(), 1), net()
    save(manager, {"model": source.state_dict()})
    with CheckpointManager(tmp_path / "store", experiment="second", metric="loss") as other:
        report = load_weights(target, other, "first@best")
        with pytest.raises(NotFoundError):
            load_weights(target, other)
    assert report.checkpoint is not None and report.checkpoint.experiment == "first"
    assert same(source, target)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(manager: CheckpointManager) -> None:
    source, target = filled(net(classes=2), 1), filled(net(classes=7), 2)
    before = {name: each.clone() for name, each in target.state_dict().items()}
    save(manager, {"model": {**source.state_dict(), "old.bias": torch.ones(1)}})
    with pytest.raises(StateMismatchError) as error:
        load_weights(target, manager)
    assert set(error.value.paths) == {"2.weight", "2.bias", "old.bias"}
    assert all(torch.equal(before[name], each) for name, each in target.state_dict().items())

    report = load_weights(target, manager, strict=False)
    assert report.unexpected == ("old.bias",)
    assert report.misshapen == (("2.weight", (2, 3), (7, 3)), ("2.bias", (2,), (7,)))
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])
    assert torch.equal(target.state_dict()["2.bias"], before["2.bias"])


def test_renames(manager: CheckpointManager) -> None:
    source = filled(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 9)), 1)
    target = nn.ModuleDict({"body": nn.Linear(2, 2)})
    save(manager, {"state_dict": {f"net.{name}": each for name, each in source.state_dict().items()}})
    report = load_weights(target, manager, renames={"net.0": "body", "net.1": None})
    assert report.ok
    assert report.left_out == ("net.1.weight", "net.1.bias")
    assert torch.equal(target["body"].weight, source[0].weight)


def test_one_of_the_tied_weights_is_enough(manager: CheckpointManager) -> None:
    source, target = filled(Tied(), 1), filled(Tied(), 2)
    state = {name: each for name, each in source.state_dict().items() if name != "head.weight"}
    save(manager, {"model": state})
    assert load_weights(target, manager).ok
    assert same(source, target)
    assert target.head.weight is target.embedding.weight
    with pytest.raises(StateMismatchError) as error:
        fit_weights(target, {name: each for name, each in state.items() if name != "embedding.weight"})
    assert error.value.paths == ("embedding.weight", "head.weight")


def test_only_what_is_needed_must_be_there() -> None:
    source, target = filled(net(), 1), filled(net(), 2)
    saved = {"0.weight": source.state_dict()["0.weight"]}
    assert fit_weights(target, saved, needed=["0.weight"]).ok
    with pytest.raises(StateMismatchError):
        fit_weights(target, saved, needed=["0.weight", "0.bias"])


def test_compiled_and_plain_models_share_their_names(manager: CheckpointManager) -> None:
    plain = filled(net(), 1)
    inside = filled(net(), 2)
    inside[0] = torch.compile(inside[0], backend="eager")
    whole = torch.compile(filled(net(), 3), backend="eager")
    for source in (plain, inside, whole):
        state = parts.capture(source)
        assert list(state) == list(net().state_dict())
        save(manager, {"model": state})
        for target in (filled(net(), 4), inside, whole):
            if target is not source:
                filled(parts.unwrapped(target), 5)
                assert load_weights(target, manager, "latest").ok
                assert same(source, target)
                filled(parts.unwrapped(target), 5)
                parts.restore("model", target, manager.load("latest")["model"])
                assert same(source, target)


def test_one_model_of_several(manager: CheckpointManager) -> None:
    one, two, target = filled(net(), 1), filled(net(), 2), net()
    save(manager, {"model": {"generator": one.state_dict(), "critics": [one.state_dict(), two.state_dict()]}})
    load_weights(target, manager, part="model/critics/1")
    assert same(two, target)
    load_weights(target, manager, part="model/generator")
    assert same(one, target)
    with pytest.raises(UsageError, match="say which with part=") as error:
        load_weights(target, manager)
    assert "model/generator, model/critics/0, model/critics/1" in str(error.value)
    with pytest.raises(UsageError, match="no weights of one model at nothing"):
        load_weights(target, manager, part="nothing")


def test_half_precision_into_full(manager: CheckpointManager) -> None:
    source = filled(net(), 1)
    save(
        manager,
        {"model": {k: v.bfloat16() if v.is_floating_point() else v for k, v in source.state_dict().items()}},
    )
    target = net()
    assert load_weights(target, manager).ok
    assert torch.equal(target[0].weight, source[0].weight.bfloat16().float())
    assert target[0].weight.dtype == torch.float32
