"""Save policies and hooks in a Keras fit: every event, schedules of every kind, a loss that is NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from fit_case import X, Y, fit, model_of

from ckpt_core import EverySteps, OnLearningRateDrop, OnLossSpike
from ckpt_keras import CheckpointCallback
from ckpt_keras.losses import BatchLoss
from contract.strategies import EXPERIMENT, check_all_events, kept, reasons


def run(root: Path, *callbacks: Any, rate: Any = 0.01, epochs: int = 3, y: Any = Y, **options: Any) -> Any:
    ours = CheckpointCallback(root, **{"experiment": EXPERIMENT, **options})
    model = model_of(optimizer=keras.optimizers.SGD(rate))
    fit(model, *callbacks, ours, epochs=epochs, validation_data=(X, Y), shuffle=False, y=y)
    return model


def test_every_event_reaches_hooks(tmp_path: Path) -> None:
    heard = check_all_events(lambda root, **options: run(root, monitor="val_loss", **options), tmp_path)
    assert heard.rates == [(0, None, pytest.approx(0.01)), (6, None, pytest.approx(0.01))]


def lower(epoch: int, rate: float) -> float:
    return 0.01 if epoch < 2 else 0.001


class Lower(keras.callbacks.Callback):
    """At the end of the second epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.optimizer.learning_rate = 0.001


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own scheduler
@pytest.mark.parametrize("how", ["schedule", "epoch-begin", "epoch-end"])
def test_before_and_after_the_learning_rate_drops(how: str, tmp_path: Path) -> None:
    callbacks = {"epoch-begin": [keras.callbacks.LearningRateScheduler(lower)], "epoch-end": [Lower()]}.get(
        how, []
    )
    rate = (
        keras.optimizers.schedules.PiecewiseConstantDecay([7], [0.01, 0.001]) if how == "schedule" else 0.01
    )
    run(tmp_path / "s", *callbacks, rate=rate, save_policy=OnLearningRateDrop(settle=2))
    assert reasons(tmp_path / "s")[:2] == [
        (8, "before the learning rate drops from 0.01 to 0.001"),
        (10, "2 steps after the learning rate dropped from 0.01 to 0.001"),
    ]


def test_the_last_good_is_kept_when_the_loss_is_nan(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    y = np.concatenate([Y, Y, Y, Y])
    y[42] = np.nan  # in the batch of step 11
    ours = CheckpointCallback(
        tmp_path / "s", experiment=EXPERIMENT, save_policy=OnLossSpike() | EverySteps(3)
    )
    fit(model_of(), ours, epochs=1, shuffle=False, x=np.concatenate([X, X, X, X]), y=y)
    assert kept(tmp_path / "s") == 9


def test_the_loss_of_a_batch_comes_from_the_mean() -> None:
    losses, told, count, found = [3.0, 1.0, 2.0, 6.0], BatchLoss(), 0, []
    for count, _ in enumerate(losses, 1):
        found.append(told.note(sum(losses[:count]) / count, count))
        told = BatchLoss(*told.state)
    assert found == pytest.approx(losses)
    assert told.note(3.0, count) is None
    assert told.note(None, count + 1) is None
