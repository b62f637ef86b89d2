"""Orbax's folders in and out, read by Orbax itself, to the last bit."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ckpt_core import CheckpointManager, StateError, export_checkpoint, import_checkpoint
from ckpt_core.backends import guess_backend
from ckpt_core.stores import MemoryStore


def state() -> dict[str, Any]:
    return {
        "params": {"w": jax.random.normal(jax.random.key(0), (3, 4)), "b": jnp.ones(3, jnp.bfloat16)},
        "list": [jnp.arange(3), {"deep": np.arange(2.0)}],
        "step": 3,
        "lr": 0.5,
        "name": "adam",
    }


def same(one: Any, other: Any) -> bool:
    left, right = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    return [path for path, _ in left] == [path for path, _ in right] and all(
        a == b if isinstance(a, str) else np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for (_, a), (_, b) in zip(left, right, strict=True)
    )


def test_there_and_back(tmp_path: Path) -> None:
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save(state(), step=1, wait=True)
        export_checkpoint(manager, "latest", tmp_path / "ours", format="orbax")
        import_checkpoint(manager, tmp_path / "ours")
        assert same(manager.load("latest"), state())
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert same(checkpointer.restore(tmp_path / "ours"), state())


def test_folders_of_orbax_are_read(tmp_path: Path) -> None:
    params = state()["params"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", params)
    with ocp.CheckpointManager(tmp_path / "managed") as theirs:
        theirs.save(7, args=ocp.args.StandardSave(params))
    for folder in (tmp_path / "x", tmp_path / "managed" / "7"):
        assert guess_backend(folder).name == "orbax"
        with CheckpointManager(MemoryStore(), experiment="x") as manager:
            import_checkpoint(manager, folder, under="params")
            assert same(manager.load(), {"params": params})


def test_what_orbax_cannot_hold_is_told(tmp_path: Path) -> None:
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save({"params": state()["params"], "when": datetime.date(2026, 1, 1)}, step=1, wait=True)
        with pytest.raises(StateError, match="date at when"):
            export_checkpoint(manager, "latest", tmp_path / "x", format="orbax")
        export_checkpoint(manager, "latest", tmp_path / "x", format="orbax", select="params")
