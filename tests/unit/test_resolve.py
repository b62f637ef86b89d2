"""What references mean, and what is said of those that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, NotFoundError, UsageError
from ckpt_core.pipeline.resolve import best_first, split_reference
from ckpt_core.stores import MemoryStore
from contract.catalog_case import lose


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def manager(store: MemoryStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(store, experiment="digits", metric="loss") as manager:
        yield manager


def save(manager: CheckpointManager, step: int, **options: Any) -> str:
    return manager.save({"step": step, "w": np.arange(3)}, step=step, wait=True, **options).result().id


def test_latest_is_the_newest_of_the_newest_attempt_that_saved(manager: CheckpointManager) -> None:
    save(manager, 100)
    manager.begin_attempt(None)
    assert manager.resolve("latest").step == 100  # the new attempt has saved nothing yet
    newest = save(manager, 5)
    assert manager.resolve("latest").id == newest
    assert manager.latest().id == newest


def test_an_attempt_that_resumes_continues_its_lineage(manager: CheckpointManager) -> None:
    save(manager, 10, metrics={"loss": 0.1})
    manager.begin_attempt(manager.latest())
    save(manager, 20, metrics={"loss": 0.2})
    assert manager.resolve("best").step == 10
    manager.begin_attempt(None)
    save(manager, 1, metrics={"loss": 0.9})
    assert manager.resolve("best").step == 1  # of the newest lineage only
    assert [c.step for c in manager.checkpoints(all_lineages=False)] == [1]
    assert [c.step for c in manager.checkpoints()] == [10, 20, 1]


def test_best_of_equals_is_the_older(manager: CheckpointManager) -> None:
    first = save(manager, 1, metrics={"loss": 0.5})
    save(manager, 2, metrics={"loss": 0.5})
    assert manager.best().id == first


def test_best_with_mode_max(store: MemoryStore) -> None:
    with CheckpointManager(store, experiment="a", metric="acc", mode="max") as manager:
        for step, value in ((1, 0.2), (2, float("inf")), (3, 0.9)):
            save(manager, step, metrics={"acc": value})
        assert manager.best().step == 2


def test_best_where_none_carries_the_metric(manager: CheckpointManager) -> None:
    save(manager, 1, metrics={"acc": 0.1})
    assert manager.best() is None
    with pytest.raises(NotFoundError, match="carry acc"):
        manager.resolve("best")


def test_best_without_a_metric_says_how_to_name_one(store: MemoryStore) -> None:
    with CheckpointManager(store, experiment="a") as manager:
        save(manager, 1)
        with pytest.raises(UsageError, match="best by which metric"):
            manager.resolve("best")
        with pytest.raises(UsageError, match="best by which metric"):
            manager.best()


def test_a_step_means_the_newest_with_it_first_in_the_newest_lineage(manager: CheckpointManager) -> None:
    save(manager, 7)
    again = save(manager, 7)
    save(manager, 8)
    assert manager.resolve("step=7").id == again
    manager.begin_attempt(None)
    save(manager, 3)
    assert manager.resolve("step=7").id == again  # only an older lineage has it
    mine = save(manager, 7)
    assert manager.resolve("step=7").id == mine


def test_a_step_that_is_not_there_names_the_nearest(manager: CheckpointManager) -> None:
    save(manager, 10)
    save(manager, 20)
    with pytest.raises(NotFoundError, match="nearest is step=20") as caught:
        manager.resolve("step=18")
    assert caught.value.step == 18


@pytest.mark.parametrize(
    "reference", ["step=", "step=-1", "step=1.5", "step=x", "step=" + "9" * 5000, "step=٣"]
)
def test_a_malformed_step(manager: CheckpointManager, reference: str) -> None:
    save(manager, 1)
    with pytest.raises(UsageError, match="whole number"):
        manager.resolve(reference)


def test_tags_and_prefixes(manager: CheckpointManager) -> None:
    first = save(manager, 1, tags=["good", "release-1"])
    second = save(manager, 2)
    assert manager.resolve("good").id == manager.resolve("release-1").id == first
    assert manager.resolve(second).id == second
    assert manager.resolve(second.lower()).id == second
    with pytest.raises(UsageError, match="write more of it") as caught:
        manager.resolve(first[:4])
    assert caught.value.kind == "ambiguous"
    with pytest.raises(NotFoundError):
        manager.resolve(first[:3])


def test_a_tag_comes_before_a_prefix(manager: CheckpointManager) -> None:
    first = save(manager, 1)
    second = save(manager, 2)
    manager.tag(second, first)
    assert manager.resolve(first).id == second


def test_nothing_answers(manager: CheckpointManager) -> None:
    with pytest.raises(NotFoundError, match="no checkpoints of experiment 'digits'") as caught:
        manager.resolve("latest")
    assert caught.value.kind == "checkpoint"
    save(manager, 9)
    with pytest.raises(NotFoundError, match="latest is step 9"):
        manager.resolve("nope")


def test_another_experiment(manager: CheckpointManager, store: MemoryStore) -> None:
    with CheckpointManager(store, experiment="other") as other:
        there = save(other, 4, tags=["x"])
    assert manager.resolve("other@latest").id == there
    assert manager.resolve("other@x").id == there
    with pytest.raises(NotFoundError, match="it has other") as caught:
        manager.resolve("latest")
    assert caught.value.kind == "experiment"
    save(manager, 1)
    with pytest.raises(NotFoundError):
        manager.resolve("x")


@pytest.mark.parametrize("text", ["", "  ", "@", "digits@", "@latest", None, 3])
def test_what_is_no_reference(manager: CheckpointManager, text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        manager.resolve(text)
    assert caught.value.kind == "reference"


def test_split_reference() -> None:
    assert split_reference("latest", "a") == ("a", "latest")
    assert split_reference("b@step=3", "a") == ("b", "step=3")


@pytest.mark.parametrize("tag", ["latest", "best", "step=3", "a@b", "../x", "", "a/b", " x", "-x", None])
def test_tags_that_could_be_taken_for_something_else(manager: CheckpointManager, tag: Any) -> None:
    save(manager, 1)
    with pytest.raises(UsageError):
        manager.tag("step=1", tag)
    with pytest.raises(UsageError):
        manager.save({"a": 1}, step=2, tags=[tag])
    assert len(manager.checkpoints()) == 1


def test_best_first_leaves_nan_out(manager: CheckpointManager) -> None:
    save(manager, 1, metrics={"other": float("nan")})
    save(manager, 2, metrics={"other": 1.0})
    assert [c.step for c in best_first(manager.checkpoints(), "other", "min")] == [2]


def test_where_every_manifest_is_damaged_nothing_pretends_that_there_was_none(
    manager: CheckpointManager, store: MemoryStore
) -> None:
    save(manager, 1)
    key = manager.latest().key
    store.put(key, store.get(key)[:-100])
    known = manager.workspace.index.catalog()
    lose(known, known.ids())
    with pytest.raises(CorruptionError, match="manifest of every checkpoint is damaged") as caught:
        manager.resolve("latest")
    assert caught.value.key == key
