"""A store in a local folder, durable against power cuts.

An object is written under a temporary name, fsynced, linked to its name, and the folder is fsynced.
Folders are opened one by one without following symbolic links, so nothing in a store leads out of it.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ckpt_core.errors import ObjectNotFoundError, StoreError, UsageError
from ckpt_core.stores.contract import (
    TEMPORARY,
    Bytes,
    Generation,
    ObjectInfo,
    ObjectReader,
    ObjectWriter,
    Store,
    check_key,
    is_key,
)
from ckpt_core.stores.direct import BlockPool
from ckpt_core.stores.files import FileReader, FileWriter, new_temporary, sync_folder, translated

__all__ = ["LocalStore"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _FOLDER | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not hold a reader up


class LocalStore(Store):
    """A folder. It is made on the first write; `root` itself may be a symbolic link."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if "\0" in os.fspath(root):
            raise UsageError(f"{os.fspath(root)!a} cannot be a path", kind="path")
        self.root = Path(os.path.abspath(root))
        self.url = self.root.as_uri()
        self._durable: set[tuple[str, ...]] = set()
        self._blocks = BlockPool()
        with translated(self.root, ""), suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR(os.stat(self.root).st_mode):
                raise StoreError(
                    f"{self.root} is a file; a store is a folder: choose another path",
                    kind="not-a-folder",
                    path=str(self.root),
                )

    @classmethod
    def from_url(cls, url: str) -> LocalStore:
        """From `file:///absolute/path`."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
            raise UsageError(f"{url!r} should read file:///absolute/path (? as %3F, # as %23)", kind="url")
        return cls(unquote(parts.path))

    @contextmanager
    def open(self, key: str) -> Iterator[ObjectReader]:
        *folders, name = check_key(key)
        with self._translated(key), self._folder(folders) as folder:
            fd = os.open(name, _FILE, dir_fd=folder)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{self.root / key} is not a regular file", kind="not-a-file", key=key)
            reader = FileReader(self.root / key, key, fd, status.st_size, self._blocks)
            try:
                yield reader
            finally:
                reader.close()
        finally:
            os.close(fd)

    def create(self, key: str) -> ObjectWriter:
        return self._create(key)

    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        with self._create(key) as writer:
            writer.write(0, data)
            writer.replace(durable=durable)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._translated(prefix):
            try:
                folder = self._open_folder(check_key(prefix))
            except FileNotFoundError:
                return
            try:
                yield from self._walk(folder, prefix)
            finally:
                os.close(folder)

    def names(self, folder: str) -> Iterable[str]:
        return [
            entry.name
            for entry in self._entries(folder)
            if not entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False)
        ]

    def folders(self, folder: str) -> Iterable[str]:
        return [e.name for e in self._entries(folder) if is_key(e.name) and e.is_dir(follow_symlinks=False)]

    def generation(self, folder: str) -> Generation | None:
        """By the folder's own dates: a file system sets both whenever a name comes or goes."""
        try:
            with self._translated(folder), self._folder(check_key(folder)) as fd:
                status = os.fstat(fd)
        except ObjectNotFoundError:
            return Generation("none", -math.inf)
        word = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
        return Generation(word, max(status.st_mtime, status.st_ctime))

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
                sync_folder(destination)
                sync_folder(source)
            finally:
                os.close(destination)

    def delete(self, key: str, *, durable: bool = True) -> None:
        *folders, name = check_key(key)
        with suppress(ObjectNotFoundError), self._translated(key), self._folder(folders) as folder:
            os.unlink(name, dir_fd=folder)
            if durable:
                sync_folder(folder)

    def now(self) -> float:
        with self._translated("."):
            folder = self._make_folder([])
            try:
                name, fd = new_temporary(folder)
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
        stale: set[str] = set()  # folders that nobody has used since, but for this sweep
        with self._translated("."):
            # Folders after what is in them; links are not followed.
            for path, folders, names, folder in os.fwalk(self.root, topdown=False, onerror=_unless_gone):
                inside = TEMPORARY in path[len(str(self.root)) :]
                if os.fstat(folder).st_mtime < limit or any(f"{path}/{name}" in stale for name in folders):
                    stale.add(path)
                for name in names:
                    if inside or name.startswith(TEMPORARY):
                        freed += _remove_if_older(name, folder, limit)
                for name in folders:
                    if f"{path}/{name}" in stale and (inside or name.startswith(TEMPORARY)):
                        with suppress(OSError):  # what is not empty stays
                            os.rmdir(name, dir_fd=folder)
        return freed

    def free_bytes(self) -> int | None:
        for path in (self.root, *self.root.parents):
            try:
                status = os.statvfs(path)
            except FileNotFoundError:
                continue
            except OSError:
                return None
            return status.f_bavail * status.f_frsize
        return None

    def _create(self, key: str) -> FileWriter:
        *folders, _ = check_key(key)
        with self._translated(key):
            folder = self._make_folder(folders)
        return FileWriter(self.root / key, key, folder, self._blocks)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        with (
            suppress(ObjectNotFoundError),
            self._translated(folder),
            self._folder(check_key(folder)) as fd,
            os.scandir(fd) as entries,
        ):
            yield from entries

    def _walk(self, folder: int, prefix: str) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_folder in found:
            key = f"{prefix}/{name}"
            if not is_key(name):
                continue
            if not is_folder:
                with suppress(FileNotFoundError):  # deleted since the listing
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield ObjectInfo(key, status.st_size, status.st_mtime)
                continue
            try:
                below = os.open(name, _BELOW, dir_fd=folder)
            except FileNotFoundError:
                continue
            try:
                yield from self._walk(below, key)
            finally:
                os.close(below)

    @contextmanager
    def _folder(self, parts: Sequence[str]) -> Iterator[int]:
        fd = self._open_folder(parts)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_folder(self, parts: Sequence[str]) -> int:
        fd = os.open(self.root, _FOLDER)
        for part in parts:
            try:
                below = os.open(part, _BELOW, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make_folder(self, parts: Sequence[str]) -> int:
        """Opens a folder, making what is missing. The names on the way to it are durable before it is used,
        also those that another process made a moment ago."""
        self._make_root()
        fd = os.open(self.root, _FOLDER)
        for depth, part in enumerate(parts, 1):
            try:
                try:
                    below = os.open(part, _BELOW, dir_fd=fd)
                except FileNotFoundError:
                    self._durable.discard(tuple(parts[:depth]))
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                    below = os.open(part, _BELOW, dir_fd=fd)
                if tuple(parts[:depth]) not in self._durable:
                    sync_folder(fd)
                    self._durable.add(tuple(parts[:depth]))
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make_root(self) -> None:
        if () in self._durable and self.root.is_dir():
            return
        for path in (*reversed(self.root.parents), self.root):
            if path.is_symlink() and not path.exists():
                raise StoreError(
                    f"{path} is a symbolic link to a folder that does not exist: make that folder",
                    kind="link",
                    path=str(path),
                )
            if path != self.root and path.exists():
                continue
            with suppress(FileExistsError):
                os.mkdir(path)
            with suppress(PermissionError):  # a folder above that we may pass through, but not read
                _sync_path(path.parent)
        self._durable.add(())

    def _translated(self, key: str) -> AbstractContextManager[None]:
        return translated(self.root / key, key)


def _sync_path(path: Path) -> None:
    fd = os.open(path, _FOLDER)
    try:
        sync_folder(fd)
    finally:
        os.close(fd)


def _remove_if_older(name: str, folder: int, limit: float) -> int:
    """Removes a file last written before `limit`; returns its bytes."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_mtime < limit:
            os.unlink(name, dir_fd=folder)
            return status.st_size
    return 0


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
