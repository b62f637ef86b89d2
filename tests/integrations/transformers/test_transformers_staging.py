"""Every checkpoint of a Trainer's training is of one instant, however its tensors are copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import _global_optimizer_pre_hooks
from trainer_case import new_model, plain_trainer
from transformers import TrainerCallback

from ckpt_core import CheckpointManager, UsageError
from ckpt_core.stores import MemoryStore
from ckpt_transformers import CheckpointCallback
from contract.instants import MODES, Instants, LateCopies

CASES: dict[str, dict[str, Any]] = {
    "AdamW, fused": {"optim": "adamw_torch_fused"},
    "AdamW, foreach": {"optim": "adamw_torch", "optim_args": "foreach=True"},
    "SGD": {"optim": "sgd"},
    "Adafactor": {"optim": "adafactor"},
    "accumulated and clipped": {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5},
    "half precision": {"bf16": True},
    "buffers that move": {"norm": True},
}


class Clamping(TrainerCallback):
    """Changes a parameter behind PyTorch's back, when the batches of an update are there already."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        next(model.parameters()).data.mul_(0.9)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    copies = LateCopies(monkeypatch)
    yield copies
    copies.release.set()


def train(
    folder: Path, manager: CheckpointManager, instants: Instants, staging: Any, *others: Any, **options: Any
) -> Any:
    ours = CheckpointCallback(manager=manager, save_strategy="steps", save_steps=1, staging=staging)
    model = new_model(norm=options.pop("norm", False))
    trainer = plain_trainer(folder, [ours, *others], model=model, **options)
    instants.watch(
        lambda: live(trainer), lambda state: {name: state[name] for name in ("model", "optimizer")}
    )
    trainer.train()
    return trainer


def live(trainer: Any) -> dict[str, Any]:
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return {"model": trainer.model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_checkpoint_is_of_one_instant(
    options: dict[str, Any], mode: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants(late)
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=2, hooks=[instants]) as manager:
        trainer = train(tmp_path, manager, instants, mode.partition(",")[0], **options)
        assert len(instants.truth) >= trainer.state.global_step - 1
        instants.compare(manager)
    assert late is None or late.made > len(instants.truth)


@pytest.mark.parametrize("mode", MODES)
def test_a_save_that_cannot_be_trusted_is_given_up_and_none_is_torn(
    mode: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants(late)
    with CheckpointManager(MemoryStore(), experiment="x", hooks=[instants]) as manager:
        train(tmp_path, manager, instants, mode.partition(",")[0], Clamping())
        given_up = caplog.text.count("was given up")
        assert given_up == 1 if late is not None else given_up <= 1
        instants.compare(manager, given_up)
    assert caplog.text.count("from now on everything is copied") == given_up


def test_it_is_told_how_to_copy_and_lets_optimizers_go(tmp_path: Path) -> None:
    before = list(_global_optimizer_pre_hooks)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        train(tmp_path, manager, Instants(), "lazy", max_steps=2)
    assert list(_global_optimizer_pre_hooks) == before
    with pytest.raises(UsageError, match="staging is 'later'"):
        CheckpointCallback("x", experiment="x", staging="later")  # type: ignore[arg-type]
