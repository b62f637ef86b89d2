"""A trainer that is used more than once, evaluation by references, weights to begin with. No process is killed here."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import (
    CheckpointManager,
    EveryEpochs,
    EverySteps,
    KeepLast,
    NotFoundError,
    StateMismatchError,
    UsageError,
)
from ckpt_core.policies import SavePolicy
from ckpt_lightning import CheckpointCallback, load_weights
from contract.training import digest

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much to say

DATA = TensorDataset(torch.linspace(-1, 1, 16).reshape(16, 1), torch.linspace(0, 2, 16).reshape(16, 1))


class Net(pl.LightningModule):
    """Shuffled data, dropout and a momentum: whatever is not gone on with shows in the weights."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(1, width)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(width, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.first(values)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def trainer_with(*callbacks: Any, epochs: int = 2, **options: Any) -> Any:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=bool(callbacks), **options,
    )  # fmt: skip


def fit(trainer: Any, module: Any, **options: Any) -> Any:
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    trainer.fit(module, loader, DataLoader(DATA, batch_size=8), **options)
    return module


def net(seed: int = 1, width: int = 4) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def weights(module: Any) -> str:
    return digest(module.state_dict())


def callback(path: Path, **options: Any) -> Any:
    return CheckpointCallback(
        path, **{"experiment": "x", "monitor": "val_loss", "every_n_epochs": 1, **options}
    )


# -- more than once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["auto", None])
def test_the_same_trainer_with_more_epochs_is_one_training(store_path: Path, resume: str | None) -> None:
    whole = weights(fit(trainer_with(epochs=4), net()))
    trainer = trainer_with(callback(store_path, resume=resume), epochs=2)
    module = fit(trainer, net())
    torch.rand(7)  # what a program does in between
    trainer.fit_loop.max_epochs = 4
    fit(trainer, module)
    assert weights(module) == whole
    with CheckpointManager(store_path, experiment="x") as manager:
        saved = manager.checkpoints()
        assert [each.step for each in saved] == [4, 8, 12, 16]
        assert [each.attempt.number for each in saved] == [1, 1, 2, 2]
        assert len({each.attempt.lineage for each in saved}) == 1


def test_the_same_callback_with_another_trainer_goes_on(store_path: Path) -> None:
    whole = weights(fit(trainer_with(epochs=3), net()))
    ours = callback(store_path)
    module = fit(trainer_with(ours, epochs=1), net())
    assert weights(fit(trainer_with(ours, epochs=3), module)) == whole
    assert ours.resumption.step == 4


def test_another_model_is_not_mixed_with_the_first(store_path: Path) -> None:
    ours = callback(store_path)
    fit(trainer_with(ours), net())
    for _ in range(2):
        other = net(seed=2)
        before = weights(other)
        with pytest.raises(UsageError, match="training of another model as 'x'") as refused:
            fit(trainer_with(ours), other)
        assert refused.value.kind == "model"
        assert weights(other) == before
    fit(trainer_with(ours, epochs=3), other, ckpt_path="latest")
    assert ours.resumption.step == 8

    anew = callback(store_path, resume=None)
    fit(trainer_with(anew, epochs=1), net(seed=3))
    alone = weights(fit(trainer_with(epochs=1), net(seed=4)))
    assert weights(fit(trainer_with(anew, epochs=1), net(seed=4))) == alone
    assert anew.resumption.kind == "new-attempt"


# -- evaluation ---------------------------------------------------------------------------------------


@pytest.fixture
def trained(store_path: Path) -> dict[str, str]:
    """The weights at each step that was saved, and at the best."""
    fit(trainer_with(callback(store_path), epochs=3), net())
    with CheckpointManager(store_path, experiment="x", metric="val_loss") as manager:
        found = {each.step: digest(manager.load(each.id)["state_dict"]) for each in manager.checkpoints()}
        best = manager.best()
        assert best is not None
        return {
            "last": found[12], "latest": found[12], "step=4": found[4], "x@step=8": found[8],
            "best": found[best.step],
        }  # fmt: skip


@pytest.mark.parametrize("ref", ["best", "last", "latest", "step=4", "x@step=8"])
def test_validate_test_and_predict_take_references(
    store_path: Path, trained: dict[str, str], ref: str
) -> None:
    for what in ("validate", "test", "predict"):
        module = net(seed=9)
        trainer = trainer_with(callback(store_path))
        getattr(trainer, what)(module, DataLoader(DATA, batch_size=8), ckpt_path=ref)
        assert weights(module) == trained[ref]


def test_test_after_fit_takes_the_best(store_path: Path) -> None:
    trainer = trainer_with(callback(store_path), epochs=3)
    module = fit(trainer, net())
    with torch.no_grad():
        module.first.bias += 1
    trainer.test(dataloaders=DataLoader(DATA, batch_size=8), verbose=False)
    with CheckpointManager(store_path, experiment="x", metric="val_loss") as manager:
        assert weights(module) == digest(manager.load("best")["state_dict"])


def test_without_a_metric_the_newest_is_the_best(store_path: Path) -> None:
    trainer = trainer_with(callback(store_path, monitor=None))
    module = fit(trainer, net())
    again = net(seed=9)
    trainer.test(again, DataLoader(DATA, batch_size=8), ckpt_path="best", verbose=False)
    assert weights(again) == weights(module)


def test_last_where_there_is_nothing(store_path: Path) -> None:
    module = fit(trainer_with(callback(store_path), epochs=1), net(), ckpt_path="last")
    assert weights(module) == weights(fit(trainer_with(epochs=1), net()))
    empty = trainer_with(callback(store_path, experiment="empty"))
    for ref in ("last", "best"):
        with pytest.raises(NotFoundError):
            empty.validate(net(), DataLoader(DATA, batch_size=8), ckpt_path=ref, verbose=False)


def test_last_goes_before_resume(store_path: Path) -> None:
    fit(trainer_with(callback(store_path), epochs=1), net())
    ours = callback(store_path, resume=None)
    fit(trainer_with(ours, epochs=2), net(seed=5), ckpt_path="last")
    assert (ours.resumption.kind, ours.resumption.step) == ("complete", 4)


def test_last_is_a_file_where_lightnings_own_callback_is_there(store_path: Path, tmp_path: Path) -> None:
    own = pl.callbacks.ModelCheckpoint(tmp_path / "own", save_last=True)
    trainer = trainer_with(callback(store_path), own)
    module = fit(trainer, net())
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.forget("latest")
    again = net(seed=9)
    trainer.validate(again, DataLoader(DATA, batch_size=8), ckpt_path="last", verbose=False)
    assert weights(again) == weights(module)


# -- weights to begin with ----------------------------------------------------------------------------


class Begun(pl.Callback):
    """The weights before the first step."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.weights = weights(module)


def test_weights_to_begin_with(store_path: Path, trained: dict[str, str]) -> None:
    begun = Begun()
    tuned = callback(store_path, experiment="tuned", init_from="x@best")
    fit(trainer_with(tuned, begun, epochs=1), net(seed=5))
    assert begun.weights == trained["best"]
    assert tuned.resumption.kind == "fresh"
    fit(trainer_with(callback(store_path, experiment="tuned", init_from="x@best"), begun, epochs=2), net())
    assert begun.weights != trained["best"], "there is something to resume now"


def test_weights_that_do_not_fit(store_path: Path, trained: dict[str, str]) -> None:
    def tuned(**options: Any) -> Any:
        return callback(store_path, experiment="tuned", init_from="x@step=4", resume=None, **options)

    with pytest.raises(StateMismatchError) as refused:
        fit(trainer_with(tuned()), net(width=8))
    assert set(refused.value.paths) == {"first.weight", "first.bias", "last.weight"}
    begun, module = Begun(), net(width=8)
    fit(trainer_with(tuned(strict=False), begun, epochs=1), module)
    plain = net(seed=9)
    with CheckpointManager(store_path, experiment="x") as manager:
        report = load_weights(plain, manager, "step=4", renames={"last": None}, strict=False)
    assert report.left_out == ("last.weight", "last.bias")
    assert report.missing == ("last.weight", "last.bias")


@pytest.mark.parametrize("kind", ["WeightAveraging", "StochasticWeightAveraging"])
def test_averages_begin_with_those_weights(store_path: Path, trained: dict[str, str], kind: str) -> None:
    averaging = (
        pl.callbacks.EMAWeightAveraging(update_starting_at_step=1_000)
        if kind == "WeightAveraging"
        else pl.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=9)
    )

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            model = averaging._average_model
            self.weights = weights(model.module if kind == "WeightAveraging" else model)

    look = Look()
    tuned = callback(store_path, experiment="tuned", init_from="x@step=4")
    fit(trainer_with(tuned, averaging, look, epochs=1), net(seed=5))
    assert look.weights == trained["step=4"]


# -- two callbacks, given managers, other processes ---------------------------------------------------


def test_of_two_callbacks_the_one_that_is_furthest_is_gone_on_from(store_path: Path) -> None:
    def both() -> tuple[Any, Any]:
        return callback(store_path), callback(
            store_path, experiment="y", every_n_epochs=None, every_n_steps=3
        )

    whole = weights(fit(trainer_with(epochs=3), net()))
    first, second = both()
    fit(trainer_with(first, second, epochs=2), net())
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.forget("latest")
    first, second = both()
    assert weights(fit(trainer_with(first, second, epochs=3), net(seed=5))) == whole
    assert [(each.resumption.kind, each.resumption.step) for each in (first, second)] == [
        ("resumed", 4), ("complete", 8),
    ]  # fmt: skip
    first, second = both()
    fit(trainer_with(first, second, epochs=3), net(seed=5), ckpt_path="x@step=4")
    assert [each.resumption.step for each in (first, second)] == [4, 3]
    with CheckpointManager(store_path, experiment="y") as manager:
        assert manager.latest().step == 12
        assert manager.verify().ok


def test_a_manager_that_is_given_says_when_to_save_and_what_is_best(store_path: Path) -> None:
    def given(policy: SavePolicy | None, name: str, **options: Any) -> list[int]:
        with CheckpointManager(
            store_path, experiment=name, metric="val_loss", save_policy=policy, retention=[KeepLast(9)]
        ) as manager:
            ours = CheckpointCallback(manager=manager, **options)
            assert ours.best_model_path == f"{name}@best"
            fit(trainer_with(ours, epochs=2), net())
            return [each.step for each in manager.checkpoints()]

    assert given(EverySteps(3), "a") == [3, 6, 8]
    assert given(None, "b") == [4, 8]
    assert given(EverySteps(3), "c", save_policy=EveryEpochs(1)) == [3, 4, 6, 8]
    with CheckpointManager(store_path, experiment="d", metric="val_loss") as manager:
        CheckpointCallback(manager=manager, monitor="val_loss")
        with pytest.raises(UsageError, match="these are the manager's to say: metric"):
            CheckpointCallback(manager=manager, monitor="other")


def test_a_callback_can_be_sent_to_another_process(store_path: Path) -> None:
    ours = pickle.loads(pickle.dumps(callback(store_path)))  # noqa: S301 - our own, an instant ago
    assert isinstance(ours, CheckpointCallback)
    assert isinstance(ours, pl.callbacks.Checkpoint)
    fit(trainer_with(ours, epochs=1), net())
    with CheckpointManager(store_path, experiment="x") as manager:
        assert manager.latest().step == 4
