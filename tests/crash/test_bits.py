"""One flipped bit anywhere in a pack or a manifest: verify finds it, load finds it, nobody gets it as data."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, KeepLast
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.verify import verify
from ckpt_core.pipeline.loading import load_state
from ckpt_core.repository import layout
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import registry
from contract.store_case import new_repository

FLIPS = 1000
CHUNK = 4096


def state_of(step: int) -> dict[str, Any]:
    """Whole tensors, tensors in part, tiny ones, an empty one, plain values."""
    table = np.random.default_rng(7).integers(0, 100, 12 * CHUNK, np.uint8)
    table[step * CHUNK : (step + 1) * CHUNK] = np.random.default_rng(step).integers(0, 100, CHUNK, np.uint8)
    return {
        "table": table,
        "half": np.linspace(0, step, 300, dtype=np.float16),
        "tiny": {f"t{i}": np.full(3, i, np.int64) for i in range(20)},
        "empty": np.empty((0, 2)),
        "raw": b"\x01" * 3000,
        "lr": 0.1 * step,
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in right)
    return bool(np.array_equal(left, right)) if isinstance(right, np.ndarray) else left == right


@pytest.fixture(params=[None, "zstd"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointManager]:
    """Checkpoints that share chunks; one pack has been rewritten. Some chunks are compressed in the second."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK // 2)
    store = MemoryStore()
    new_repository(store, CHUNK)
    with CheckpointManager(
        store, experiment="bits", retention=[KeepLast(3)], compression=request.param
    ) as manager:
        for step in range(1, 9):
            manager.save(state_of(step), step=step, wait=True)
        rewritten = [info.key for info in store.list(layout.PACKS) if "-r" in info.key.rpartition("/")[2]]
        assert rewritten, "no pack was rewritten"
        formats = {manager.workspace.repository.read(c.key).manifest.format for c in manager.checkpoints()}
        assert formats == {1 if request.param is None else 2}
        yield manager


def load_all(manager: CheckpointManager, keys: dict[int, str], *, like: bool) -> set[int]:
    """The steps whose checkpoints do not load. What does load must be what was saved."""
    repository = manager.workspace.repository
    lost = set()
    for step, key in keys.items():
        target = state_of(0) if like else None
        try:
            loaded = load_state(repository, repository.read(key).manifest, registry, like=target)
        except CorruptionError:
            lost.add(step)
            continue
        assert same(loaded, state_of(step)), f"step {step} was handed out with other values"
    return lost


def test_a_flipped_bit_is_found(manager: CheckpointManager) -> None:
    seed = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
    print(f"seed={seed}")
    chance = random.Random(seed)
    repository = manager.workspace.repository
    store = repository.store
    checkpoints = manager.checkpoints()
    keys = {c.step: c.key for c in checkpoints}
    ids = {c.step: c.id for c in checkpoints}
    manifests = {c.key: c.step for c in checkpoints}
    objects = [info for folder in (layout.PACKS, layout.MANIFESTS) for info in store.list(folder)]
    assert verify(repository).ok
    assert load_all(manager, keys, like=False) == set()
    sizes = [info.size for info in objects]
    flips = [chance.choices(objects, sizes)[0] for _ in range(FLIPS - len(objects))] + objects
    for number, info in enumerate(flips):
        offset, bit = chance.randrange(info.size), chance.randrange(8)
        before = store.get(info.key)
        hurt = bytearray(before)
        hurt[offset] ^= 1 << bit
        store.put(info.key, bytes(hurt))
        where = f"bit {bit} of byte {offset} of {info.key}"
        report = verify(repository)
        found = [problem.key for problem in report.problems]
        assert info.key in found, where
        if not info.key.endswith(layout.FORWARD_SUFFIX):  # then the packs behind it are missing, too
            assert found == [info.key], where
        lost = load_all(manager, keys, like=number % 2 == 0)
        assert {ids[step] for step in lost} == set(report.damaged), where
        if lost and number % 20 == 0:  # and as a user meets it
            for step in lost:
                with pytest.raises(CorruptionError):
                    manager.load(ids[step])
            if len(lost) < len(keys):
                assert same(manager.load(), state_of(manager.loaded.step)), where
        if info.key in manifests:
            assert lost == {manifests[info.key]}, where
        elif info.key.endswith(layout.FORWARD_SUFFIX):
            assert lost, where
        store.put(info.key, before)
    assert verify(repository).ok
    assert load_all(manager, keys, like=False) == set()
