"""Save policies and hooks in a JAX loop: every event, a rate that the loop tells or optax keeps, a loss that is NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from ckpt_core import EverySteps, OnLearningRateDrop, OnLossSpike
from ckpt_jax import JaxCheckpointer
from contract.strategies import EXPERIMENT, check_all_events, kept, reasons

SCHEDULE = optax.piecewise_constant_schedule(0.01, {6: 0.1})
OPTIMIZER = optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE)


@jax.jit
def train(state: Any, x: Any) -> Any:
    loss, gradients = jax.value_and_grad(lambda weights: jnp.mean((weights * x - 1.0) ** 2))(state["params"])
    updates, optimizer = OPTIMIZER.update(gradients, state["optimizer"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss


def run(root: Path, *, tells: bool = True, bad: int | None = None, **options: Any) -> None:
    """Two epochs of six steps."""
    params = jnp.ones(3)
    data = [jnp.full(3, number / 4) for number in range(1, 7)]
    with JaxCheckpointer(root, data=data, **{"experiment": EXPERIMENT, **options}) as ckpt:
        state = ckpt.restore({"params": params, "optimizer": OPTIMIZER.init(params)})
        for _ in ckpt.epochs(2):
            for batch in ckpt.batches():
                state, loss = train(state, batch)
                step = ckpt.global_step + 1
                rate = {"learning_rate": SCHEDULE(step)} if tells else {}
                ckpt.step(state, loss=jnp.nan if step == bad else loss, **rate)
            ckpt.evaluated(val_loss=float(jnp.sum((state["params"] - 1.0) ** 2)))


def test_every_event_reaches_hooks(tmp_path: Path) -> None:
    heard = check_all_events(lambda root, **options: run(root, metric="val_loss", **options), tmp_path)
    # The first run broke down in step 6, before its rate was looked at; the second tells one with its first step.
    assert heard.rates[-1] == (7, pytest.approx(0.01), pytest.approx(0.001))


@pytest.mark.parametrize(
    ("tells", "fell"), [(True, 6), (False, 7)]
)  # optax keeps the rate of the step just made
def test_before_and_after_the_learning_rate_drops(tells: bool, fell: int, tmp_path: Path) -> None:
    run(tmp_path / "s", tells=tells, save_policy=OnLearningRateDrop(settle=2))
    assert reasons(tmp_path / "s")[:2] == [
        (fell, "before the learning rate drops from 0.01 to 0.001"),
        (fell + 2, "2 steps after the learning rate dropped from 0.01 to 0.001"),
    ]


def test_the_last_good_is_kept_when_the_loss_is_nan(tmp_path: Path) -> None:
    run(tmp_path / "s", bad=11, save_policy=OnLossSpike() | EverySteps(3))
    assert kept(tmp_path / "s") == 9
