"""Loops with the four lines in all the shapes that people write, in one process: counted, ended and gone on with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_core import BaseHook, CheckpointManager, HookContext, HookEvent, StateMismatchError, UsageError
from ckpt_torch import TorchCheckpointer


class Job:
    """A training that a program would begin: the same each time it is made."""

    def __init__(self, store: Path, *, more: dict[str, Any] | None = None, **options: Any) -> None:
        torch.manual_seed(1)
        self.data = torch.arange(24.0).reshape(12, 2)
        self.loader = DataLoader(TensorDataset(self.data), batch_size=3, shuffle=True)
        self.model: Any = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.seen: list[Any] = []
        parts = {"model": self.model, "optimizer": self.optimizer}
        loader = {"train": self.loader, **more} if more else self.loader
        self.ckpt = TorchCheckpointer(store, **{"experiment": "test", "loader": loader, **parts, **options})

    def step(self, batch: Any) -> None:
        self.forward_and_backward(batch)
        self.optimizer.step()
        self.seen.append(batch[0].tolist())

    def forward_and_backward(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.model(batch[0]).square().mean().backward()


def bits(model: nn.Module) -> list[bytes]:
    return [each.numpy().tobytes() for each in model.state_dict().values()]


def checkpoints(store: Path) -> list[tuple[int, bool]]:
    """Step of each checkpoint, and whether it is of a training that had come to its end."""
    with CheckpointManager(store, experiment="test") as manager:
        found = manager.checkpoints()
        ends = [manager.load(each.id, include="session")["session"]["finished"] for each in found]
        return [(each.step, end) for each, end in zip(found, ends, strict=True)]


@pytest.fixture
def whole(tmp_path: Path) -> Job:
    job = Job(tmp_path / "whole")
    for _ in job.ckpt.epochs(range(3)):
        for batch in job.ckpt.loader:
            job.step(batch)
    return job


def test_steps_are_those_of_the_optimizer_and_the_end_is_noticed(whole: Job, tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "whole") == [(12, True)]
    assert whole.ckpt.global_step == 12
    again = Job(tmp_path / "whole")
    assert again.ckpt.resumption.kind == "complete"
    assert list(again.ckpt.epochs(range(3))) == []
    assert bits(again.model) == bits(whole.model)
    assert checkpoints(tmp_path / "whole") == [(12, True)]


class Stop(Exception):
    """On purpose."""


def test_batches_keep_their_numbers(whole: Job, store_path: Path) -> None:
    seen: list[Any] = []
    for stop in (2, 7, None):
        job = Job(store_path)
        with contextlib.suppress(Stop):
            for epoch in job.ckpt.epochs(range(3)):
                for number, batch in enumerate(job.ckpt.loader, job.ckpt.batch):
                    if job.ckpt.global_step + 1 == stop:
                        raise Stop
                    job.step(batch)
                    assert job.ckpt.batch == number + 1
                    seen.append((epoch, number, job.seen[-1]))
    assert [each[:2] for each in seen] == [(epoch, number) for epoch in range(3) for number in range(4)]
    assert [each[2] for each in seen] == whole.seen
    assert bits(job.model) == bits(whole.model)


def leave_by_break(job: Job) -> None:
    for _ in job.ckpt.epochs(range(9)):
        for batch in job.ckpt.loader:
            job.step(batch)
        if job.ckpt.epoch == 1:
            break


def leave_both_by_return(job: Job) -> Any:
    for _ in job.ckpt.epochs(range(9)):
        for batch in job.ckpt.loader:
            job.step(batch)
            if len(job.seen) == 6:
                return batch
    return None


def leave_a_progress_bar(job: Job) -> None:
    def bar(epochs: Any) -> Iterator[int]:
        assert len(epochs) == 9
        yield from epochs

    for epoch in bar(job.ckpt.epochs(9)):
        for batch in job.ckpt.loader:
            job.step(batch)
        if epoch == 1:
            break


@pytest.mark.parametrize(
    ("leave", "step"), [(leave_by_break, 8), (leave_both_by_return, 6), (leave_a_progress_bar, 8)]
)
def test_a_loop_that_is_left_has_ended(leave: Callable[[Job], Any], step: int, store_path: Path) -> None:
    job = Job(store_path)
    leave(job)
    assert checkpoints(store_path) == [(step, True)]
    assert list(Job(store_path).ckpt.epochs(9)) == []
    nn.init.zeros_(job.model[0].weight)  # whatever is done with the model after the loop is not in it
    again = Job(store_path)
    assert not again.model[0].weight.eq(0).any()


def fail_in_the_second_epoch(job: Job, form: str) -> None:
    with job.ckpt if form == "with" else contextlib.nullcontext():
        for epoch in job.ckpt.epochs(range(3)):
            for batch in job.ckpt.loader:
                job.forward_and_backward(batch)
                if epoch == 1 and len(job.seen) == 6:
                    raise Stop
                job.optimizer.step()
                job.seen.append(batch[0].tolist())


@pytest.mark.parametrize("form", ["bare", "with"])
def test_a_loop_that_failed_goes_on_from_its_last_good_state(whole: Job, store_path: Path, form: str) -> None:
    failed = Job(store_path)
    with pytest.raises(Stop):
        fail_in_the_second_epoch(failed, form)
    assert checkpoints(store_path) == [(6, False)]
    after = Job(store_path)
    fail_in_the_second_epoch(after, form)
    assert failed.seen + after.seen == whole.seen
    assert bits(after.model) == bits(whole.model)


def test_what_has_ended_is_told_to_hooks(store_path: Path) -> None:
    told: list[Any] = []

    class Tell(BaseHook):
        events = (HookEvent.TRAIN_BEGIN, HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED)

        def execute(self, context: HookContext) -> None:
            told.append((context.event.name, context.step, type(context.error).__name__))

    for form in ("bare", "with"):
        with pytest.raises(Stop):
            fail_in_the_second_epoch(Job(store_path, resume=None, hooks=[Tell()]), form)
    for _ in Job(store_path, hooks=[Tell()]).ckpt.epochs(1):
        pass
    assert told == [
        ("TRAIN_BEGIN", 0, "NoneType"), ("TRAIN_FAILED", 6, "LoopLeftError"),
        ("TRAIN_BEGIN", 0, "NoneType"), ("TRAIN_FAILED", 6, "Stop"),
        ("TRAIN_BEGIN", 6, "NoneType"), ("TRAIN_END", 6, "NoneType"),
    ]  # fmt: skip


def test_an_end_that_cannot_be_told_is_said_by_finish(store_path: Path) -> None:
    job = Job(store_path)
    epochs = iter(job.ckpt.epochs(range(9)))
    for _ in epochs:
        for batch in job.ckpt.loader:
            job.step(batch)
        break
    assert checkpoints(store_path) == []
    job.ckpt.finish()
    job.ckpt.finish()
    assert checkpoints(store_path) == [(4, True)]
    with pytest.raises(UsageError, match="this training is over"):
        job.ckpt.step()


def test_the_end_of_the_process_comes_before_that_of_the_loop(store_path: Path) -> None:
    job = Job(store_path)
    held = iter(job.ckpt.epochs(range(9)))
    for _ in held:
        for batch in job.ckpt.loader:
            job.step(batch)
        break
    job.ckpt._at_exit()
    assert checkpoints(store_path) == [(4, False)]
    after = Job(store_path)
    assert (after.ckpt.epoch, after.ckpt.batch) == (0, 4)


def test_a_loader_without_epochs_is_one_pass(store_path: Path) -> None:
    job = Job(store_path)
    for batch in job.ckpt.loader:
        job.step(batch)
    with pytest.raises(UsageError, match="nothing counts the epochs"):
        next(iter(job.ckpt.loader))
    job.ckpt.finish()
    assert checkpoints(store_path) == [(4, True)]


def test_who_forgets_to_change_the_line_of_the_loader_is_told(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(store_path, every_n_epochs=1)
    for _ in job.ckpt.epochs(range(2)):
        for batch in job.loader:
            job.step(batch)
    assert "epoch 0 took nothing from ckpt.loader" in caplog.text
    assert checkpoints(store_path) == [(4, False), (8, True)]


def test_who_forgets_the_optimizer_is_told(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(store_path, optimizer=None)
    for _ in job.ckpt.epochs(range(2)):
        for batch in job.ckpt.loader:
            job.step(batch)
    assert "epoch 1 made no step that could be counted" in caplog.text
    assert job.ckpt.global_step == 0


@pytest.mark.parametrize("total", [iter(range(3)), 2.5, {1, 2}])
def test_epochs_must_be_countable(store_path: Path, total: Any) -> None:
    job = Job(store_path)
    with pytest.raises(UsageError, match="give a number or a range"):
        job.ckpt.epochs(total)
    job.ckpt.finish()


def test_other_numbers_of_the_epochs(store_path: Path) -> None:
    job = Job(store_path)
    assert list(job.ckpt.epochs(range(1, 4))) == [1, 2, 3]
    assert list(Job(store_path).ckpt.epochs(range(1, 6))) == [4, 5]


def test_the_loader_is_still_the_loader(store_path: Path) -> None:
    job = Job(store_path)
    assert job.ckpt.loader.dataset is job.loader.dataset
    assert job.ckpt.loader.batch_size == 3
    job.ckpt.finish()


def test_a_validation_loader_inside_of_an_iteration(store_path: Path, tmp_path: Path) -> None:
    """Each of its passes is a whole one, wherever the training is stopped."""

    def run(store: Path, stop: int | None = None) -> list[Any]:
        rng = torch.Generator().manual_seed(3)
        held_out = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=2, shuffle=True, generator=rng)
        job = Job(store, every_n_steps=1, more={"val": held_out})
        done: list[Any] = []
        with contextlib.suppress(Stop):
            for _ in job.ckpt.epochs(range(2)):
                for batch in job.ckpt.loaders["train"]:
                    if job.ckpt.global_step == stop:
                        raise Stop
                    job.step(batch)
                    done.append(batch[0].tolist())
                    if len(done) % 2:
                        done.append([each[0].tolist() for each in job.ckpt.loaders["val"]])
        return done

    whole = run(tmp_path / "whole")
    assert [len(each) for each in whole] == [3] * 16
    assert run(store_path, 3) + run(store_path, 4) + run(store_path) == whole


def test_weights_to_begin_with(whole: Job, store_path: Path, tmp_path: Path) -> None:
    del whole
    with CheckpointManager(tmp_path / "whole", experiment="test") as manager:
        source = manager.load("latest", include="model")["model"]
    options: dict[str, Any] = {"experiment": "tuned", "init_from": "test@latest"}
    tuned = Job(tmp_path / "whole", **options)
    assert tuned.ckpt.resumption.kind == "fresh"
    assert bits(tuned.model) == [each.numpy().tobytes() for each in source.values()]
    for _ in tuned.ckpt.epochs(1):
        for batch in tuned.ckpt.loader:
            tuned.step(batch)
    again = Job(tmp_path / "whole", **options)
    assert bits(again.model) == bits(tuned.model), "they are for those who begin"
    again.ckpt.finish()

    other = nn.ModuleDict({"first": nn.Linear(2, 4), "head": nn.Linear(4, 3)})
    changed: dict[str, Any] = {
        "experiment": "other",
        "init_from": "test@latest",
        "model": other,
        "optimizer": None,
    }
    with pytest.raises(StateMismatchError, match="do not fit the model"):
        Job(tmp_path / "whole", **changed)
    renames = {"0": "first", "3": "head", "1": None}
    job = Job(tmp_path / "whole", **changed, strict=False, renames=renames)
    assert torch.equal(other["first"].weight, source["0.weight"])
    job.ckpt.finish()


def test_several_models_take_what_is_theirs(store_path: Path) -> None:
    first = {"nets": {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}}
    TorchCheckpointer(store_path, experiment="first", **first).finish()
    second = {"nets": {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}}
    TorchCheckpointer(store_path, experiment="second", init_from="first@latest", **second).finish()
    for name in ("a", "b"):
        assert bits(first["nets"][name]) == bits(second["nets"][name])


def test_a_manager_of_ones_own_loses_the_policy_with_the_training(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="test") as manager:
        before = manager.hooks.hooks()
        for _ in range(2):
            ckpt = TorchCheckpointer(manager=manager, model=nn.Linear(1, 1), every_n_steps=1)
            ckpt.step()
            ckpt.finish()
            assert manager.hooks.hooks() == before


def test_a_training_in_several_processes_is_refused(store_path: Path) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(UsageError, match="runs in 2 processes"):
            TorchCheckpointer(store_path, experiment="test")
    finally:
        torch.distributed.destroy_process_group()
    assert not store_path.exists()
