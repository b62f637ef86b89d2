"""Two writers in one experiment: allowed, and each checkpoint whole; or refused where one asks to be alone."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, StoreError, clock
from ckpt_core.pipeline import sole
from ckpt_core.repository import Leases
from ckpt_core.repository.leases import LOCK_SECONDS
from ckpt_core.stores import MemoryStore

STATE = {"w": np.arange(3000.0)}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def opened(store: Any, experiment: str = "x", **options: Any) -> CheckpointManager:
    return CheckpointManager(store, experiment=experiment, catalog="sqlite://", **options)


def leases(store: MemoryStore) -> int:
    return len(list(store.list("leases")))


def test_two_may_write_and_each_checkpoint_is_whole(store: MemoryStore) -> None:
    with opened(store) as one, opened(store) as two:
        for step in range(4):
            for number, manager in enumerate((one, two)):
                manager.save({"w": STATE["w"] + step, "who": number}, step=step, wait=True)
        assert len(one.checkpoints()) == 8
        assert {c.attempt.number for c in one.checkpoints()} == {1, 2}
        assert one.load("latest")["who"] == 1
        assert one.verify().ok
    assert leases(store) == 0


def test_a_second_that_wants_to_be_alone_is_refused(store: MemoryStore) -> None:
    with opened(store, exclusive=True) as first:
        with pytest.raises(StoreError, match=rf"another writer of 'x' \(.*:{os.getpid()}\)") as caught:
            opened(store, exclusive=True)
        assert caught.value.kind == "locked"
        with opened(store, "other", exclusive=True) as other:
            other.save(STATE, step=1, wait=True)
        first.save(STATE, step=1, wait=True)
    with opened(store, exclusive=True) as second:
        assert second.latest() is not None
    assert leases(store) == 0


def test_one_that_does_not_care_may_read_beside_it_and_not_write(store: MemoryStore) -> None:
    with opened(store, exclusive=True) as alone:
        alone.save(STATE, step=1, wait=True)
        with opened(store) as other:
            assert other.load("latest")["w"][1] == 1
            with pytest.raises(StoreError, match="the only one") as caught:
                other.save(STATE, step=2, wait=True)
            assert caught.value.kind == "locked"
    with opened(store) as other:
        other.save(STATE, step=2, wait=True)


def test_a_manager_that_was_never_closed_keeps_nobody_out(store: MemoryStore) -> None:
    opened(store, exclusive=True)
    gc.collect()
    opened(store, exclusive=True).close()


def test_it_is_renewed_while_it_does_nothing(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole, "_PERIOD", 0.001)
    now = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    with opened(store, exclusive=True):
        (before,) = store.list("leases")
        now[0] += LOCK_SECONDS / 3
        while next(store.list("leases")).modified == before.modified:
            pass
    assert leases(store) == 0


def test_one_that_was_held_up_does_not_save_what_would_come_after_anothers(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store, exclusive=True) as first:
        first.save(STATE, step=1, wait=True)
        for info in list(store.list("leases")):  # as another does that takes its lock for left behind
            store.delete(info.key)
        with opened(store, exclusive=True) as second:
            second.save(STATE, step=2, wait=True)
            with pytest.raises(StoreError, match="held up") as caught:
                first.save(STATE, step=3, wait=True)
            assert caught.value.kind == "locked"
            assert [c.step for c in second.checkpoints()] == [1, 2]


def test_a_writer_elsewhere_that_is_gone_lets_the_next_in_after_a_while(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Leases(store, "another machine/1/2/3").take("writer of 'x'", lock="experiment x")
    with pytest.raises(StoreError, match="another writer"):
        opened(store, exclusive=True)
    now = store.now()
    monkeypatch.setattr(store, "now", lambda: now + LOCK_SECONDS + 1)
    opened(store, exclusive=True).close()


def test_a_refused_manager_leaves_nothing_open(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="x", exclusive=True):
        counts = []
        for _ in range(3):  # SQLite closes its file when nobody in this process has it open any more
            with pytest.raises(StoreError):
                CheckpointManager(tmp_path, experiment="x", exclusive=True)
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert len(set(counts)) == 1
