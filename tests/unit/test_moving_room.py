"""Imports of states that need not fit into memory, and the room for them that is to be had."""

from __future__ import annotations

import errno
import os
import resource
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, StoreError, import_checkpoint
from ckpt_core.backends import find_backend, room
from ckpt_core.backends.npz import NpzBackend
from ckpt_core.backends.room import laid_out, room_for
from ckpt_core.stores import MemoryStore
from contract.anonymous import taken_by_import

LARGE = 96 << 20


def state(nbytes: int) -> dict[str, Any]:
    """Twenty-four arrays of so many bytes in all, no chunk of them like another."""
    return {f"w{n}": np.arange(nbytes // 192, dtype="u8") + n * nbytes for n in range(24)}


@pytest.mark.skipif(sys.platform != "linux", reason="what memory is of no file, only Linux tells")
def test_an_import_takes_no_memory_for_the_whole(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for place, nbytes in ((small, 24 << 10), (large, LARGE)):
        find_backend("native").save_checkpoint(state(nbytes), place)
    assert taken_by_import("native", small, large, tmp_path / "store") < LARGE // 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_many_arrays_keeps_few_files_open(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", **{f"w{number}": np.arange(number % 5) for number in range(300)})
    before = len(os.listdir("/dev/fd"))
    found = NpzBackend().view_checkpoint(tmp_path / "x.npz")
    assert len(os.listdir("/dev/fd")) <= before + 2
    assert all(np.array_equal(found[f"w{number}"], np.arange(number % 5)) for number in range(300))


def test_room_is_private_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_IN_MEMORY", 10)
    taken = room_for([3, 0, 100], tmp_path)
    assert [each.nbytes for each in taken] == [3, 0, 100]
    assert os.listdir(tmp_path) == []
    for number, each in enumerate(taken):
        each[:] = number
    assert [set(each.tolist()) for each in taken] == [{0}, set(), {2}]


def test_no_chunk_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PIECE", 8)
    data = np.arange(50, dtype=np.uint8)
    for chunk_bytes, expected in ((3, 9), (4, 7), (20, 3)):
        asked: list[tuple[int, int]] = []

        def read(index: int, begin: int, end: int, asked: list[tuple[int, int]] = asked) -> Any:
            asked.append((begin, end))
            return data[begin:end]

        found = laid_out(read, {7: 50}, chunk_bytes=chunk_bytes)
        assert np.array_equal(found[7], data)
        assert len(asked) == expected
        assert all(begin % chunk_bytes == 0 for begin, _ in asked)


def test_where_there_is_no_room_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a signal at the first page that finds no place on the disk."""
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(1 << 20))
    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(StoreError, match="do not find room in a file.*TMPDIR") as caught:
                import_checkpoint(manager, tmp_path / "x.npz")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.kind == "full"


def test_a_file_system_that_reserves_nothing_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    (taken,) = room_for([5000], tmp_path)
    taken[:] = 1
    assert int(taken.sum()) == 5000


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Else a small archive of one array under many names is one of any size."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_STORED) as archive:
        with archive.open("w.npy", "w") as out:
            np.lib.format.write_array(out, np.arange(1000))
        (info,) = archive.infolist()
        archive.filelist += [info] * 5
    with pytest.raises(CorruptionError, match=r"more bytes than it has"):
        NpzBackend().view_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("there", [True, False])
def test_where_there_is_no_folder_for_it_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "gettempdir", (lambda: str(tmp_path / "gone")) if there else none)
    with pytest.raises(StoreError, match="gone" if there else "No usable") as caught:
        room_for([100])
    assert caught.value.kind == "io"
