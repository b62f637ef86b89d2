"""Real file systems for tests: full ones, read-only ones, and one whose power can be cut. Root only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_WITHOUT_FLUSH = 2


def _mount(*arguments: str | Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, size: str = "16m") -> Iterator[Path]:
    """A file system of so many bytes at `folder`."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """`folder` itself, which for a while nobody can write to, not even root."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,ro,bind", folder)
        yield folder
    finally:
        _unmount(folder)


class PowerDisk:
    """An ext4 file system that forgets what was not made durable when its power is cut."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("there is no mkfs.ext4")
        self.root = folder / "disk"
        self._image = folder / "image"
        self.root.mkdir()
        with self._image.open("wb") as file:
            file.truncate(24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True, capture_output=True)
        self._mount()

    def cut_power(self) -> None:
        """Stops the file system without writing anything more, and mounts what is on the disk."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        except OSError as error:
            pytest.skip(f"this kernel cannot stop a file system: {error}")
        finally:
            os.close(fd)
        self.remount()

    def sync(self) -> None:
        """Makes all that is there durable."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            ctypes.CDLL(None).syncfs(fd)
        finally:
            os.close(fd)

    def remount(self) -> None:
        """Mounts what is on the disk, after somebody has cut the power."""
        _unmount(self.root)
        self._mount()

    def close(self) -> None:
        _unmount(self.root)

    def _mount(self) -> None:
        _mount("-o", "loop", self._image, self.root)
