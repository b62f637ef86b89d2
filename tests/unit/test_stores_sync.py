"""Nothing that a local store acknowledged waits for a sync, by the letter of POSIX.

A journal that writes everything at once hides a sync that is missing (see `test_stores_power`), so this looks
at the calls themselves: a name is durable when its folder was fsynced after it changed, bytes when their
file was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_core.errors import ObjectExistsError, StoreError
from ckpt_core.stores import LocalStore


class Recorder:
    """What is not durable yet: folders whose names changed and files whose bytes did, since their last fsync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dirty: set[str] = set()
        self.syncs = 0
        self.fail_at: int | None = None
        real = {name: getattr(os, name) for name in ("mkdir", "link", "rename", "unlink", "pwrite", "fsync")}

        def folder_of(path: Any, fd: int | None) -> str:
            return os.path.dirname(os.path.join(os.readlink(f"/proc/self/fd/{fd}") if fd else "/", path))

        def mkdir(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
            real["mkdir"](path, *args, dir_fd=dir_fd, **kwargs)
            self.dirty.add(folder_of(path, dir_fd))

        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            real["unlink"](path, dir_fd=dir_fd)
            self.dirty.add(folder_of(path, dir_fd))

        def two(name: str) -> Callable[..., None]:
            def call(source: Any, target: Any, *, src_dir_fd: int, dst_dir_fd: int, **kwargs: Any) -> None:
                real[name](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **kwargs)
                assert os.path.join(folder_of(source, src_dir_fd), source) not in self.dirty, (
                    "not synced before"
                )
                self.dirty |= {folder_of(source, src_dir_fd), folder_of(target, dst_dir_fd)}

            return call

        def pwrite(fd: int, data: Any, offset: int) -> int:
            self.dirty.add(os.readlink(f"/proc/self/fd/{fd}"))
            return int(real["pwrite"](fd, data, offset))

        def fsync(fd: int) -> None:
            self.syncs += 1
            if self.syncs == self.fail_at:
                raise OSError(5, "Input/output error")
            real["fsync"](fd)
            self.dirty.discard(os.readlink(f"/proc/self/fd/{fd}"))

        calls = {"mkdir": mkdir, "unlink": unlink, "link": two("link"), "rename": two("rename"),
                 "pwrite": pwrite, "fsync": fsync}  # fmt: skip
        for name, call in calls.items():
            monkeypatch.setattr(os, name, call)

    def unsynced(self, root: Path) -> list[str]:
        """What is dirty now, but for temporaries that are gone."""
        return sorted(
            path for path in self.dirty if os.path.basename(path)[:5] != ".tmp-" and str(root) in path
        )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_nothing_acknowledged_waits_for_a_sync(tmp_path: Path, recorder: Recorder) -> None:
    store = LocalStore(tmp_path / "new/store")
    steps: list[Callable[[], object]] = [
        lambda: store.put_new("a/b/k", b"data"),
        lambda: store.put("a/b/k", b"other"),
        lambda: store.put("c/k", b"data"),
        lambda: store.move("c/k", "d/e/k"),
        lambda: store.delete("a/b/k"),
    ]
    for number, step in enumerate(steps):
        step()
        assert recorder.unsynced(tmp_path) == [], f"after step {number}"
    assert recorder.syncs >= 12


def test_folders_that_another_process_made_are_synced_before_they_are_used(
    tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "store/a/b").mkdir(parents=True)
    assert len(recorder.unsynced(tmp_path)) == 3
    LocalStore(tmp_path / "store").put_new("a/b/k", b"data")
    assert recorder.unsynced(tmp_path) == []


def test_known_folders_are_not_synced_again(tmp_path: Path, recorder: Recorder) -> None:
    store = LocalStore(tmp_path / "store")
    store.put_new("a/b/1", b"data")
    before = recorder.syncs
    store.put_new("a/b/2", b"data")
    assert recorder.syncs - before == 2  # the file and its folder


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_sync_that_fails_takes_the_name_back(tmp_path: Path, recorder: Recorder, fail_at: int) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/other", b"data")
    recorder.fail_at = recorder.syncs + fail_at
    with pytest.raises(StoreError, match="check the disk") as caught:
        store.put_new("a/k", b"data")
    assert caught.value.kind == "io"
    assert sorted(os.listdir(tmp_path / "store/a")) == ["other"]
    store.put_new("a/k", b"again")
    with pytest.raises(ObjectExistsError):
        store.put_new("a/k", b"more")
    assert store.get("a/k") == b"again"


def test_what_need_not_be_durable_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/k", b"data")
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("it waited"))
    store.put("a/k", b"again", durable=False)
    store.put("a/new", b"data", durable=False)
    store.delete("a/new", durable=False)
    assert store.get("a/k") == b"again"
    assert not store.exists("a/new")
