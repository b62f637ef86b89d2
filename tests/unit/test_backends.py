"""Storage backends: which are found, what they may write, what of their files is believed, what is swept up."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from ckpt_core import (
    CheckpointManager,
    CkptError,
    CorruptionError,
    FormatError,
    StateError,
    StoreError,
    UsageError,
)
from ckpt_core.backends import StorageBackend, find_backend, guess_backend, put_together, take_apart
from ckpt_core.backends.npz import NpzBackend
from ckpt_core.backends.tensors import INDEX, SafetensorsBackend
from ckpt_core.stores import LocalStore, MemoryStore
from ckpt_core.testing import same_state

STATE = {"model": {"w": np.arange(6, dtype="f4"), "h": np.ones(3, ml_dtypes.bfloat16)}, "epoch": 1}


class Scripted(StorageBackend):
    """Writes what a test says."""

    name = "scripted"

    def __init__(self, write: Callable[[Path], Any], suffix: str = "") -> None:
        self._write = write
        self.suffix = suffix  # type: ignore[misc]

    def save_checkpoint(self, data: Any, path: Path) -> Any:
        return self._write(path)

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        raise ValueError("what is this?")


# -- found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["zip", "", 3, None, NpzBackend], ids=repr)
def test_what_is_no_backend_is_refused_before_anything_is_made(store_path: Path, backend: Any) -> None:
    with pytest.raises(UsageError, match="storage backend"):
        CheckpointManager(store_path, experiment="x", backend=backend)
    assert not store_path.exists()


def test_a_format_is_guessed_by_name_or_by_what_is_there(tmp_path: Path) -> None:
    assert guess_backend(tmp_path / "a.npz").name == "npz"
    assert guess_backend(tmp_path / "a.safetensors").name == "safetensors"
    for name in ("native", "safetensors"):
        find_backend(name).save_checkpoint(STATE, tmp_path / name)
        assert guess_backend(tmp_path / name).name == name
    with pytest.raises(UsageError, match="--format"):
        guess_backend(tmp_path / "a.unknown")


# -- what a backend may write -----------------------------------------------------------------------------


def _linked(path: Path) -> dict[str, Any]:
    path.symlink_to("/etc/hostname")
    return {}


def _pipe(path: Path) -> dict[str, Any]:
    path.mkdir()
    (path / "data").write_text("x")
    os.mkfifo(path / "pipe")
    return {}


def _named(name: str) -> Callable[[Path], dict[str, Any]]:
    def write(path: Path) -> dict[str, Any]:
        path.mkdir()
        (path / name).write_text("x")
        return {}

    return write


def _says(facts: Any) -> Callable[[Path], Any]:
    def write(path: Path) -> Any:
        path.write_text("x")
        return facts

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: {}, "nothing"),
        (lambda path: path.mkdir() or {}, "nothing"),
        (lambda path: path.with_name("other").write_text("x") and {}, "other"),
        (_linked, "neither a file nor a folder"),
        (_pipe, "neither a file nor a folder"),
        (_named("a\nb"), "no other machine"),
        (_named("a\\b"), "no other machine"),
        (_says(None), "must return a dict"),
        (_says({"x": object()}), "not plain JSON"),
        (_says({"x": float("nan")}), "not plain JSON"),
        (_says({"x": "y" * 100_000}), "must return a dict"),
    ],
)
def test_what_cannot_be_taken_up_is_told(store_path: Path, write: Any, reason: str) -> None:
    with CheckpointManager(store_path, experiment="x", backend=Scripted(write)) as manager:
        with pytest.raises(StateError, match=reason) as caught:
            manager.save(STATE, step=1, wait=True)
        assert caught.value.kind == "backend"
        assert manager.checkpoints() == []
    assert not list(store_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("raised", "expected", "kind"),
    [
        (StateError("sets are beyond me", kind="mine"), StateError, "mine"),
        (OSError(errno.ENOSPC, "no space"), StoreError, "full"),
        (OSError("what?"), StoreError, "io"),
        (ZeroDivisionError("what?"), StateError, "backend"),
    ],
    ids=repr,
)
def test_what_a_backend_raises_on_save_is_told_with_its_cause(
    raised: Exception, expected: type[CkptError], kind: str
) -> None:
    def write(path: Path) -> Any:
        raise raised

    with CheckpointManager(MemoryStore(), experiment="x", backend=Scripted(write)) as manager:
        with pytest.raises(expected) as caught:
            manager.save(STATE, step=1, wait=True)
        assert caught.value.kind == kind
        assert caught.value.__cause__ is (None if caught.value is raised else raised)
        assert manager.checkpoints() == []


def test_a_folder_with_folders_comes_back_as_it_was(store_path: Path) -> None:
    seen: dict[str, bytes] = {}

    def write(path: Path) -> dict[str, Any]:
        for name in ("a", "deep/er/b~", "empty"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"" if name == "empty" else name.encode() * 3000)
        return {"note": "ä"}

    class Folder(Scripted):
        def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
            files = [each for each in path.rglob("*") if each.is_file()]
            seen.update({each.relative_to(path).as_posix(): each.read_bytes() for each in files})
            assert all(each.stat().st_mode & 0o222 == 0 for each in files), "read only"
            return {}

    with CheckpointManager(store_path, experiment="x", backend=Folder(write), chunk_bytes=4096) as manager:
        checkpoint = manager.save(STATE, step=1).result()
        manager.load()
        manifest = manager.workspace.repository.read(checkpoint.key).manifest
    assert seen == {"a": b"a" * 3000, "deep/er/b~": b"deep/er/b~" * 3000, "empty": b""}
    assert manifest.writer["backend"] == {"name": "scripted", "note": "ä"}


def test_what_a_backend_raises_on_load_names_it(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x", backend=Scripted(_says({}))) as manager:
        manager.save(STATE, step=1, wait=True)
        with pytest.raises(FormatError, match="'scripted' could not read.*what is this"):
            manager.load()


def test_checkpoints_of_several_backends_live_in_one_store() -> None:
    store = MemoryStore()
    for step, backend in enumerate(("native", "npz", "safetensors"), 1):
        with CheckpointManager(store, experiment="x", backend=backend) as manager:
            manager.save({**STATE, "epoch": step}, step=step, wait=True)
    with CheckpointManager(store, experiment="x") as manager:
        for step in (1, 2, 3):
            assert same_state(manager.load(f"step={step}"), {**STATE, "epoch": step})


# -- what is in the files ---------------------------------------------------------------------------------


def test_other_programs_read_them(tmp_path: Path) -> None:
    find_backend("npz").save_checkpoint(STATE, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert (archive["model/w"] == STATE["model"]["w"]).all()  # type: ignore[index]
        assert archive["model/h"].dtype == np.uint16
    SafetensorsBackend().save_checkpoint(STATE, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {"model/w", "model/h"}
        assert (file.get_tensor("model/w") == STATE["model"]["w"]).all()  # type: ignore[index]


def test_files_of_other_programs_are_read(tmp_path: Path) -> None:
    arrays = {
        "a.b": np.arange(3.0),
        "c": np.zeros((2, 0), "i4"),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    np.savez(tmp_path / "y.npz", **arrays)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, tmp_path / "x.safetensors")
    for name in ("x.npz", "y.npz", "x.safetensors"):
        backend = guess_backend(tmp_path / name)
        for load in (backend.load_checkpoint, backend.view_checkpoint):
            found = load(tmp_path / name)
            assert sorted(found) == sorted(arrays)
            assert all(np.array_equal(found[key], arrays[key]) for key in arrays), name


def test_shards_have_an_index_as_others_write_it(tmp_path: Path) -> None:
    SafetensorsBackend(shard_bytes=10).save_checkpoint(STATE, tmp_path / "model")
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 30
    assert sorted(index["weight_map"].values()) == sorted(
        p.name for p in (tmp_path / "model").glob("*.safetensors")
    )
    for place in (tmp_path / "model", tmp_path / "model" / INDEX):
        assert same_state(SafetensorsBackend().load_checkpoint(place), STATE)


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "..", "a/b", "a\\b", ""])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(CorruptionError, match="no file beside it"):
        SafetensorsBackend().load_checkpoint(tmp_path)


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HOSTILE = {
    "huge": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"),
    "short": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", b"x" * 8),
    "objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"x" * 8),
    "negative": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
    "code": _npy("__import__('os').system('touch hacked')"),
    "no numpy": b"hello",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("method", ["load_checkpoint", "view_checkpoint"])
def test_a_hostile_archive_is_refused(tmp_path: Path, data: bytes, method: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("../../w.npy", data)
    with pytest.raises((CorruptionError, FormatError)):
        getattr(NpzBackend(), method)(tmp_path / "x.npz")
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_name_in_an_archive_is_a_name_and_no_path(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        out = io.BytesIO()
        np.save(out, np.ones(2))
        archive.writestr("../../w.npy", out.getvalue())
    assert list(NpzBackend().load_checkpoint(tmp_path / "x.npz")) == ["../../w"]


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
@pytest.mark.parametrize("method", ["load_checkpoint", "view_checkpoint"])
def test_a_damaged_file_of_ours_is_refused_or_right(tmp_path: Path, name: str, method: str) -> None:
    """Where the format itself has checksums, damage is found. It never shows as an error that is not ours."""
    backend = guess_backend(tmp_path / name)
    backend.save_checkpoint(STATE, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        at = int(random.integers(len(data)))
        if random.random() < 0.3:
            del data[at:]
        else:
            data[at] ^= 1 << int(random.integers(8))
        (tmp_path / name).write_bytes(data)
        try:
            found = getattr(backend, method)(tmp_path / name)
        except CkptError:
            continue
        assert name != "x.npz" or same_state(found, STATE)


@pytest.mark.parametrize(
    "header",
    ["{'descr': '<f8', 'fortran_order': False, 'shape': ((((", "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 5)}",
     "{'descr': '<f8', 'fortran_order': False,\n 'shape': (5L,)", "{\n  1:\n 2", "[]", "5"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["load_checkpoint", "view_checkpoint"])
def test_the_header_of_an_array_is_not_believed(tmp_path: Path, header: str, method: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(40))
    with pytest.raises(CorruptionError, match=r"no \.npz archive, or a damaged one|impossible shape"):
        getattr(NpzBackend(), method)(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "structure",
    ["", "[]", "{}", '{"version":2,"tree":1,"tensors":[]}', '{"tree":{"$tensor":0},"tensors":[]}',
     '{"tree":{"$tensor":0},"tensors":[["w","F32",[-1],"numpy"]]}', '{"tree":{"$tensor":0},"tensors":[["w","F32",[4],"numpy"]]}',
     '{"tree":{"$tensor":0},"tensors":[["v","F32",[3],"numpy"]]}', '{"tree":{"$tensor":0},"tensors":[["w","O",[3],"numpy"]]}',
     '{"tree":{"$tensor":0},"tensors":[["w","F32",[4611686018427387904],"numpy"]]}',
     '{"tree":{"$backend":{"name":"x","path":"w","files":{"w":{"$tensor":0}}}},"tensors":[["w","F32",[3],"numpy"]]}'],
)  # fmt: skip
def test_a_structure_that_does_not_fit_is_refused(structure: str) -> None:
    with pytest.raises((CorruptionError, FormatError)):
        put_together({"w": np.zeros(3, "f4")}, structure)


def test_names_that_formats_keep_for_themselves_are_changed() -> None:
    state = {
        "": np.ones(1),
        "__metadata__": np.ones(2),
        "__metadata__#2": np.ones(3),
        "ckpt.structure": np.ones(4),
    }
    arrays, structure = take_apart(state)
    assert len(arrays) == 4
    assert not {"", "__metadata__", "ckpt.structure"} & arrays.keys()
    assert same_state(put_together(arrays, structure), state)
    whole, structure = take_apart(np.ones(3))
    assert same_state(put_together(whole, structure), np.ones(3))


# -- left behind ------------------------------------------------------------------------------------------


def test_a_private_folder_of_a_killed_process_is_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("k", b"x")
    left = tmp_path / ".tmp-0123456789abcdef" / "checkpoint" / "deep"
    left.mkdir(parents=True)
    (left / "data").write_bytes(b"x" * 1000)
    (left / "data").chmod(0o400)
    assert store.sweep(3600) == 0
    assert (left / "data").exists()
    for path in (left / "data", left, left.parent, left.parent.parent):
        os.utime(path, (0, 0))
    assert store.sweep(3600) == 1000
    assert sorted(os.listdir(tmp_path)) == ["k"]
