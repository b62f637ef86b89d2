"""What a manager may be told about threads, memory, chunks and digests; and that it keeps to it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, HookEvent, MissingExtraError, UsageError
from ckpt_core.format import hashing
from ckpt_core.repository import digests
from ckpt_core.stores import MemoryStore

NOISE = np.random.default_rng(3).standard_normal(1 << 18)  # 2 MiB


def state(step: int) -> dict[str, Any]:
    return {"w": NOISE + step, "step": step}


@pytest.mark.parametrize(
    "options",
    [
        {"save_threads": 0}, {"save_threads": True}, {"staged_bytes": -1}, {"chunk_bytes": 1000}, {"chunk_bytes": 0},
        {"chunk_bytes": 2 << 30}, {"digest": "md5"}, {"compression": "gzip"}, {"compression": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_means_nothing_is_refused_before_anything_is_made(
    store_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        CheckpointManager(store_path, experiment="x", **options)
    assert not store_path.exists()


# -- chunks and digests -------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["sha256", "blake3"])
def test_a_store_keeps_to_what_it_was_made_with(store_path: Path, digest: Any) -> None:
    with CheckpointManager(store_path, experiment="x", chunk_bytes=1 << 16, digest=digest) as manager:
        manager.save(state(1), step=1, wait=True)
    with CheckpointManager(store_path, experiment="x") as manager:
        document = manager.workspace.repository.document
        assert (document.chunk_bytes, document.digest) == (1 << 16, digest)
        manager.load()  # what it goes on from is the parent
        second = manager.save(state(1), step=2).result(60)
        assert second.written_bytes == 0, "what the parent has is known by its digests"
        assert (manager.load()["w"] == NOISE + 1).all()
        assert manager.verify().ok
        manager.save({**state(1), "more": NOISE}, step=3, wait=True)
        for step in (1, 2):
            manager.forget(f"step={step}", grace=0)
        manager.prune()
        assert (manager.load()["w"] == NOISE + 1).all()
        assert manager.verify().ok


def test_another_chunk_size_or_digest_than_that_of_the_store_is_refused(store_path: Path) -> None:
    CheckpointManager(store_path, experiment="x", digest="sha256").close()
    with pytest.raises(UsageError, match="made with digest='sha256'"):
        CheckpointManager(store_path, experiment="x", digest="blake3")
    with pytest.raises(UsageError, match="made with chunk_bytes=8388608"):
        CheckpointManager(store_path, experiment="x", chunk_bytes=4096)
    CheckpointManager(store_path, experiment="x", digest="sha256", chunk_bytes=8 << 20).close()


@pytest.mark.parametrize("verify", ["full", "lazy"])
def test_a_flipped_bit_is_found_by_blake3_too(store_path: Path, verify: Any) -> None:
    with CheckpointManager(store_path, experiment="x", digest="blake3") as manager:
        manager.save(state(1), step=1, wait=True)
        (pack,) = store_path.glob("packs/*/*.safetensors")
        data = bytearray(pack.read_bytes())
        data[-1000] ^= 1
        pack.write_bytes(data)
        with pytest.raises(CorruptionError):
            manager.load(verify=verify)
        assert not manager.verify().ok


def test_without_the_library_it_is_said_what_to_install(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointManager(store_path, experiment="x", digest="blake3") as manager:
        manager.save(state(1), step=1, wait=True)
    hashing._blake3.cache_clear()
    monkeypatch.setitem(sys.modules, "blake3", None)
    for root in (store_path, store_path.with_name("new")):
        with pytest.raises(MissingExtraError, match=r"ckpt-core\[blake3\]"):
            CheckpointManager(root, experiment="x", digest="blake3")


# -- memory -------------------------------------------------------------------------------------------


def test_a_copy_that_is_over_the_budget_is_not_made(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = []
    with CheckpointManager(MemoryStore(), experiment="x", staged_bytes=1 << 20) as manager:
        manager.hooks.register_hook(staged.append, [HookEvent.AFTER_STAGE])
        live = state(1)
        handle = manager.save(live, step=1)
        assert handle.done(), "training has waited"
        live["w"] += 1
        assert (manager.load()["w"] == NOISE + 1).all()
    assert staged == []
    assert "training waits for the save of step 1" in caplog.text
    assert "staged_bytes=1048576" in caplog.text


def test_within_the_budget_saves_go_on_beside_training() -> None:
    budget = NOISE.nbytes + (2 << 20)
    with CheckpointManager(MemoryStore(), experiment="x", staged_bytes=budget, max_pending=2) as manager:
        staged: list[Any] = []
        manager.hooks.register_hook(staged.append, [HookEvent.AFTER_STAGE])
        for step in range(1, 5):
            manager.save(state(step), step=step).result(60)
        assert [context.step for context in staged] == [1, 2, 3, 4]


# -- threads ------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a priority of its own")
@pytest.mark.parametrize("wait", [False, True])
def test_a_save_gives_way_to_training_unless_training_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    seen: dict[str, set[int]] = {}

    class Noting(digests.Hasher):
        def update(self, data: Any) -> None:
            nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            seen.setdefault(threading.current_thread().name.split("-")[0], set()).add(nice)
            super().update(data)

    monkeypatch.setattr(digests, "Hasher", Noting)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with CheckpointManager(MemoryStore(), experiment="x", chunk_bytes=1 << 19) as manager:
        manager.save(state(1), step=1, wait=wait).result(60)
    assert seen == {"ckpt": {mine if wait else min(mine + 10, 19)}}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


def test_no_more_threads_hash_than_were_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    original = digests.digest_in_order

    def noting(pieces: Any, algorithm: str, threads: Any, **options: Any) -> Any:
        used.append(threads)
        return original(pieces, algorithm, threads, **options)

    monkeypatch.setattr("ckpt_core.repository.writer.digest_in_order", noting)
    with CheckpointManager(MemoryStore(), experiment="x", save_threads=3) as manager:
        manager.save(state(1), step=1).result(60)
        manager.save(state(2), step=2, wait=True)
    assert used == [3, None]
