"""A store in a local folder, durable against power cuts.

An object is written under a temporary name, fsynced, linked to its name, and the folder is fsynced.
Folders are opened one by one without following symbolic links, so nothing in a store leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from ckpt_core import ids
from ckpt_core.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UsageError,
)
from ckpt_core.model import Buffer
from ckpt_core.stores.contract import Bytes, ObjectInfo, ObjectReader, ObjectWriter, Store, check_key

__all__ = ["LocalStore"]

_TEMPORARY = ".tmp-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EROFS: "read-only", errno.EACCES: "permission",
         errno.EPERM: "permission", errno.ENOTDIR: "not-a-folder", errno.ELOOP: "link"}  # fmt: skip
_ADVICE = {
    "full": "the disk or quota is full: free space, or `ckpt forget` and `ckpt prune` old checkpoints",
    "read-only": "the file system is read-only: remount it for writing or choose another store",
    "permission": "permission denied: check the owner and mode of the folder",
    "not-a-folder": "a part of the path is a file, not a folder: choose another path",
    "link": "a symbolic link stands inside the store, which is not followed: replace it by a real folder",
    "io": "the operating system reported an input/output error: check the disk",
}


class LocalStore(Store):
    """A folder. It is made on the first write; `root` itself may be a symbolic link."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = self.root.as_uri()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(
                f"{self.root} is a file; a store is a folder: choose another path",
                kind="not-a-folder",
                path=str(self.root),
            )

    @classmethod
    def from_url(cls, url: str) -> LocalStore:
        """From `file:///absolute/path`."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"{url!r} should read file:///absolute/path", kind="url")
        return cls(unquote(parts.path))

    @contextmanager
    def open(self, key: str) -> Iterator[ObjectReader]:
        *folders, name = check_key(key)
        with self._translated(key), self._folder(folders) as folder:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{self.root / key} is not a regular file", kind="not-a-file", key=key)
            yield _LocalReader(self, key, fd, status.st_size)
        finally:
            os.close(fd)

    def create(self, key: str) -> ObjectWriter:
        *folders, name = check_key(key)
        if name.startswith(_TEMPORARY):
            raise UsageError(f"{key!r} is not a key of a store: the prefix is kept for temporaries", kind="key")
        with self._translated(key):
            return _LocalWriter(self, key, self._make_folder(folders), name)

    def put(self, key: str, data: Bytes) -> None:
        with self.create(key) as writer:
            assert isinstance(writer, _LocalWriter)
            writer.write(0, data)
            writer.replace()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        parts = check_key(prefix)
        try:
            with self._translated(prefix), self._folder(parts) as folder:
                yield from self._walk(folder, prefix)
        except FileNotFoundError:
            return

    def info(self, key: str) -> ObjectInfo:
        *folders, name = check_key(key)
        with self._translated(key), self._folder(folders) as folder:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFoundError(f"{self.root / key} is not a regular file", key=key)
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def move(self, key: str, target: str) -> None:
        *folders, name = check_key(key)
        *target_folders, target_name = check_key(target)
        self.info(key)
        with self._translated(key), self._folder(folders) as source:
            destination = self._make_folder(target_folders)
            try:
                os.rename(name, target_name, src_dir_fd=source, dst_dir_fd=destination)
                # The new name first: a crash between the two leaves both names, never neither.
                _sync_folder(destination)
                _sync_folder(source)
            finally:
                os.close(destination)

    def delete(self, key: str) -> None:
        *folders, name = check_key(key)
        with suppress(FileNotFoundError), self._translated(key), self._folder(folders) as folder:
            os.unlink(name, dir_fd=folder)
            _sync_folder(folder)

    def now(self) -> float:
        with self._translated("."):
            folder = self._make_folder([])
            name = f"{_TEMPORARY}{ids.token()}"
            try:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
                try:
                    return os.fstat(fd).st_mtime
                finally:
                    os.close(fd)
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(folder)

    def sweep(self, older_than: float) -> int:
        limit = self.now() - older_than
        freed = 0
        for base, _, names in os.walk(self.root):  # does not follow links
            for name in names:
                path = os.path.join(base, name)
                if not name.startswith(_TEMPORARY):
                    continue
                with suppress(FileNotFoundError), self._translated(name):
                    status = os.lstat(path)
                    if status.st_mtime < limit:
                        os.unlink(path)
                        freed += status.st_size
        return freed

    def free_bytes(self) -> int | None:
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        status = os.statvfs(there)
        return status.f_bavail * status.f_frsize

    def _walk(self, folder: int, prefix: str) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                if not entry.name.startswith(_TEMPORARY)
            )  # fmt: skip
        for name, is_folder in found:
            key = f"{prefix}/{name}"
            if is_folder:
                below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    yield from self._walk(below, key)
                finally:
                    os.close(below)
                continue
            with suppress(FileNotFoundError):  # deleted since the listing
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(key, status.st_size, status.st_mtime)

    @contextmanager
    def _folder(self, parts: tuple[str, ...] | list[str]) -> Iterator[int]:
        fd = os.open(self.root, _FOLDER)
        try:
            for part in parts:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _make_folder(self, parts: list[str]) -> int:
        """Opens a folder, making what is missing; each new name is durable before it is used."""
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(path)
            _sync_path(path.parent)
        fd = os.open(self.root, _FOLDER)
        try:
            for part in parts:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    _sync_folder(fd)
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            self.fail(key, error)

    def fail(self, key: str, error: OSError) -> NoReturn:
        """Raises the error of this engine that says what a failed call on `key` means."""
        path = str(self.root / key)
        if isinstance(error, FileNotFoundError):
            raise ObjectNotFoundError(f"{path} does not exist", key=key, path=path) from error
        if isinstance(error, FileExistsError):
            raise ObjectExistsError(f"{path} already exists", key=key, path=path) from error
        kind = _FULL.get(error.errno or 0, "io")
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(f"{path}: {reason}; {_ADVICE[kind]}", kind=kind, key=key, path=path) from error


class _LocalReader(ObjectReader):
    def __init__(self, store: LocalStore, key: str, fd: int, size: int) -> None:
        self._store = store
        self._key = key
        self._fd = fd
        self.size = size

    def read_into(self, offset: int, out: Buffer) -> int:
        view = memoryview(out)
        done = 0
        try:
            while done < view.nbytes:
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            self._store.fail(self._key, error)
        return done


class _LocalWriter(ObjectWriter):
    """Owns two descriptors: the folder's and the temporary file's."""

    def __init__(self, store: LocalStore, key: str, folder: int, name: str) -> None:
        self._store = store
        self._key = key
        self._folder = folder
        self._name = name
        self._temporary = f"{_TEMPORARY}{ids.token()}"
        self._open = True
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o666, dir_fd=folder)
        except OSError:
            os.close(folder)
            raise

    def write(self, offset: int, data: Bytes) -> None:
        view = memoryview(data).cast("B")
        try:
            while view.nbytes:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            self._store.fail(self._key, error)

    def commit(self) -> None:
        try:
            os.fsync(self._fd)  # an error here is final: the kernel may have dropped the pages
            try:
                os.link(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder,
                        follow_symlinks=False)  # fmt: skip
                os.unlink(self._temporary, dir_fd=self._folder)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                self._rename_if_free()
            _sync_folder(self._folder)
        except OSError as error:
            self._store.fail(self._key, error)
        self._close()

    def replace(self) -> None:
        """As `commit`, but takes the place of an object that is there."""
        try:
            os.fsync(self._fd)
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            _sync_folder(self._folder)
        except OSError as error:
            self._store.fail(self._key, error)
        self._close()

    def discard(self) -> None:
        if self._open:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._close()

    def _rename_if_free(self) -> None:
        """For file systems without hard links. Names carry ULIDs, so only a retry of our own can meet one."""
        with suppress(FileNotFoundError):
            os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _close(self) -> None:
        self._open = False
        os.close(self._fd)
        os.close(self._folder)


def _sync_folder(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has no notion of it
            raise


def _sync_path(path: Path) -> None:
    fd = os.open(path, _FOLDER)
    try:
        _sync_folder(fd)
    finally:
        os.close(fd)
