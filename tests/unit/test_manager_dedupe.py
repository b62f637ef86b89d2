"""What a save costs in bytes: what changed, not what exists; and what a long series of saves leaves to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.stores import MemoryStore
from contract.store_case import new_repository
from crash.wrappers import CountingStore

MEGABYTE = 1 << 20
CHUNK_BYTES = 8 * MEGABYTE


def size_of(folder: Path) -> int:
    """Bytes in all files of a store, but for the catalog, which is an index."""
    return sum(
        os.path.getsize(os.path.join(base, name))
        for base, _, names in os.walk(folder)
        for name in names
        if not name.startswith("catalog.db")
    )


@pytest.fixture(scope="module")
def big() -> dict[str, Any]:
    """100 MB in 20 layers with their biases, and an optimizer's counters."""
    rng = np.random.default_rng(0)
    layers = {
        f"layer.{i}": {
            "weight": rng.standard_normal((1250, 1000), np.float32),
            "bias": np.zeros(1000, np.float32),
        }
        for i in range(20)
    }
    return {"model": layers, "optimizer": {"step": [np.array(7)] * 20, "lr": 0.1}}


def test_an_unchanged_state_writes_next_to_nothing(store_path: Path, big: dict[str, Any]) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(big, step=1, wait=True)
        before = size_of(store_path)
        assert before > 100_000_000
        for step, wait in ((2, True), (3, False)):
            saved = manager.save(big, step=step, wait=wait).result(60)
            manager.wait()
            assert saved.written_bytes == 0
            assert saved.logical_bytes > 100_000_000
        assert size_of(store_path) - before < 2 * 100_000


def test_a_changed_bias_writes_about_one_chunk(store_path: Path, big: dict[str, Any]) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(big, step=1, wait=True)
        before = size_of(store_path)
        bias = big["model"]["layer.7"]["bias"].copy()
        changed = {**big, "model": {**big["model"], "layer.7": {**big["model"]["layer.7"], "bias": bias + 1}}}
        saved = manager.save(changed, step=2, wait=True).result()
        assert saved.written_bytes < 20_000
        assert size_of(store_path) - before < CHUNK_BYTES + 100_000
        loaded = manager.load(verify="full")
        np.testing.assert_array_equal(loaded["model"]["layer.7"]["bias"], bias + 1)
        np.testing.assert_array_equal(loaded["model"]["layer.6"]["weight"], big["model"]["layer.6"]["weight"])


def test_a_process_that_resumes_dedupes_against_what_it_loaded(store_path: Path, big: dict[str, Any]) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(big, step=1, wait=True)
    with CheckpointManager(store_path, experiment="x") as manager:
        state = manager.load()
        assert manager.save(state, step=1, wait=True).result().written_bytes == 0


@pytest.mark.slow
def test_a_thousand_saves_that_each_change_one_chunk() -> None:
    chunk, chunks = 4096, 100
    store = CountingStore(MemoryStore())
    new_repository(store, chunk)
    table = np.arange(chunk * chunks // 8).reshape(chunks, -1)

    def change(step: int) -> None:
        table[step * 37 % chunks] = -step

    with CheckpointManager(store, experiment="x") as manager:
        for step in range(1000):
            change(step)
            saved = manager.save({"table": table}, step=step, wait=True).result()
            # Its own chunk, one that keeps the number of packs within bounds, and a header.
            assert step == 0 or saved.written_bytes <= 4 * chunk
        store.reset()
        with manager.open() as reader:
            assert len(store.objects_read()) == 1
            assert len(reader.manifest.packs) <= 64
            np.testing.assert_array_equal(reader["table"][3:5], table[3:5])
        # Every older one still loads, as it was.
        table[:] = np.arange(chunk * chunks // 8).reshape(chunks, -1)
        checkpoints = manager.checkpoints()
        assert len(checkpoints) == 1000
        for checkpoint in checkpoints:
            change(checkpoint.step)
            repository = manager.workspace.repository
            manifest = repository.read(checkpoint.key).manifest
            assert len(manifest.packs) <= 64
            assert load_table(manager, manifest).tobytes() == table.tobytes()
        assert manager.verify().ok


def load_table(manager: CheckpointManager, manifest: Any) -> Any:
    from ckpt_core.pipeline.loading import load_state
    from ckpt_core.tree import registry

    return load_state(manager.workspace.repository, manifest, registry)["table"]
