"""Single files of a local store: reading one, writing one durably, and what the system's errors mean.

Every file is reached through the descriptor of its folder, which `local` has opened without following links.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ckpt_core import ids
from ckpt_core.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from ckpt_core.model import Buffer
from ckpt_core.stores.contract import TEMPORARY, Bytes, ObjectReader, ObjectWriter, view_of
from ckpt_core.stores.direct import ALIGN, BlockPool, BlockStream, DirectReads, go_cached, go_direct

__all__ = ["FileReader", "FileWriter", "new_temporary", "sync_folder", "translated"]

_KINDS = {
    errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EROFS: "read-only", errno.EACCES: "permission",
    errno.EPERM: "permission", errno.ENOTDIR: "not-a-folder", errno.ELOOP: "link", errno.EMFILE: "files",
    errno.ENFILE: "files",
}  # fmt: skip
_ADVICE = {
    "full": "the disk or quota is full: free space, or `ckpt forget` and `ckpt prune` old checkpoints",
    "read-only": "the file system is read-only: remount it for writing or choose another store",
    "permission": "permission denied: check the owner and mode of the folder",
    "not-a-folder": "a part of the path is a file, not a folder: choose another path",
    "link": "a symbolic link stands inside the store, which is not followed: replace it by a real folder",
    "files": "too many files are open: close some, or raise the limit (`ulimit -n`)",
    "io": "the operating system reported an input/output error: check the disk",
}
_CACHED = getattr(os, "RWF_NOWAIT", 0)  # read what is there already
_NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOTSUP)
_DIRECT = 1 << 18  # what begins with less is most likely small: the page cache is quicker to take it
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def translated(path: Path, key: str) -> Iterator[None]:
    """Turns what the system says of `path`, the file of `key`, into an error of this engine."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        _fail(path, key, error)


def _fail(path: Path, key: str, error: OSError) -> NoReturn:
    facts = {"key": key, "path": str(path)}
    if isinstance(error, FileNotFoundError):
        raise ObjectNotFoundError(f"{path} does not exist", **facts) from error
    if isinstance(error, FileExistsError):
        raise ObjectExistsError(f"{path} already exists and is not overwritten", **facts) from error
    kind = _KINDS.get(error.errno or 0, "io")
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise StoreError(f"{path}: {reason}; {_ADVICE[kind]}", kind=kind, **facts) from error


class FileReader(ObjectReader):
    """An open file. Whoever opened it calls `close`, and closes the descriptor.

    Of large pieces, what the page cache has is taken from there, and the rest is read past it: a checkpoint
    is read once, and would only displace what training keeps there.
    """

    def __init__(self, path: Path, key: str, fd: int, size: int, blocks: BlockPool) -> None:
        self.size = size
        self._path = path
        self._key = key
        self._fd = fd
        self._blocks = blocks
        self._lock = threading.Lock()
        self._direct: DirectReads | None = None
        self._asked = False

    def read_into(self, offset: int, out: Buffer) -> int:
        with translated(self._path, self._key):
            if out.nbytes < _DIRECT:
                return _read(self._fd, offset, out)
            done = _read(self._fd, offset, out, _CACHED)
            if done == out.nbytes:
                return done
            direct = self._past_cache()
            rest = out[done:]
            if direct is None:
                return done + _read(self._fd, offset + done, rest)
            return done + direct.read_into(offset + done, rest)

    def close(self) -> None:
        """Lets go of what reading needed."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    def _past_cache(self) -> DirectReads | None:
        with self._lock:
            if not self._asked:
                self._asked = True
                self._direct = DirectReads.of(self._fd, self._blocks)
            return self._direct


def _read(fd: int, offset: int, out: Buffer, flags: int = 0) -> int:
    view = out.data
    done = 0
    while done < view.nbytes:
        try:
            count = os.preadv(fd, [view[done:]], offset + done, flags)
        except OSError as error:
            if flags and error.errno in _NOT_CACHED:
                break
            raise
        if count == 0:
            break
        done += count
    return done


def _write(fd: int, offset: int, view: memoryview) -> None:
    while view.nbytes:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


class FileWriter(ObjectWriter):
    """A temporary file beside its final name. Owns two descriptors: the file's and (from its making on) the
    folder's.

    A large file that is written from front to back, but for what stands before its beginning, goes past the
    page cache if `blocks` are given: a checkpoint would only displace what training keeps there.
    """

    def __init__(self, path: Path, key: str, folder: int, blocks: BlockPool | None = None) -> None:
        self._blocks = blocks
        self._stream: BlockStream | None = None
        self._held: list[memoryview] = []
        self._held_at = self._held_end = 0
        self._path = path
        self._key = key
        self._folder = folder
        self._open = True
        try:
            with translated(path, key):
                self._temporary, self._fd = new_temporary(folder)
        except BaseException:
            os.close(folder)
            raise

    def write(self, offset: int, data: Bytes) -> None:
        view = view_of(data)
        if not view.nbytes:
            return
        with translated(self._path, self._key):
            if self._blocks is not None and self._hold(offset, view):
                if self._held_end - self._held_at >= _DIRECT:
                    self._begin_stream()
                return
            if self._stream is not None and offset == self._stream.position:
                self._stream.write(view)
                return
            self._end_stream()
            _write(self._fd, offset, view)

    def _hold(self, offset: int, view: memoryview) -> bool:
        """Keeps the first bytes until it is known whether there are many; False where they are not the next."""
        if not self._held and offset % ALIGN == 0:
            self._held_at = self._held_end = offset
        elif not self._held or offset != self._held_end:
            return False
        self._held.append(view if view.nbytes >= _DIRECT else memoryview(bytes(view)))
        self._held_end += view.nbytes
        return True

    def _begin_stream(self) -> None:
        blocks, self._blocks = self._blocks, None
        assert blocks is not None
        if go_direct(self._fd):
            self._stream = BlockStream(self._fd, self._held_at, blocks)
            held, self._held = self._held, []
            for view in held:
                self._stream.write(view)
        else:
            self._write_held()

    def _write_held(self) -> None:
        self._blocks = None
        held, self._held = self._held, []
        for view in held:
            _write(self._fd, self._held_at, view)
            self._held_at += view.nbytes

    def _end_stream(self) -> None:
        self._write_held()
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                os.ftruncate(self._fd, stream.finish())
            finally:
                stream.abandon()
            go_cached(self._fd)

    def commit(self) -> None:
        with translated(self._path, self._key):
            self._end_stream()
            os.fsync(self._fd)  # an error here is final: the kernel may have dropped the pages
            self._take_name()
            try:
                sync_folder(self._folder)
            except OSError:
                with suppress(OSError):
                    os.unlink(self._path.name, dir_fd=self._folder)
                raise
        self._close()

    def replace(self, *, durable: bool = True) -> None:
        """As `commit`, but takes the place of an object that is there."""
        with translated(self._path, self._key):
            self._end_stream()
            if durable:
                os.fsync(self._fd)
            self._rename()
            if durable:
                sync_folder(self._folder)
        self._close()

    def discard(self) -> None:
        self._held = []
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None
        if self._open:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._close()

    def _take_name(self) -> None:
        name = self._path.name
        try:
            os.link(
                self._temporary,
                name,
                src_dir_fd=self._folder,
                dst_dir_fd=self._folder,
                follow_symlinks=False,
            )
        except FileExistsError:
            # A network file system may have lost the answer to its first try, and asked again.
            if os.fstat(self._fd).st_nlink < 2:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links. Names carry ULIDs, so only a retry of our own can meet one.
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            self._rename()
            return
        with suppress(OSError):  # a second name that nobody lists, until the next sweep
            os.unlink(self._temporary, dir_fd=self._folder)

    def _rename(self) -> None:
        os.rename(self._temporary, self._path.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _close(self) -> None:
        self._open = False
        os.close(self._fd)
        os.close(self._folder)


def new_temporary(folder: int) -> tuple[str, int]:
    """A new empty file in a folder under a name that is no key, and its descriptor."""
    name = f"{TEMPORARY}{ids.token()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return name, os.open(name, flags, 0o666, dir_fd=folder)


def sync_folder(fd: int) -> None:
    """Makes the names in a folder durable."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has no notion of it
            raise
