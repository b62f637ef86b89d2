"""Objects with a state_dict, gradients, and the checkpointer's dealings with both; no process is killed here."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import BaseHook, CheckpointManager, HookContext, HookEvent, StateMismatchError, UsageError
from ckpt_torch import TorchCheckpointer
from ckpt_torch import objects as parts


def model_and_optimizer(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2).to(dtype)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    weight = next(model.parameters())
    model(torch.ones(4, 3, dtype=weight.dtype)).sum().backward()
    if optimizer is not None:
        optimizer.step()


def test_lists_dicts_and_wrapped_modules() -> None:
    model, _ = model_and_optimizer()
    value = {"nets": [model, nn.DataParallel(nn.Linear(1, 1))], "none": None}
    assert [path for path, _ in parts.walk("all", value)] == ["all/nets/0", "all/nets/1"]
    state = parts.capture(value)
    assert list(state["nets"][1]) == ["weight", "bias"], "the wrapper's name is not in it"
    with torch.no_grad():
        model.weight.zero_()
    kept = {key: tensor.clone() for key, tensor in state["nets"][0].items()}
    parts.restore("all", value, {"nets": [kept, state["nets"][1]], "none": None})
    with pytest.raises(StateMismatchError, match="all/nets is not what it was"):
        parts.restore("all", value, {"nets": [], "none": None})
    with pytest.raises(StateMismatchError, match=r"all/nets/0 \(Linear\) does not take the state"):
        parts.restore("all", value, {"nets": [{}, {}], "none": None})


def test_what_has_no_state_dict_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="parts/1 is a object, which has no state_dict"):
        parts.check({"parts": [nn.Linear(1, 1), object()]})


def test_a_scheduler_gets_its_counter_back() -> None:
    _, optimizer = model_and_optimizer()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 3])
    state = parts.capture(scheduler)
    state["milestones"] = dict(state["milestones"])  # as it comes from a store
    parts.restore("scheduler", scheduler, state)
    assert scheduler.milestones == Counter({1: 2, 3: 1})
    assert isinstance(scheduler.milestones, Counter)


def test_what_an_optimizer_keeps_in_another_dtype_stays_so() -> None:
    model, optimizer = model_and_optimizer(torch.bfloat16)
    learn(model, optimizer)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 1 / 3, dtype=torch.float32)
    state = parts.capture(optimizer)
    again, fresh = model_and_optimizer(torch.bfloat16)
    parts.restore("optimizer", fresh, state)
    for parameter in again.parameters():
        assert fresh.state[parameter]["momentum_buffer"].eq(1 / 3).all()


def test_gradients_between_two_steps_are_kept_and_after_one_are_not() -> None:
    model, optimizer = model_and_optimizer()
    gradients = parts.Gradients({"model": model, "optimizer": optimizer})
    gradients.begin_iteration()
    learn(model)
    between = gradients.capture()
    assert set(between["accumulated"]) == {"model/weight", "model/bias"}

    optimizer.step()
    assert gradients.capture() == {"accumulated": {}, "held": True}
    model.weight.grad = None
    assert gradients.capture() == {"accumulated": {}, "held": ["model/bias"]}

    again, _ = model_and_optimizer()
    other = parts.Gradients({"model": again})
    other.restore(between)
    assert torch.equal(again.weight.grad, between["accumulated"]["model/weight"])  # type: ignore[arg-type]
    other.restore({"accumulated": {}, "held": ["model/bias"]})
    assert again.weight.grad is None
    assert again.bias.grad is not None
    assert again.bias.grad.eq(0).all()
    gradients.close()


def test_one_optimizer_of_two_makes_a_step() -> None:
    first, first_optimizer = model_and_optimizer()
    second, second_optimizer = model_and_optimizer()
    gradients = parts.Gradients({"nets": [first, second], "optimizers": [first_optimizer, second_optimizer]})
    gradients.begin_iteration()
    learn(second)
    learn(first, first_optimizer)
    assert set(gradients.capture()["accumulated"]) == {"nets/1/weight", "nets/1/bias"}


def checkpointer(path: Path, model: nn.Module, optimizer: Any, **options: Any) -> TorchCheckpointer:
    return TorchCheckpointer(path, experiment="test", model=model, optimizer=optimizer, **options)


def test_a_loop_without_a_loader(store_path: Path) -> None:
    drawn: list[float] = []
    for total in (3, 5, 5):
        model, optimizer = model_and_optimizer()
        with checkpointer(store_path, model, optimizer, every_n_steps=2) as ckpt:
            for step in ckpt.steps(total):
                drawn.append(torch.rand(()).item())
                learn(model, optimizer)
                ckpt.step(number=step)
    torch.manual_seed(1)
    nn.Linear(3, 2)
    assert drawn == [torch.rand(()).item() for _ in range(5)]
    with CheckpointManager(store_path, experiment="test") as manager:
        assert [checkpoint.step for checkpoint in manager.checkpoints()] == [2, 3, 4, 5]
        assert manager.latest().metrics == {"number": 4.0}  # type: ignore[union-attr]


def test_step_alone_saves_on_the_spot(store_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with checkpointer(store_path, model, optimizer, every_n_steps=1) as ckpt:
        for _ in range(3):
            learn(model, optimizer)
            ckpt.step()
    with CheckpointManager(store_path, experiment="test") as manager:
        assert [checkpoint.step for checkpoint in manager.checkpoints()] == [1, 2, 3, 3]


def test_metrics_belong_to_their_own_step(store_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    loader = DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2)
    with checkpointer(store_path, model, optimizer, loader=loader, every_n_steps=1, metric="val") as ckpt:
        for epoch in ckpt.epochs(2):
            for _ in ckpt.batches():
                learn(model, optimizer)
                ckpt.step(loss=torch.tensor(0.5))
            ckpt.evaluated(val=epoch if epoch else float("nan"))
    with CheckpointManager(store_path, experiment="test", metric="val") as manager:
        metrics = {checkpoint.step: checkpoint.metrics for checkpoint in manager.checkpoints()}
        assert metrics == {1: {"loss": 0.5}, 2: {"loss": 0.5}, 3: {"loss": 0.5}, 4: {"loss": 0.5, "val": 1.0}}


def test_two_loaders_side_by_side(tmp_path: Path) -> None:
    def run(store: str, stop: int | None = None) -> list[Any]:
        model, optimizer = model_and_optimizer()
        first = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=2, shuffle=True)
        second = DataLoader(TensorDataset(torch.arange(20.0)), batch_size=3, shuffle=True)
        done: list[Any] = []
        loaders = {"first": first, "second": second}
        with (
            contextlib.suppress(KeyboardInterrupt),
            checkpointer(tmp_path / store, model, optimizer, loader=loaders, every_n_steps=1) as ckpt,
        ):
            for _ in ckpt.epochs(2):
                for one, two in zip(ckpt.batches(first), ckpt.batches("second"), strict=False):
                    done.append((one[0].tolist(), two[0].tolist(), torch.rand(()).item()))
                    ckpt.step()
                    if ckpt.global_step == stop:
                        raise KeyboardInterrupt
        return done

    whole = run("whole")
    assert len(whole) == 8
    assert run("stopped", 3) == whole[:3]
    assert run("stopped", 6) == whole[2:6], "the save of step 3 had yet to be made"
    assert run("stopped") == whole[5:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": None}, "say where to save"),
        ({"rng": nn.Linear(1, 1)}, "rng: the checkpointer keeps that name itself"),
        ({"model": object()}, "model is a object, which has no state_dict"),
        ({"every_n_steps": 0}, "EverySteps"),
    ],
)
def test_wrong_arguments_are_told(store_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TorchCheckpointer(**({"root": store_path, "experiment": "test"} | options))


def test_a_manager_of_ones_own_is_not_closed(store_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    with CheckpointManager(store_path, experiment="mine") as manager:
        with TorchCheckpointer(manager=manager, model=model, optimizer=optimizer) as ckpt:
            ckpt.step()
        assert manager.latest() is not None
        with pytest.raises(UsageError, match="these are the manager's to say: metric"):
            TorchCheckpointer(manager=manager, metric="loss")
        manager.save({"more": 1}, step=5).result()


def test_which_loader_must_be_clear(store_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    loaders = {"a": [1], "b": [2]}
    with (
        checkpointer(store_path, model, optimizer, loader=loaders) as ckpt,
        pytest.raises(UsageError, match=r"which loader\?.*a, b"),
    ):
        next(ckpt.batches())


def test_what_the_checkpoint_lacks_or_has_too_much_is_said(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = model_and_optimizer()
    with checkpointer(store_path, model, optimizer) as ckpt:
        ckpt.step()
    with TorchCheckpointer(store_path, experiment="test", model=model, ema=nn.Linear(1, 1)):
        pass
    assert "ema is not in the checkpoint: it starts as it is" in caplog.text
    assert "not given to the checkpointer: optimizer" in caplog.text


def test_hooks_see_training_begin_and_end(store_path: Path) -> None:
    seen: list[Any] = []

    class Note(BaseHook):
        events = (HookEvent.TRAIN_BEGIN, HookEvent.EPOCH_BEGIN, HookEvent.STEP_END, HookEvent.EPOCH_END,
                  HookEvent.EVALUATE_END, HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED)  # fmt: skip

        def execute(self, context: HookContext) -> None:
            seen.append((context.event.name, context.step, context.epoch))

    model, optimizer = model_and_optimizer()
    loader = DataLoader(TensorDataset(torch.ones(2, 3)), batch_size=1)
    with checkpointer(store_path, model, optimizer, loader=loader, hooks=[Note()]) as ckpt:
        for _ in ckpt.epochs(1):
            for _ in ckpt.batches():
                ckpt.step()
            ckpt.evaluated(val=1.0)
    assert seen == [
        ("TRAIN_BEGIN", 0, 0), ("EPOCH_BEGIN", 0, 0), ("STEP_END", 1, 0), ("STEP_END", 2, 0),
        ("EVALUATE_END", 2, 0), ("EPOCH_END", 2, 0), ("TRAIN_END", 2, 1),
    ]  # fmt: skip
