"""The store in a folder keeps the contract, and what only a folder can have is handled: links, pipes, files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ckpt_core.errors import ObjectExistsError, ObjectNotFoundError, StoreError, UsageError
from ckpt_core.stores import LocalStore, Store
from contract.store import StoreContract


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, store_path: Path) -> Store:
        return LocalStore(store_path)

    def raw(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, LocalStore)
        path = store.root / key
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def store(store_path: Path) -> LocalStore:
    return LocalStore(store_path)


def files_in(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


# -- nothing is left behind


def test_no_temporary_stays(store: LocalStore) -> None:
    store.put("a/put", b"data")
    store.put_new("a/new", b"data")
    with pytest.raises(ObjectExistsError):
        store.put_new("a/new", b"other")
    with store.create("a/discarded") as writer:
        writer.write(0, b"data")
    store.now()
    assert files_in(store.root) == ["a/new", "a/put"]


def test_no_descriptor_stays(store: LocalStore) -> None:
    def use() -> None:
        store.put("a/b/k", b"data")
        store.put_new("a/b/new", b"data")
        for again in (
            lambda: store.put_new("a/b/new", b""),
            lambda: store.get("a/x/y"),
            lambda: store.info("z"),
        ):
            with pytest.raises(StoreError):
                again()
        with store.create("a/c/discarded"):
            pass
        store.move("a/b/new", "a/d/moved")
        store.delete("a/d/moved")
        list(store.list("a"))
        next(store.list("a"))
        store.now()
        store.sweep(0)

    use()
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        use()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_new_file_has_the_mode_that_the_user_asked_for(store: LocalStore) -> None:
    old = os.umask(0o027)
    try:
        store.put("a/k", b"data")
    finally:
        os.umask(old)
    assert stat.S_IMODE((store.root / "a/k").stat().st_mode) == 0o640
    assert stat.S_IMODE((store.root / "a").stat().st_mode) == 0o750


def test_sweep_takes_old_temporaries_and_nothing_else(store: LocalStore) -> None:
    store.put("a/k", b"data")
    store.put("packs/x/.tmpfile", b"not one of them")
    old, young = store.root / "a/.tmp-0123456789abcdef", store.root / "packs/x/.tmp-0123456789abcdef"
    old.write_bytes(bytes(1000))
    young.write_bytes(bytes(1000))
    os.utime(old, (0, 0))
    os.utime(store.root / "a/k", (0, 0))
    assert store.sweep(3600.0) == 1000
    assert files_in(store.root) == ["a/k", "packs/x/.tmp-0123456789abcdef", "packs/x/.tmpfile"]


def test_a_sweep_does_not_follow_links(store: LocalStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    victim = elsewhere / ".tmp-0123456789abcdef"
    victim.write_bytes(b"data")
    os.utime(victim, (0, 0))
    store.put("a/k", b"")
    (store.root / "a/link").symlink_to(elsewhere)
    (store.root / "a/.tmp-link").symlink_to(victim)
    os.utime(store.root / "a/.tmp-link", (0, 0), follow_symlinks=False)
    store.sweep(3600.0)
    assert victim.read_bytes() == b"data"
    assert not (store.root / "a/.tmp-link").is_symlink()


# -- symbolic links


def test_a_linked_folder_inside_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/k").write_bytes(b"secret")
    store.put("a/k", b"data")
    (store.root / "b").symlink_to(tmp_path / "elsewhere")
    for ask in (
        lambda: store.get("b/k"), lambda: store.info("b/k"), lambda: store.put("b/k", b"x"),
        lambda: store.put_new("b/new", b"x"), lambda: store.delete("b/k"), lambda: store.move("a/k", "b/k"),
        lambda: store.move("b/k", "a/l"), lambda: list(store.list("b")),
    ):  # fmt: skip
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.kind in ("link", "not-a-folder")
    assert files_in(tmp_path / "elsewhere") == ["k"]
    assert (tmp_path / "elsewhere/k").read_bytes() == b"secret"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_linked_object_is_not_read(store: LocalStore, tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"secret")
    store.put("a/other", b"data")
    (store.root / "a/k").symlink_to(target)
    with pytest.raises(StoreError, match="symbolic link") as caught:
        store.get("a/k")
    assert caught.value.kind == "link"
    with pytest.raises(ObjectNotFoundError):
        store.info("a/k")
    assert [info.key for info in store.list("a")] == ["a/other"]
    with pytest.raises(ObjectExistsError):
        store.put_new("a/k", b"data")
    store.put("a/k", b"data")  # takes the place of the link, not of what it points to
    assert store.get("a/k") == b"data"
    assert not dangling or not target.exists()
    assert dangling or target.read_bytes() == b"secret"


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    LocalStore(tmp_path / "link").put("a/k", b"data")
    assert (tmp_path / "real/a/k").read_bytes() == b"data"


@pytest.mark.parametrize("below", ["", "sub/store"])
def test_a_root_that_links_to_nothing_is_said_to(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    store = LocalStore(tmp_path / "link" / below)
    assert not store.exists("k")
    with pytest.raises(StoreError, match="make that folder") as caught:
        store.put("a/k", b"data")
    assert caught.value.kind == "link"


# -- files where folders should be, and the other way round


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="choose another path") as caught:
        LocalStore(tmp_path / "file")
    assert (caught.value.kind, caught.value.path) == ("not-a-folder", str(tmp_path / "file"))


def test_a_root_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(tmp_path / "file/store")
    for ask in (lambda: store.put("k", b""), lambda: store.get("k")):
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.kind == "not-a-folder"


def test_a_folder_is_no_object(store: LocalStore) -> None:
    store.put("a/b/k", b"data")
    with pytest.raises(StoreError) as caught:
        store.get("a/b")
    assert caught.value.kind == "not-a-file"
    with pytest.raises(ObjectNotFoundError):
        store.info("a/b")
    with pytest.raises(StoreError):
        store.delete("a/b")
    with pytest.raises(StoreError):
        store.put("a/b", b"data")
    for ask in (lambda: store.put("a/b/k/below", b"data"), lambda: list(store.list("a/b/k"))):
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.kind == "not-a-folder"
    assert files_in(store.root) == ["a/b/k"]


def test_a_pipe_does_not_hold_a_reader_up(store: LocalStore) -> None:
    store.put("a/other", b"data")
    os.mkfifo(store.root / "a/pipe")
    with pytest.raises(StoreError) as caught:
        store.get("a/pipe")
    assert caught.value.kind == "not-a-file"
    assert [info.key for info in store.list("a")] == ["a/other"]


def test_names_that_are_no_keys_are_not_listed(store: LocalStore) -> None:
    store.put("a/k", b"data")
    for name in (b"with space", b"\xff\xfe", b"new\nline", "ä".encode(), b".tmp-x", b"back\\slash"):
        with open(os.fsencode(store.root) + b"/a/" + name, "wb"):
            pass
        os.makedirs(os.fsencode(store.root) + b"/a/folder-" + name, exist_ok=True)
    assert [info.key for info in store.list("a")] == ["a/k"]


def test_a_folder_that_goes_while_it_is_listed_cuts_nothing_off(store: LocalStore) -> None:
    for key in ("p/a/1", "p/b/2", "p/c/3"):
        store.put(key, b"")
    listing = store.list("p")
    assert next(listing).key == "p/a/1"
    (store.root / "p/b/2").unlink()
    (store.root / "p/b").rmdir()
    assert [info.key for info in listing] == ["p/c/3"]


def test_a_file_that_goes_while_it_is_listed_cuts_nothing_off(store: LocalStore) -> None:
    for key in ("p/1", "p/2", "p/3"):
        store.put(key, b"")
    listing = store.list("p")
    assert next(listing).key == "p/1"
    (store.root / "p/2").unlink()
    assert [info.key for info in listing] == ["p/3"]


def test_an_open_object_stays_readable_when_it_is_deleted(store: LocalStore) -> None:
    store.put("k", b"data")
    with store.open("k") as reader:
        store.delete("k")
        assert reader.read(0, 4).tobytes() == b"data"


# -- names and urls


def test_a_url_leads_back_to_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "with space, ? # and %20"
    LocalStore(root).put("k", b"data")
    again = LocalStore.from_url(LocalStore(root).url)
    assert again.root == root
    assert again.get("k") == b"data"


@pytest.mark.parametrize(
    "url", ["file://", "file://host/path", "file:///a?b", "file:///a#b", "file:///a%00b"]
)
def test_a_url_that_means_no_folder_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        LocalStore.from_url(url)


def test_a_relative_root_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore("store")
    monkeypatch.chdir("/")
    store.put("k", b"data")
    assert (tmp_path / "store/k").read_bytes() == b"data"


def test_free_bytes_are_asked_of_the_nearest_folder_that_there_is(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = LocalStore(tmp_path / "not/yet/there").free_bytes()
    assert free is not None
    assert abs(free - status.f_bavail * status.f_frsize) < 1 << 30
    assert not (tmp_path / "not").exists()


# -- file systems without hard links


def test_without_hard_links_a_key_that_is_taken_is_not_overwritten(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # what vfat says, and what no file system here does
    store.put_new("a/k", b"first")
    with pytest.raises(ObjectExistsError):
        store.put_new("a/k", b"second")
    assert store.get("a/k") == b"first"
    assert files_in(store.root) == ["a/k"]


def test_a_link_whose_answer_was_lost_is_recognised(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lose(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        link(*args, **kwargs)  # what NFS does when the first answer does not arrive

    monkeypatch.setattr(os, "link", lose)
    store.put_new("a/k", b"data")
    with pytest.raises(ObjectExistsError):
        store.put_new("a/k", b"other")
    assert store.get("a/k") == b"data"
    assert files_in(store.root) == ["a/k"]
