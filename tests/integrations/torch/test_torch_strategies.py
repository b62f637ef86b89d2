"""Save policies on what they were made for: digits, a learning rate that drops, a loss that explodes, a real NaN."""

from __future__ import annotations

import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import (
    CheckpointManager,
    EverySteps,
    HookEvent,
    KeepLast,
    Never,
    OnImprovement,
    OnLearningRateDrop,
    OnLossSpike,
    OnPlateau,
    OnSignal,
    hook,
)
from ckpt_torch import TorchCheckpointer
from contract.strategies import EXPERIMENT, check_all_events, reasons

BATCH = 128
PER_EPOCH = 12  # of 1,500 images


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, ...]:
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


class Digits:
    """A small classifier and its training, by `run`; `each_step` may meddle with it."""

    def __init__(
        self, digits: tuple[torch.Tensor, ...], *, lr: float = 0.1, gamma: float = 0.1, every: int = 3
    ) -> None:
        torch.manual_seed(7)
        self.images, self.labels, self.unseen, self.truth = digits
        self.model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, every, gamma)
        self.loader = DataLoader(TensorDataset(self.images, self.labels), BATCH, shuffle=True)
        self.losses: dict[int, float] = {}

    def checkpointer(self, root: Path, **options: Any) -> TorchCheckpointer:
        return TorchCheckpointer(
            root, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, loader=self.loader,
            **{"experiment": EXPERIMENT, **options},
        )  # fmt: skip

    def run(self, root: Path, epochs: int, each_step: Any = None, **options: Any) -> None:
        with self.checkpointer(root, **options) as ckpt:
            for _ in ckpt.epochs(epochs):
                for images, labels in ckpt.loader:
                    loss = nn.functional.cross_entropy(self.model(images), labels)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    ckpt.step(loss=loss)
                    self.losses[ckpt.global_step] = loss.item()
                    if each_step is not None:
                        each_step(self, ckpt.global_step)
                self.scheduler.step()
                ckpt.evaluated(val_loss=self.evaluate())

    def evaluate(self) -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(self.model(self.unseen), self.truth).item()

    def accuracy(self) -> float:
        with torch.no_grad():
            return (self.model(self.unseen).argmax(1) == self.truth).float().mean().item()


def test_every_event_reaches_hooks(digits: Any, tmp_path: Path) -> None:
    check_all_events(
        lambda root, **options: Digits(digits).run(root, 2, metric="val_loss", **options), tmp_path
    )


def test_before_and_after_the_learning_rate_drops(digits: Any, tmp_path: Path) -> None:
    Digits(digits).run(tmp_path / "s", 5, save_policy=OnLearningRateDrop(settle=5))
    assert reasons(tmp_path / "s") == [
        (36, "before the learning rate drops from 0.1 to 0.01"),
        (41, "5 steps after the learning rate dropped from 0.1 to 0.01"),
        (60, "end of training"),
    ]
    # What was saved before it has made no step with the lower rate: as a training without any drop comes by.
    straight = Digits(digits, gamma=1.0)
    straight.run(tmp_path / "straight", 3, save_policy=Never())
    with CheckpointManager(tmp_path / "s", experiment=EXPERIMENT) as manager:
        before = manager.load("step=36", framework="torch")
    assert all(
        torch.equal(before["model"][name], value) for name, value in straight.model.state_dict().items()
    )
    assert before["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01)


def test_a_schedule_by_steps_is_seen_as_well(digits: Any, tmp_path: Path) -> None:
    run = Digits(digits, gamma=1.0)

    def lower(run: Digits, step: int) -> None:
        if step == 20:  # after ckpt.step(): it shows at the next safe point, before the next batch
            run.optimizer.param_groups[0]["lr"] = 0.001

    run.run(tmp_path / "s", 3, lower, save_policy=OnLearningRateDrop(settle=0))
    assert reasons(tmp_path / "s")[0] == (20, "before the learning rate drops from 0.1 to 0.001")


def explode(run: Digits, step: int) -> None:
    if step == 41:  # from the next step on, and the checkpoint of step 40 is not of this
        run.optimizer.param_groups[0]["lr"] = 1000.0


def test_a_loss_that_explodes_has_the_last_good_kept(digits: Any, tmp_path: Path, caplog: Any) -> None:
    run = Digits(digits)
    run.run(
        tmp_path / "s",
        6,
        explode,
        save_policy=OnLossSpike() | EverySteps(4),
        retention=[KeepLast(2)],
        metric="loss",
    )
    assert max(run.losses.values()) > 100 * run.losses[40]
    with CheckpointManager(tmp_path / "s", experiment=EXPERIMENT) as manager:
        good = manager.resolve("last-good")
        # The rate is 1000 for step 42, whose loss is still that of good weights; 43's is not.
        assert good.step == 40
        assert good.pinned
        assert {each.step for each in manager.checkpoints()} == {40, 68, 72}
        audited = next(each for each in manager.workspace.index.catalog().audit_log() if each.event == "keep")
    assert (audited.subject, audited.detail["tag"]) == (good.id, "last-good")
    assert "loss went up to" in audited.detail["reason"]
    assert "the checkpoint of step 40 is kept as 'last-good'" in caplog.text


def test_training_goes_on_from_the_last_good(digits: Any, tmp_path: Path) -> None:
    policy = OnLossSpike() | EverySteps(4)
    spoilt = Digits(digits)
    spoilt.run(tmp_path / "s", 6, explode, save_policy=policy)
    again = Digits(digits)
    again.run(tmp_path / "s", 6, save_policy=policy, resume="last-good")
    assert min(again.losses) == 41
    assert (spoilt.accuracy() < 0.5, again.accuracy() > 0.85) == (True, True)
    with CheckpointManager(tmp_path / "s", experiment=EXPERIMENT) as manager:
        assert manager.resolve("last-good").step == 40  # no spike this time
        assert manager.latest().attempt.number == 2  # type: ignore[union-attr]


def test_a_real_nan(digits: Any, tmp_path: Path) -> None:
    def overflow(run: Digits, step: int) -> None:
        if step == 20:
            run.optimizer.param_groups[0]["lr"] = 1e38

    run = Digits(digits)
    run.run(tmp_path / "s", 3, overflow, save_policy=OnLossSpike() | EverySteps(5))
    first = next(step for step, loss in run.losses.items() if not math.isfinite(loss))
    with CheckpointManager(tmp_path / "s", experiment=EXPERIMENT) as manager:
        good = manager.resolve("last-good")
        weights = manager.load("last-good", include="model")["model"]
    assert good.step == max(step for step in range(0, first - 1, 5))
    assert all(value.isfinite().all() for value in weights.values())


def test_where_nothing_good_is_left_it_says_so(digits: Any, tmp_path: Path, caplog: Any) -> None:
    Digits(digits).run(tmp_path / "s", 5, explode, save_policy=OnLossSpike())
    assert "no checkpoint of step 41 or before is left to be kept" in caplog.text
    assert [step for step, _ in reasons(tmp_path / "s")] == [60]


def test_a_plateau_and_improvements_with_patience(digits: Any, tmp_path: Path) -> None:
    run, values = Digits(digits, lr=0.05, gamma=1e-6, every=6), []
    evaluate = run.evaluate
    run.evaluate = lambda: values.append(evaluate()) or values[-1]  # type: ignore[method-assign, func-returns-value]
    run.run(
        tmp_path / "s", 12,
        save_policy=OnPlateau("val_loss", patience=3, min_delta=1e-3) | OnImprovement("val_loss", patience=2),
    )  # fmt: skip
    # From the seventh epoch on the learning rate is next to nothing, and the loss stands.
    assert all(later < earlier for earlier, later in pairwise(values[:6]))
    assert max(values[6:]) - min(values[6:]) < 1e-3
    found = reasons(tmp_path / "s")
    assert [step for step, why in found if "improved from" in why or "first" in why][:2] == [12, 48]
    assert [step for step, why in found if "has not improved" in why] == [9 * PER_EPOCH]


def test_a_signal_saves_and_training_goes_on(digits: Any, tmp_path: Path) -> None:
    def send(run: Digits, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.getsignal(signal.SIGUSR2)
    Digits(digits).run(tmp_path / "s", 1, send, save_policy=OnSignal("SIGUSR2"))
    assert reasons(tmp_path / "s") == [(6, "SIGUSR2 received"), (12, "end of training")]
    assert signal.getsignal(signal.SIGUSR2) == before


ALL = (
    OnLossSpike(window=20) | OnLearningRateDrop(settle=7) | OnPlateau("val_loss", patience=2)
    | OnImprovement("val_loss", patience=2) | EverySteps(5)
)  # fmt: skip


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def unbroken(digits: Any, tmp_path_factory: Any) -> tuple[list[tuple[int, str]], dict[str, Any]]:
    root = tmp_path_factory.mktemp("unbroken") / "s"
    Digits(digits).run(root, 6, save_policy=ALL, metric="val_loss")
    return reasons(root), remembered(root)


def remembered(root: Path) -> dict[str, Any]:
    with CheckpointManager(root, experiment=EXPERIMENT) as manager:
        state = manager.load("latest", include="session")
    return dict(state["session"]["hooks"])


@pytest.mark.parametrize("stops", [[17], [24], [36, 41, 43], [71]])
def test_what_policies_remember_survives_a_resume_to_the_bit(
    digits: Any, tmp_path: Path, unbroken: Any, stops: list[int]
) -> None:
    for stop in [*stops, None]:

        def fail(run: Digits, step: int, stop: int | None = stop) -> None:
            if step == stop:
                raise Stopped

        try:
            Digits(digits).run(tmp_path / "s", 6, fail, save_policy=ALL, metric="val_loss")
        except Stopped:
            assert stop is not None
    wanted, memory = unbroken
    assert reasons(tmp_path / "s") == wanted  # what was lost with each stop was made again
    assert remembered(tmp_path / "s") == memory
    assert memory["save-policy"]["memory"]


def test_hooks_are_told_of_rates_and_losses(digits: Any, tmp_path: Path) -> None:
    rates: list[tuple[Any, ...]] = []
    losses: dict[Any, Any] = {}

    @hook(HookEvent.LEARNING_RATE_CHANGED)
    def rate(context: Any) -> None:
        rates.append((context.step, context.data["before"], context.data["now"]))

    @hook(HookEvent.STEP_END)
    def loss(context: Any) -> None:
        losses[context.step] = context.loss

    run = Digits(digits, gamma=0.5, every=1)
    run.run(tmp_path / "s", 3, save_policy=Never(), hooks=[rate, loss])
    assert rates == [(0, None, 0.1), (12, 0.1, 0.05), (24, 0.05, 0.025), (36, 0.025, 0.0125)]
    assert losses == run.losses
