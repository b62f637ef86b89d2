"""What a storage backend is, whoever wrote it: the suite that each of them inherits."""

from __future__ import annotations

import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import CorruptionError, FormatError, StateError
from ckpt_core.manager import CheckpointManager
from ckpt_core.stores import MemoryStore
from ckpt_core.testing.comparing import same_state

__all__ = ["BackendContract"]


class BackendContract(ABC):
    """The whole suite. Give `make_backend`; and `make_state`, where the format cannot hold every state."""

    repeatable = True
    """Whether the same state gives the same bytes, so that it is not stored again."""

    @abstractmethod
    def make_backend(self) -> StorageBackend:
        """A new backend, as its user would make it."""

    def make_state(self, seed: int = 0) -> Any:
        """A state with a tensor of 64 x 64 at `model/weight`, another one for each seed, that the format can hold."""
        random = np.random.default_rng(seed)
        bias = random.standard_normal(64)
        return {
            "model": {
                "weight": random.standard_normal((64, 64)).astype(np.float32),
                "bias": bias,
                "tied": bias,
                "empty": np.zeros((0, 3), np.float16),
                "scalar": np.array(seed),
                "a/b~c": np.arange(3, dtype=np.uint8),
            },
            "optimizer": [{"lr": 0.1, "betas": (0.9, 0.999)}, random.standard_normal(5)],
            "odd": {"nan": float("nan"), "inf": -float("inf"), "large": 1 << 80, 3: "three", "none": None},
            "complex": np.array([1 + 2j]),
            "bytes": b"\0\1" * 2000,
            "names": {"a", "b"},
            "epoch": seed,
        }

    @pytest.fixture
    def backend(self) -> StorageBackend:
        """The backend under test."""
        return self.make_backend()

    @pytest.fixture
    def place(self, tmp_path: Path, backend: StorageBackend) -> Path:
        """A path in a folder of its own, as the engine gives it."""
        (tmp_path / "private").mkdir()
        return tmp_path / "private" / f"checkpoint{backend.suffix}"

    # -- the two methods

    def test_what_is_saved_comes_back(self, backend: StorageBackend, place: Path) -> None:
        facts = backend.save_checkpoint(self.make_state(), place)
        assert isinstance(facts, dict)
        json.dumps(facts, allow_nan=False)
        assert same_state(backend.load_checkpoint(place), self.make_state())
        assert same_state(self.make_backend().load_checkpoint(place), self.make_state()), (
            "by another one as well"
        )

    def test_nothing_is_written_beside_the_path(self, backend: StorageBackend, place: Path) -> None:
        backend.save_checkpoint(self.make_state(), place)
        assert os.listdir(place.parent) == [place.name]
        assert place.is_file() or any(path.is_file() for path in place.rglob("*"))

    def test_what_is_loaded_outlives_its_files(self, backend: StorageBackend, place: Path) -> None:
        backend.save_checkpoint(self.make_state(), place)
        _read_only(place)
        state = backend.load_checkpoint(place)
        _overwrite(place)
        assert same_state(state, self.make_state())

    def test_a_view_is_the_same_and_its_pages_are_its_own(self, backend: StorageBackend, place: Path) -> None:
        backend.save_checkpoint(self.make_state(), place)
        before = _bytes_below(place)
        state = backend.view_checkpoint(place)
        assert same_state(state, self.make_state())
        del state
        assert _bytes_below(place) == before

    def test_states_do_not_get_mixed_up(self, backend: StorageBackend, place: Path) -> None:
        second = place.with_name(f"second{backend.suffix}")
        backend.save_checkpoint(self.make_state(1), place)
        backend.save_checkpoint(self.make_state(2), second)
        assert same_state(backend.load_checkpoint(place), self.make_state(1))
        assert same_state(backend.load_checkpoint(second), self.make_state(2))

    def test_nothing_is_unpickled(self, backend: StorageBackend, place: Path, tmp_path: Path) -> None:
        """Whatever file of a checkpoint is a pickle instead, what it says is not done."""
        backend.save_checkpoint(self.make_state(), place)
        done = tmp_path / "done"
        for path in _files(place):
            whole = path.read_bytes()
            path.write_bytes(pickle.dumps(_Touch(str(done))))
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the format says of it
                backend.load_checkpoint(place)
            assert not done.exists()
            path.write_bytes(whole)

    # -- through the engine

    def test_a_checkpoint_is_like_any_other(self, backend: StorageBackend, tmp_path: Path) -> None:
        with CheckpointManager(tmp_path / "store", experiment="x", backend=backend) as manager:
            for step in (1, 2, 3):
                manager.save(
                    self.make_state(step), step=step, metrics={"loss": step}, tags=[f"t{step}"], wait=True
                )
            assert same_state(manager.load("t2"), self.make_state(2))
            assert manager.verify().ok
            manager.forget("step=1", grace=0)
            manager.prune()
            assert same_state(manager.load("latest"), self.make_state(3))
            assert manager.verify().ok
            assert not list((tmp_path / "store").glob(".tmp-*")), "the private folders are gone"

    def test_a_save_in_the_background_is_that_of_its_moment(self, backend: StorageBackend) -> None:
        with CheckpointManager(MemoryStore(), experiment="x", backend=backend) as manager:
            state = self.make_state()
            handle = manager.save(state, step=1)
            state["model"]["weight"][:] = 0
            handle.result(60)
            assert same_state(manager.load(), self.make_state())

    def test_a_load_fills_what_it_is_given(self, backend: StorageBackend) -> None:
        with CheckpointManager(MemoryStore(), experiment="x", backend=backend) as manager:
            manager.save(self.make_state(1), step=1, wait=True)
            like = self.make_state(2)
            weight = like["model"]["weight"]
            state = manager.load(like=like)
            assert same_state(state, self.make_state(1))
            assert state["model"]["weight"] is weight
            part = manager.load(include="model/weight")
            assert same_state(part, {"model": {"weight": self.make_state(1)["model"]["weight"]}})

    def test_a_tensor_can_be_read_alone(self, backend: StorageBackend) -> None:
        with CheckpointManager(MemoryStore(), experiment="x", backend=backend) as manager:
            manager.save(self.make_state(1), step=1, wait=True)
            with manager.open(framework="numpy") as reader:
                expected = np.asarray(self.make_state(1)["model"]["weight"])
                assert (reader["model/weight"][10:20] == expected[10:20]).all()

    def test_what_has_not_changed_is_not_stored_again(self, backend: StorageBackend) -> None:
        with CheckpointManager(MemoryStore(), experiment="x", backend=backend) as manager:
            first = manager.save(self.make_state(), step=1).result(60)
            second = manager.save(self.make_state(), step=2).result(60)
            assert first.written_bytes > 0
            assert not self.repeatable or second.written_bytes == 0

    def test_damage_is_found_before_the_backend_sees_it(
        self, backend: StorageBackend, tmp_path: Path
    ) -> None:
        with CheckpointManager(tmp_path / "store", experiment="x", backend=_Watched(backend)) as manager:
            manager.save(self.make_state(), step=1, wait=True)
            (pack,) = (tmp_path / "store").glob("packs/*/*.safetensors")
            data = bytearray(pack.read_bytes())
            data[-1] ^= 1
            pack.write_bytes(data)
            with pytest.raises(CorruptionError):
                manager.load()
            assert manager.backend.loads == 0  # type: ignore[union-attr]
            assert not manager.verify().ok

    def test_a_save_that_fails_leaves_nothing(self, backend: StorageBackend, tmp_path: Path) -> None:
        watched = _Watched(backend)
        with CheckpointManager(tmp_path / "store", experiment="x", backend=watched) as manager:
            manager.save(self.make_state(1), step=1, wait=True)
            watched.fault = ZeroDivisionError("halfway")
            with pytest.raises(StateError, match="halfway"):
                manager.save(self.make_state(2), step=2, wait=True)
            watched.fault = None
            assert [found.step for found in manager.checkpoints()] == [1]
            assert same_state(manager.load(), self.make_state(1))
            assert not list((tmp_path / "store").glob(".tmp-*"))

    def test_without_the_backend_it_is_said_which_one_it_was(self, backend: StorageBackend) -> None:
        store = MemoryStore()
        with CheckpointManager(store, experiment="x", backend=_Watched(backend)) as manager:
            manager.save(self.make_state(), step=1, wait=True)
        with CheckpointManager(store, experiment="x") as manager:
            with pytest.raises(FormatError, match="watched"):
                manager.load()
            assert manager.verify().ok, "the bytes are known to be whole all the same"


class _Watched(StorageBackend):
    """A backend that counts, and fails where it is told to, under a name that nothing installed has."""

    name = "watched-backend"

    def __init__(self, backend: StorageBackend) -> None:
        self._backend = backend
        self.loads = 0
        self.fault: Exception | None = None

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        facts = self._backend.save_checkpoint(data, path)
        if self.fault is not None:
            raise self.fault
        return facts

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        self.loads += 1
        return self._backend.load_checkpoint(path, device)


class _Touch:
    """What makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (self._path, "w")


def _files(path: Path) -> Iterator[Path]:
    yield from [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


def _read_only(path: Path) -> None:
    for each in _files(path):
        each.chmod(0o400)


def _overwrite(path: Path) -> None:
    for each in _files(path):
        each.chmod(0o600)
        with open(each, "r+b") as file:
            file.write(b"\0" * each.stat().st_size)


def _bytes_below(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in _files(path)}
