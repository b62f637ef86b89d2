"""Whether a file lies on a network file system, where SQLite's write-ahead log is unsafe."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["is_on_network"]

_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
}  # fmt: skip
_NETWORK_FUSE = {"beegfs", "ceph", "gcsfuse", "glusterfs", "juicefs", "mfs", "rclone", "s3fs", "sshfs"}


def is_on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether the innermost mount that holds `path` is a network file system, by a table as in proc(5).

    False where there is no such table to read (macOS, some sandboxes).
    """
    try:
        table = mounts.read_text("utf-8", "surrogateescape")
    except OSError:
        return False
    target = os.path.realpath(path)
    found, kind = "", ""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        folder = _unescape(fields[1])
        # Of two mounts on one folder the later one covers the earlier.
        if len(folder) >= len(found) and _holds(folder, target):
            found, kind = folder, fields[2]
    family, _, member = kind.partition(".")
    return kind in _NETWORK or (family == "fuse" and member in _NETWORK_FUSE)


def _holds(folder: str, target: str) -> bool:
    return target == folder or target.startswith(folder.rstrip("/") + "/")


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
