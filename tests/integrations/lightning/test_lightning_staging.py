"""Every checkpoint of a Lightning training is of one instant, however its tensors are copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import CheckpointManager, UsageError
from ckpt_core.stores import MemoryStore
from ckpt_lightning import CheckpointCallback
from contract.instants import MODES, Instants, LateCopies

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much to say

BATCHES = 6


class Automatic(pl.LightningModule):
    def __init__(self, optimizer: str = "AdamW", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)
        )
        self.made = lambda: getattr(torch.optim, optimizer)(self.parameters(), lr=0.01, **options)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.made()


class Rivals(Automatic):
    """Two optimizers that take turns by hand; the parameters of one are clipped behind PyTorch's back."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(8, 4)

    def training_step(self, batch: Any, index: int) -> Any:
        first, second = self.optimizers()  # type: ignore[misc, attr-defined]
        for optimizer, net in ((first, self.net), (second, self.other))[: 1 + index % 2]:
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()
        for each in self.other.parameters():
            each.data.clamp_(-0.3, 0.3)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net.parameters()), torch.optim.SGD(self.other.parameters(), 0.1, 0.9)]


class Taught(Automatic):
    """Its teacher is among the optimizer's parameters, and follows it before each step, uncounted."""

    def __init__(self) -> None:
        super().__init__("SGD", momentum=0.9)
        self.teacher = nn.Linear(8, 32)

    def training_step(self, batch: Any, index: int) -> Any:
        self.teacher.weight.data.mul_(0.9).add_(self.net[0].weight.data, alpha=0.1)
        return self.loss(batch)


def swa() -> Any:
    return pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)


def ema() -> Any:
    return pl.callbacks.EMAWeightAveraging(decay=0.8)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (lambda: Automatic("SGD", momentum=0.9), {}),
    "AdamW, fused": (lambda: Automatic(fused=True), {}),
    "AdamW, foreach": (lambda: Automatic(foreach=True), {}),
    "two optimizers by hand": (Rivals, {}),
    "accumulated and clipped": (Automatic, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    "half precision": (Automatic, {"precision": "bf16-mixed"}),
    "SWA": (Automatic, {"callbacks": [swa], "max_epochs": 4}),
    "EMA": (Automatic, {"callbacks": [ema], "accumulate_grad_batches": 2, "val_check_interval": 1}),
    "EMA of half precision": (Automatic, {"callbacks": [ema], "precision": "bf16-mixed"}),
}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    copies = LateCopies(monkeypatch)
    yield copies
    copies.release.set()


def fit(manager: CheckpointManager, instants: Instants, module: Any, staging: Any, **options: Any) -> Any:
    averages = [make() for make in options.pop("callbacks", ())]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*averages, CheckpointCallback(manager=manager, every_n_train_steps=1, staging=staging)],
        **{"max_epochs": 2, **options},
    )  # fmt: skip
    instants.watch(lambda: live(trainer), saved)
    generator = torch.Generator().manual_seed(5)
    features, labels = torch.randn(4 * BATCHES, 8, generator=generator), torch.arange(4 * BATCHES) % 4
    data = DataLoader(TensorDataset(features, labels), batch_size=4)
    trainer.fit(module, data, data)
    return trainer


def live(trainer: Any) -> dict[str, Any]:
    average = [each._average_model for each in trainer.callbacks if hasattr(each, "_average_model")]
    return {
        "module": trainer.lightning_module.state_dict(),
        "optimizers": [each.state_dict() for each in trainer.optimizers],
        "average": [dict(getattr(each, "module", each).named_parameters()) for each in average],
    }


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """The same of a checkpoint. With an average, Lightning has that in the place of the model's own weights."""
    module = state.get("current_model_state", state["state_dict"])
    swa = [
        each["average_model_state"] for each in state["callbacks"].values() if "average_model_state" in each
    ]
    ema = [state["state_dict"]] if "current_model_state" in state else []
    names = [name for name in module if not name.rpartition(".")[2].startswith(("running", "num"))]
    return {
        "module": module,
        "optimizers": state["optimizer_states"],
        "average": [{name: each[name] for name in names} for each in (*swa, *ema)],
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "options"), CASES.values(), ids=CASES)
def test_every_checkpoint_is_of_one_instant(
    make: Any, options: dict[str, Any], mode: str, request: pytest.FixtureRequest
) -> None:
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants(late)
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=2, hooks=[instants]) as manager:
        fit(manager, instants, make(), mode.partition(",")[0], **options)
        assert len(instants.truth) >= BATCHES - 1
        instants.compare(manager)
    assert late is None or late.made > len(instants.truth)


@pytest.mark.parametrize("mode", MODES)
def test_a_save_that_cannot_be_trusted_is_given_up_and_none_is_torn(
    mode: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    late = request.getfixturevalue("late") if mode == MODES[2] else None
    instants = Instants(late)
    with CheckpointManager(MemoryStore(), experiment="x", hooks=[instants]) as manager:
        fit(manager, instants, Taught(), mode.partition(",")[0])
        given_up = caplog.text.count("was given up")
        assert given_up == 1 if late is not None else given_up <= 1
        instants.compare(manager, given_up)
    assert caplog.text.count("from now on everything is copied") == given_up


class Looking(pl.Callback):
    """Whether all was copied when averaged weights change places with the others, which leaves no trace."""

    def __init__(self, late: LateCopies) -> None:
        self.late = late
        self.seen: list[tuple[int, bool]] = []

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.seen.append((self.late.made, self.late.release.is_set()))


def test_averaged_weights_are_not_put_in_the_place_of_those_that_are_being_copied(late: LateCopies) -> None:
    instants, looking = Instants(late), Looking(late)
    options = {"callbacks": [ema, lambda: looking], "accumulate_grad_batches": 3, "val_check_interval": 1}
    with CheckpointManager(MemoryStore(), experiment="x", hooks=[instants]) as manager:
        fit(manager, instants, Automatic(), "lazy", **options)
        instants.compare(manager)
    pending = [done for made, done in looking.seen if made]
    assert len(pending) >= BATCHES
    assert all(pending)


def test_it_is_told_how_to_copy_and_lets_optimizers_go() -> None:
    before = list(_global_optimizer_pre_hooks)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        fit(manager, Instants(), Automatic(), "lazy")
    assert list(_global_optimizer_pre_hooks) == before
    with pytest.raises(UsageError, match="staging is 'later'"):
        CheckpointCallback("x", experiment="x", staging="later")  # type: ignore[arg-type]
