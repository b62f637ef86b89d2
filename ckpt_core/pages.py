"""Host memory in whole pages: what large copies go to, and direct reads and writes want."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ckpt_core.model import Buffer

__all__ = ["PAGE", "address", "pages"]

PAGE = 4096
"""Where a buffer begins in a page of so many bytes decides whether it can be written as it is."""

_HUGE = 2 << 20


def pages(nbytes: int) -> Buffer:
    """Fresh memory that begins with a page. In huge pages, where it may be: the first copy into it is twice as
    quick then. Raises MemoryError."""
    try:
        length = -(-nbytes // _HUGE) * _HUGE
        block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without
            block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, np.uint8)


def address(buffer: Buffer) -> int:
    """Where it begins in memory."""
    return int(buffer.__array_interface__["data"][0])
