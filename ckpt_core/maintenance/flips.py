"""One flipped bit undone by trial: where nothing else holds the bytes, their digest alone can bring them back.

Disks and memory lose single bits more often than anything else. In a short run of bytes every bit can be tried.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ckpt_core.format.hashing import digest_of
from ckpt_core.format.sealed import DIGEST_LENGTH, digest_bytes, digest_text

__all__ = ["LONGEST", "unflip", "unflip_sealed"]

LONGEST = 64 << 10
"""Bytes beyond which it is not tried: the time grows with the square, and is some ten seconds here."""

_TAIL = DIGEST_LENGTH + 13  # of a sealed document: `,"sha256":"`, the digest, `"}`
_KEY = b',"sha256":"'


def unflip(data: bytes, digest: str, algorithm: str = "sha256") -> bytes | None:
    """The bytes of that digest that differ from `data` by one bit at most; None where there are none."""
    if digest_of(np.frombuffer(data, np.uint8), algorithm) == digest:
        return data
    wanted = digest_bytes(digest)
    if algorithm != "sha256" or len(data) > LONGEST or wanted is None:
        return None
    before = hashlib.sha256()
    view = memoryview(data)
    for at, byte in enumerate(data):
        rest = view[at + 1 :]
        for bit in range(8):
            trial = before.copy()
            trial.update(bytes((byte ^ 1 << bit,)))
            trial.update(rest)
            if trial.digest() == wanted:
                return data[:at] + bytes((byte ^ 1 << bit,)) + data[at + 1 :]
        before.update(view[at : at + 1])
    return None


def unflip_sealed(data: bytes, *, trials: bool = True) -> bytes | None:
    """The sealed document that differs from `data` by one bit at most; None where there is none. Without `trials`
    only the seal itself may be off."""
    body, tail = data[:-_TAIL], data[-_TAIL:]
    if not body:
        return None
    proved = _KEY + digest_text(hashlib.sha256(body).digest()).encode() + b'"}'
    if sum((one ^ two).bit_count() for one, two in zip(tail, proved, strict=True)) <= 1:
        return body + proved
    if not trials or not tail.startswith(_KEY):
        return None
    found = unflip(body, tail[len(_KEY) : -2].decode("ascii", "replace"))
    return None if found is None else found + tail
