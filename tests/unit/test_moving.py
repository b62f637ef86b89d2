"""Import and export: whole or not at all, checked on the way and read back, and no trust in what comes from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ckpt_core import (
    CheckpointManager,
    CorruptionError,
    FormatError,
    NotFoundError,
    StateError,
    StorageBackend,
    StoreError,
    UsageError,
    export_checkpoint,
    import_checkpoint,
)
from ckpt_core.backends import finding, room
from ckpt_core.backends.npz import NpzBackend
from ckpt_core.hooks import HookEvent
from ckpt_core.stores import MemoryStore
from ckpt_core.testing import same_state
from crash.wrappers import ScriptedStore

TIED = np.arange(5.0)
STATE: dict[str, Any] = {
    "model": {
        "a/b": np.arange(600, dtype="f4").reshape(20, 30),
        "half": np.ones(3, ml_dtypes.bfloat16),
        "tied": TIED,
    },
    "again": (TIED, [1, 2.5]),
    "odd": {3: float("nan"), "names": {"a"}},
    "epoch": 7,
}


@pytest.fixture
def manager() -> Iterator[CheckpointManager]:
    with CheckpointManager(MemoryStore(), experiment="x", chunk_bytes=4096) as manager:
        manager.save(STATE, step=5, wait=True)
        yield manager


@pytest.fixture(params=["in memory", "from a file"])
def _room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "from a file":
        monkeypatch.setattr(room, "_IN_MEMORY", 0)
        monkeypatch.setattr(room, "_PIECE", 1000)


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "shards:safetensors", "store:native"])
@pytest.mark.parametrize("made_by", ["native", "npz"])
def test_there_and_back_again(manager: CheckpointManager, tmp_path: Path, name: str, made_by: str) -> None:
    if made_by != "native":
        manager = CheckpointManager(MemoryStore(), experiment="x", backend=made_by)
        manager.save(STATE, step=5, wait=True)
    file, _, wanted = name.partition(":")
    told: list[tuple[int, int]] = []
    done = export_checkpoint(
        manager,
        "latest",
        tmp_path / file,
        format=wanted or None,
        progress=lambda *bytes_: told.append(bytes_),
    )
    assert (done.path, done.tensors) == (tmp_path / file, 3)
    assert told[-1] == (done.nbytes, done.nbytes)
    assert os.listdir(tmp_path) == [file]
    told.clear()
    with CheckpointManager(MemoryStore(), experiment="y") as other:
        checkpoint = import_checkpoint(
            other, tmp_path / file, step=9, tags=["t"], metrics={"m": 1.0}, progress=lambda *b: told.append(b)
        )
        assert (checkpoint.step, checkpoint.tags, checkpoint.metrics) == (9, ("t",), {"m": 1.0})
        assert same_state(other.load("t"), STATE)
        assert told[-1] == (done.nbytes, done.nbytes)
        import_checkpoint(other, tmp_path / file, under="a/b")
        assert same_state(other.load("latest"), {"a": {"b": STATE}})
    manager.close()


def test_a_part_is_written_as_if_it_were_the_whole(manager: CheckpointManager, tmp_path: Path) -> None:
    export_checkpoint(manager, "latest", tmp_path / "m.safetensors", select="model/")
    assert load_file(tmp_path / "m.safetensors").keys() == {"a~1b", "half", "tied"}
    export_checkpoint(manager, "latest", tmp_path / "one.npz", select="model/a~1b")
    assert same_state(NpzBackend().load_checkpoint(tmp_path / "one.npz"), STATE["model"]["a/b"])
    with pytest.raises(NotFoundError, match="no 'modle'; at its top are again, epoch, model, odd"):
        export_checkpoint(manager, "latest", tmp_path / "x.npz", select="modle")
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "one.npz"]


def test_nothing_is_overwritten_unless_told_to(manager: CheckpointManager, tmp_path: Path) -> None:
    target = tmp_path / "x.npz"
    target.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        export_checkpoint(manager, "latest", target)
    assert target.read_text() == "mine"
    export_checkpoint(manager, "latest", target, force=True)
    assert same_state(NpzBackend().load_checkpoint(target), STATE)
    (tmp_path / "folder").mkdir()
    export_checkpoint(manager, "latest", tmp_path / "folder", format="safetensors")
    with pytest.raises(UsageError, match="folder with files in it"):
        export_checkpoint(manager, "latest", tmp_path / "folder", format="safetensors", force=True)


class Wrong(NpzBackend):
    """Writes a state that is not the one it was given."""

    name = "wrong"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        return super().save_checkpoint({**data, "model": {**data["model"], "tied": TIED + 1}}, path)


class Unable(NpzBackend):
    """Cannot hold anything."""

    name = "unable"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        path.write_text("half")
        raise TypeError("sets are beyond me")


def test_what_reads_back_otherwise_is_not_written(manager: CheckpointManager, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="model/tied are not what they are"):
        export_checkpoint(manager, "latest", tmp_path / "x.npz", format=Wrong())
    assert os.listdir(tmp_path) == []
    export_checkpoint(manager, "latest", tmp_path / "x.npz", format=Wrong(), verify=False)
    assert os.listdir(tmp_path) == ["x.npz"]


def test_what_a_format_cannot_hold_is_told(manager: CheckpointManager, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="sets are beyond me.*--select"):
        export_checkpoint(manager, "latest", tmp_path / "x.npz", format=Unable())
    assert os.listdir(tmp_path) == []


def test_damage_leaves_nothing_behind(store_path: Path, tmp_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(STATE, step=1, wait=True)
        (pack,) = store_path.glob("packs/*/*.safetensors")
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.write_bytes(data)
        with pytest.raises(CorruptionError):
            export_checkpoint(manager, "latest", tmp_path / "x.npz")
    assert os.listdir(tmp_path) == ["store"]


@pytest.fixture
def meddled(tmp_path: Path) -> tuple[Path, Callable[[int, int], None]]:
    """A source, and what changes it while it is being read."""
    source = tmp_path / "x.safetensors"
    save_file({"w": np.zeros(1000)}, source)

    def meddle(done: int, total: int) -> None:
        with open(source, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\1" * 8)

    return source, meddle


Meddled = tuple[Path, Callable[[int, int], None]]


def test_a_source_that_changes_while_it_is_read_is_no_checkpoint(meddled: Meddled) -> None:
    source, meddle = meddled
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        with pytest.raises(CorruptionError):
            import_checkpoint(manager, source, progress=meddle)
        assert manager.checkpoints() == []


def test_no_hook_keeps_an_import_that_is_not_what_the_source_holds(meddled: Meddled) -> None:
    source, meddle = meddled
    deleted: list[Any] = []
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.hooks.register_hook(lambda context: context.veto("it stays"), HookEvent.BEFORE_DELETE)
        manager.hooks.register_hook(
            lambda context: deleted.append(context.checkpoint.tags), HookEvent.AFTER_DELETE
        )
        manager.save(STATE, step=1, tags=["v1", "v0"], wait=True)
        with pytest.raises(CorruptionError):
            import_checkpoint(manager, source, tags=["v1", "v2"], progress=meddle)
        assert [each.step for each in manager.checkpoints()] == [1]
        assert manager.resolve("v1").tags == ("v0", "v1"), "a tag stays where it was"
        with pytest.raises(NotFoundError):
            manager.resolve("v2")
    assert deleted == [("v1", "v2")], "who heard of it hears that it has gone"


def test_a_checkpoint_that_cannot_be_taken_back_is_named(meddled: Meddled) -> None:
    source, meddle = meddled
    store = ScriptedStore(MemoryStore())

    def fail(operation: str, key: str, when: str) -> None:
        if operation == "move":
            raise StoreError("input/output error")

    with CheckpointManager(store, experiment="x") as manager:
        store.script = fail
        with pytest.raises(CorruptionError) as caught:
            import_checkpoint(manager, source, progress=meddle)
        store.script = None
        (left,) = manager.checkpoints()
    (note,) = caught.value.__notes__
    assert left.id in note
    assert "ckpt forget" in note


class Nothing:
    """A policy that keeps nothing."""

    def keep(self, checkpoints: Any, context: Any) -> dict[str, str]:
        return {}

    def describe(self, context: Any) -> str:
        return "nothing"


def test_retention_leaves_an_import_until_the_next_save(tmp_path: Path) -> None:
    save_file({"w": np.zeros(1000)}, tmp_path / "x.safetensors")
    with CheckpointManager(MemoryStore(), experiment="x", retention=[Nothing()]) as manager:
        made = import_checkpoint(manager, tmp_path / "x.safetensors")
        assert manager.checkpoints() == [made]


@pytest.mark.parametrize(
    ("name", "error"), [("absent.npz", NotFoundError), ("x.npz", CorruptionError), ("x.what", UsageError)]
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, name: str, error: type[Exception]) -> None:
    if name != "absent.npz":
        (tmp_path / name).write_bytes(b"hello")
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        with pytest.raises(error):
            import_checkpoint(manager, tmp_path / name)
        assert manager.checkpoints() == []


class Raises(StorageBackend):
    """Raises what it likes."""

    name = "raises"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        path.write_text("x")
        return {}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        raise ZeroDivisionError("what?")


def test_what_somebodys_format_raises_is_told_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with (
        CheckpointManager(MemoryStore(), experiment="x") as manager,
        pytest.raises(FormatError, match="what"),
    ):
        import_checkpoint(manager, tmp_path / "x", format=Raises())


def test_what_somebodys_format_raises_where_it_reads_back_is_told(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"cannot be read back.*what\?"):
        export_checkpoint(manager, "latest", tmp_path / "x", format=Raises())
    assert os.listdir(tmp_path) == []


def test_somebodys_broken_package_is_told_and_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = EntryPoint("broken", "ckpt_core.backends:no_such_name", "ckpt_core.backends")
    monkeypatch.setattr(finding, "entry_points", lambda group: [broken])
    with pytest.raises(UsageError, match="'broken'.*cannot be made"):
        finding.find_backend("broken")
    with pytest.raises(UsageError, match="does not tell its format"):
        finding.guess_backend(tmp_path / "x.npz")


class Curious(Raises):
    """Looks where it must not."""

    name = "curious"

    def recognises(self, path: Path) -> bool:
        raise ZeroDivisionError("what?")


class Other(Raises):
    """Knows its own."""

    suffix = ".what"


def test_a_format_that_cannot_tell_its_own_is_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "x.what").write_text("x")
    entry = EntryPoint("other", "ckpt_core.backends:any", "ckpt_core.backends")
    monkeypatch.setattr(finding, "installed_backends", lambda: dict.fromkeys(("curious", "other"), entry))
    monkeypatch.setattr(finding, "find_backend", lambda name: Curious() if name == "curious" else Other())
    assert isinstance(finding.guess_backend(tmp_path / "x.what"), Other)


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "folder"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / name
    if name == "folder":
        pipe.mkdir()
        pipe /= "model.safetensors"
    os.mkfifo(pipe)
    with (
        CheckpointManager(MemoryStore(), experiment="x") as manager,
        pytest.raises((UsageError, CorruptionError), match="no file|neither"),
    ):
        import_checkpoint(manager, tmp_path / name)


def test_weights_in_lists_are_called_as_modules_are(tmp_path: Path) -> None:
    model = {"a": np.ones(2), "layers": [{"w": np.ones(3)}, {"w": np.zeros(3)}], "epoch": 3}
    files = {"config.json": b"{}"}
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save({"model": model, "files": files}, step=1, wait=True)
        export_checkpoint(manager, "latest", tmp_path / "x", format="huggingface")
        assert load_file(tmp_path / "x" / "model.safetensors").keys() == {"a", "layers.0.w", "layers.1.w"}
        twice = {"a.b": np.ones(2), "a": {"b": np.zeros(2)}}
        manager.save({"model": twice, "files": files}, step=2, wait=True)
        with pytest.raises(StateError, match="both be called 'a.b'"):
            export_checkpoint(manager, "latest", tmp_path / "y", format="huggingface")
    assert os.listdir(tmp_path) == ["x"]
