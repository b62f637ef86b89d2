"""The callback's arguments, its classes for both packages, its CheckpointIO. No process is killed here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ckpt_lightning
from ckpt_core import (
    AnyOf,
    CheckpointManager,
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    KeepBest,
    KeepEvery,
    KeepLast,
    NotFoundError,
    OnImprovement,
    UsageError,
)
from ckpt_lightning import CheckpointCallback, CheckpointIO, for_package
from ckpt_lightning.dialect import retention_of, save_policy_of
from ckpt_lightning.io import as_reference

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has much to say


@pytest.fixture(params=PACKAGES)
def pl(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


def fit(pl: Any, callback: Any, module: Any = None, **options: Any) -> Any:
    """A tiny training; returns the trainer."""
    ckpt_path = options.pop("ckpt_path", None)
    options = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | options
    trainer = pl.Trainer(accelerator="cpu", callbacks=[callback], **options)
    data = DataLoader(TensorDataset(torch.arange(8.0).reshape(8, 1)), batch_size=2)
    trainer.fit(module or linear(pl), data, data, ckpt_path=ckpt_path)
    return trainer


def linear(pl: Any) -> Any:
    class Linear(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch[0]).square().mean()
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    return Linear()


# -- Lightning's words --------------------------------------------------------------------------------


def policy(**options: Any) -> Any:
    nothing = dict.fromkeys(
        ("monitor", "save_policy", "every_n_steps", "every_n_train_steps", "every_n_epochs", "every_minutes",
         "train_time_interval")
    )  # fmt: skip
    return save_policy_of(**{**nothing, "mode": "min", **options})


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({}, EveryEpochs(1)),
        ({"monitor": "loss"}, AnyOf(EveryEpochs(1), OnImprovement("loss", "min"))),
        ({"monitor": "accuracy", "mode": "max"}, AnyOf(EveryEpochs(1), OnImprovement("accuracy", "max"))),
        ({"every_n_train_steps": 5}, EverySteps(5)),
        ({"every_n_steps": 5, "monitor": "loss"}, EverySteps(5)),
        ({"every_n_train_steps": 0, "every_n_epochs": 2}, EveryEpochs(2)),
        ({"train_time_interval": timedelta(hours=1)}, EveryMinutes(60.0)),
        ({"save_policy": EverySteps(3)}, EverySteps(3)),
        ({"save_policy": EverySteps(3), "every_n_epochs": 1}, AnyOf(EverySteps(3), EveryEpochs(1))),
    ],
    ids=str,
)
def test_when_to_save(options: dict[str, Any], meant: Any) -> None:
    assert policy(**options) == meant


def test_the_same_thing_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="every_n_steps and every_n_train_steps"):
        policy(every_n_steps=1, every_n_train_steps=1)
    with pytest.raises(UsageError, match="every_minutes and train_time_interval"):
        policy(every_minutes=1, train_time_interval=timedelta(1))
    with pytest.raises(UsageError, match="monitor='a' and metric='b'"):
        CheckpointCallback("x", experiment="x", monitor="a", metric="b")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({}, ()),
        ({"save_top_k": -1}, ()),
        ({"save_top_k": 2, "monitor": "loss"}, (KeepBest(2), KeepLast(1))),
        ({"save_top_k": 1}, (KeepLast(1),)),
        ({"save_top_k": 0, "monitor": "loss"}, (KeepLast(1),)),
        ({"save_last": True}, ()),
        ({"save_last": True, "retention": [KeepEvery(steps=10)]}, (KeepEvery(steps=10), KeepLast(1))),
    ],
    ids=str,
)
def test_what_to_keep(options: dict[str, Any], meant: Any) -> None:
    nothing: dict[str, Any] = {"monitor": None, "save_top_k": None, "save_last": None, "retention": ()}
    assert retention_of(**{**nothing, **options}) == meant


def test_the_best_of_what_must_be_said() -> None:
    with pytest.raises(UsageError, match="save_top_k=2 of what"):
        CheckpointCallback("x", experiment="x", save_top_k=2)
    with pytest.raises(UsageError, match="save_top_k is -2"):
        CheckpointCallback("x", experiment="x", save_top_k=-2)
    with pytest.raises(UsageError, match="say where to save"):
        CheckpointCallback("x")
    with (
        CheckpointManager("memory://callback", experiment="x") as manager,
        pytest.raises(UsageError, match="with manager=, .*: root"),
    ):
        CheckpointCallback("x", manager=manager)


# -- both packages ------------------------------------------------------------------------------------


def test_a_callback_for_each_package_and_for_both(pl: Any) -> None:
    one = for_package(pl.__name__).CheckpointCallback("x", experiment="x")
    assert isinstance(one, pl.callbacks.Checkpoint)
    for each in PACKAGES:
        importlib.import_module(each)
    both = CheckpointCallback("x", experiment="x")
    for each in PACKAGES:
        assert isinstance(both, importlib.import_module(each).callbacks.Checkpoint)
    for callback in (one, both):
        assert isinstance(callback, CheckpointCallback)
        assert callback.state_key == "CheckpointCallback"
        assert pl.Trainer(callbacks=[callback], logger=False, accelerator="cpu").checkpoint_callbacks == [
            callback
        ]
    with pytest.raises(UsageError, match="'torch' is not a package of Lightning"):
        for_package("torch")


def test_lightning_is_not_imported_and_may_be_afterwards(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom ckpt_lightning import CheckpointCallback\n"
        "assert not {'lightning', 'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)\n"
        "import pytorch_lightning as pl\n"
        f"callback = CheckpointCallback({str(tmp_path / 'store')!r}, experiment='x')\n"
        "assert isinstance(callback, pl.callbacks.Checkpoint)\nassert 'lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


# -- fit ----------------------------------------------------------------------------------------------


def assert_left_alone(trainer: Any) -> None:
    ours = {
        "on_advance_start",
        "setup_data",
        "_load_combined_loader_states",
        "_restore_modules_and_callbacks",
    }
    for owner in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop, trainer._checkpoint_connector):
        assert not ours & vars(owner).keys()


def test_the_trainer_is_left_as_it_was(pl: Any, store_path: Path) -> None:
    trainer = fit(pl, CheckpointCallback(store_path, experiment="x"))
    assert_left_alone(trainer)
    assert type(trainer.train_dataloader) is DataLoader


def test_the_best_is_kept_and_found(pl: Any, store_path: Path) -> None:
    callback = CheckpointCallback(store_path, experiment="x", monitor="val_loss", save_top_k=1)
    trainer = fit(pl, callback, max_epochs=3)
    assert callback.best_model_path.startswith("x@")
    with CheckpointManager(store_path, experiment="x", metric="val_loss") as manager:
        kept = manager.checkpoints()
        assert len(kept) == 1, "the best is the newest: the loss only falls"
        assert kept[0].step == 12
        assert manager.best() == kept[0]
    again = linear(pl)
    trainer.validate(again, DataLoader(TensorDataset(torch.ones(2, 1))), ckpt_path="best", verbose=False)
    assert torch.equal(again.layer.weight, trainer.lightning_module.layer.weight)
    callback.manager.close()


def test_a_trial_run_saves_nothing(pl: Any, store_path: Path) -> None:
    fit(pl, CheckpointCallback(store_path, experiment="x"), fast_dev_run=True)
    assert not store_path.exists()


def test_a_file_of_lightnings_own_still_works(pl: Any, store_path: Path, tmp_path: Path) -> None:
    callback = CheckpointCallback(store_path, experiment="x")
    trainer = fit(pl, callback, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    after = fit(pl, CheckpointCallback(store_path, experiment="x"), ckpt_path=str(tmp_path / "mine.ckpt"))
    assert after.current_epoch == 2
    with CheckpointManager(store_path, experiment="x") as manager:
        assert [checkpoint.attempt.number for checkpoint in manager.checkpoints()] == [1, 2]
        assert manager.checkpoints()[1].attempt.resumed_from is None


def test_something_without_a_codec_is_told_at_the_first_save(pl: Any, store_path: Path) -> None:
    module = linear(pl)
    module.on_save_checkpoint = lambda checkpoint: checkpoint.update(mine=object())
    with pytest.raises(TypeError, match="cannot save 'mine'"):
        fit(pl, CheckpointCallback(store_path, experiment="x"), module)


def test_what_an_optimizer_keeps_in_another_dtype_stays_so(pl: Any, store_path: Path) -> None:
    class Precise(torch.optim.SGD):
        """Sums up its steps more precisely than its parameters are."""

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["sum"] = state.get("sum", torch.zeros_like(parameter, dtype=torch.float64)) + 1 / 3
            return loss

    def sums(epochs: int) -> list[float]:
        module = linear(pl)
        module.configure_optimizers = lambda: Precise(module.parameters(), lr=1e-3)
        trainer = fit(pl, CheckpointCallback(store_path, experiment="x"), module, max_epochs=epochs)
        return [float(state["sum"].flatten()[0]) for state in trainer.optimizers[0].state.values()]

    assert sums(1) == [sum([1 / 3] * 4)] * 2
    assert sums(2) == [sum([1 / 3] * 8)] * 2


def test_nothing_is_left_behind_by_a_fit_that_did_not_begin(pl: Any, store_path: Path) -> None:
    module = linear(pl)

    def fails(stage: str) -> None:
        raise RuntimeError("on purpose")

    module.setup = fails
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(pl, CheckpointCallback(store_path, experiment="x"), module)
    assert_left_alone(module.trainer)


def test_beside_lightnings_own_callback(pl: Any, store_path: Path, tmp_path: Path) -> None:
    own = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "own")
    callback = CheckpointCallback(store_path, experiment="x")
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[callback, own], max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.arange(8.0).reshape(8, 1)), batch_size=2)
    trainer.fit(linear(pl), data)
    assert Path(own.best_model_path).exists()
    assert "CheckpointCallback" not in torch.load(own.best_model_path, weights_only=False)["callbacks"]


# -- CheckpointIO -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        ("latest", "latest"),
        ("best", "best"),
        ("digits@best", "digits@best"),
        ("step=100", "step=100"),
        ("warmup-done", "warmup-done"),
        ("01ABCD", "01ABCD"),
        ("folder/file.ckpt", None),
        ("file.ckpt", None),
        ("s3://bucket/x", None),
        (Path("a/b"), None),
    ],
)
def test_what_is_a_reference_and_what_a_file(path: Any, reference: str | None) -> None:
    assert as_reference(path) == reference


def test_a_file_that_exists_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").touch()
    Path("latest").touch()
    assert as_reference("mine") is None
    assert as_reference("latest") == "latest"


def test_the_checkpoint_io_by_itself(pl: Any, store_path: Path, tmp_path: Path) -> None:
    fit(pl, CheckpointCallback(store_path, experiment="x"))
    io_of: Callable[..., Any] = for_package(pl.__name__).CheckpointIO
    with CheckpointManager(store_path, experiment="x") as manager:
        reader = io_of(manager)
        assert isinstance(reader, CheckpointIO)
        trainer = pl.Trainer(
            accelerator="cpu",
            plugins=[reader],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        data = DataLoader(TensorDataset(torch.ones(2, 1)))
        module = linear(pl)
        trainer.validate(module, data, ckpt_path="latest", verbose=False)
        assert torch.equal(module.layer.weight, manager.load("latest")["state_dict"]["layer.weight"])
        with pytest.raises(NotFoundError, match="no file 'nothing-like-it' either"):
            trainer.validate(module, data, ckpt_path="nothing-like-it", verbose=False)
        with pytest.raises(UsageError, match="reads references only"):
            trainer.save_checkpoint(tmp_path / "x.ckpt")


def test_public_names() -> None:
    assert set(ckpt_lightning.__all__) == {
        "CheckpointCallback", "CheckpointIO", "Classes", "WeightsReport", "for_package", "load_weights",
    }  # fmt: skip
