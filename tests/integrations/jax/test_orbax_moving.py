"""Orbax's folders in and out, read by Orbax itself, to the last bit."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ckpt_core import (
    CheckpointManager,
    CorruptionError,
    FormatError,
    StateError,
    export_checkpoint,
    import_checkpoint,
)
from ckpt_core.backends import guess_backend, room
from ckpt_core.stores import MemoryStore
from ckpt_jax import orbax_backend
from ckpt_jax.orbax_backend import OrbaxBackend
from contract.anonymous import taken_by_export, taken_by_import


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


@pytest.mark.skipif(sys.platform != "linux", reason="what memory is of no file, only Linux tells")
def test_an_import_takes_no_memory_for_the_whole_and_an_export_not_twice(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    random = np.random.default_rng(0)
    for place, values in ((small, 10), (large, 1 << 19)):
        OrbaxBackend().save_checkpoint({f"w{n}": random.random(values) for n in range(60)}, place)
    assert taken_by_import("orbax", small, large, tmp_path / "store") < 220 << 20  # of 240
    places = (
        tmp_path / "again",
        tmp_path / "back",
    )  # of the copy that Orbax compresses, a slow disk leaves it all
    assert taken_by_export("orbax", *places, tmp_path / "store") < 350 << 20


def kinds(folder: Path) -> list[Path]:
    """The same state as Orbax has written it since long, and as it can."""
    handlers = {
        "ocdbt": ocp.PyTreeCheckpointHandler(),
        "files": ocp.PyTreeCheckpointHandler(use_ocdbt=False),
        "zarr3": ocp.PyTreeCheckpointHandler(use_zarr3=True),
    }
    for name, handler in handlers.items():
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder / name, state() | {"empty": {}, "nothing": None})
    return [folder / name for name in handlers]


def test_what_is_read_in_groups_is_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    monkeypatch.setattr(orbax_backend, "_GROUP", 20)
    for folder in kinds(tmp_path):
        viewed = OrbaxBackend().view_checkpoint(folder)
        assert same(viewed, OrbaxBackend().load_checkpoint(folder))
        assert {key: viewed.pop(key) for key in ("empty", "nothing")} == {"empty": {}, "nothing": None}
        assert same(viewed, state())
        viewed["params"]["w"][:] = 0  # it is the caller's own


def test_an_array_is_cut_up_where_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_backend, "_GROUP", 1 << 20)
    large = {"w": np.random.default_rng(0).random((1000, 1000)), "v": np.arange(3)}
    OrbaxBackend().save_checkpoint(large, tmp_path / "x")
    assert len(list((tmp_path / "x").rglob("d/*"))) > 8
    assert same(OrbaxBackend().view_checkpoint(tmp_path / "x"), large)
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert same(checkpointer.restore(tmp_path / "x"), large)


def rewritten(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize("method", ["load_checkpoint", "view_checkpoint"])
@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("params.w", {"shape": [1 << 30, 1 << 20]}, "claims"),
        ("params.w", {"shape": [1 << 20, 4]}, "damaged"),  # as much could be
        ("params.w", {"shape": [1 << 40, 4], "chunks": [1 << 40, 4]}, "claims"),
        ("params.w", {"chunks": [1 << 40, 4]}, "claims"),
        ("step", {"shape": [1 << 40], "chunks": [1 << 40]}, "no number"),
    ],
)
def test_what_is_claimed_to_be_large_is_held_against_the_files(
    tmp_path: Path, method: str, name: str, facts: dict[str, Any], said: str
) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "x", state())
    rewritten(tmp_path / "x" / name / ".zarray", **facts)
    with pytest.raises(CorruptionError, match=said):
        getattr(OrbaxBackend(), method)(tmp_path / "x")


@pytest.mark.parametrize("chunk_bytes", [None, 4096])
def test_many_zeros_are_believed(tmp_path: Path, chunk_bytes: int | None) -> None:
    zeros = {"w": np.zeros(8 << 20 if chunk_bytes is None else 1 << 20)}
    args = ocp.args.PyTreeSave(zeros, save_args={"w": ocp.SaveArgs(chunk_byte_size=chunk_bytes)})
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", args=args)
    assert sum(file.stat().st_size for file in (tmp_path / "x").rglob("*") if file.is_file()) < 64 << 10
    assert same(OrbaxBackend().view_checkpoint(tmp_path / "x"), zeros)


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_name_does_not_lead_out_of_its_folder(tmp_path: Path, kind: str) -> None:
    for name in ("x", "secret"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(tmp_path / name, {"w": np.arange(4)})
    named = "../secret/w" if kind == "relative" else str(tmp_path / "secret" / "w")
    text = (tmp_path / "x" / "_METADATA").read_text()
    text = text.replace('"key": "w"', f'"key": "{named}"').replace("('w',)", f"('{named}',)")
    (tmp_path / "x" / "_METADATA").write_text(text)
    with pytest.raises(CorruptionError, match="not in it|does not hold what"):
        OrbaxBackend().load_checkpoint(tmp_path / "x")


def test_what_is_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(FormatError, match="no folder of Orbax"):
        OrbaxBackend().load_checkpoint(tmp_path / "none")
    OrbaxBackend().save_checkpoint({"w": np.arange(1000)}, tmp_path / "x")
    for file in (tmp_path / "x").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CorruptionError, match="damaged folder of Orbax"):
        OrbaxBackend().view_checkpoint(tmp_path / "x")
