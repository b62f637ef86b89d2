"""What tests of packs share: a sink in memory, arrays cut into pieces, a pack written and its header read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from ckpt_core.format.hashing import digest_of
from ckpt_core.format.header import PAGE, PREFIX, PackHeader, read_header
from ckpt_core.format.pack import PackWriter, Piece, empty_piece, header_bound
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
CHUNK = 64
D = "B" * 43
"""What looks like a digest."""


class Sink:
    """What a store's writer is, in memory; counts how often it was made."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.made = 0

    def __call__(self) -> Sink:
        self.made += 1
        return self

    def write(self, offset: int, data: Any) -> None:
        view = bytes(data)
        if len(self.data) < offset + len(view):
            self.data.extend(bytes(offset + len(view) - len(self.data)))
        self.data[offset : offset + len(view)] = view


def pieces_of(path: str, array: np.ndarray, chunk: int = CHUNK) -> list[Piece]:
    name = dtypes.name_of_numpy(array.dtype)
    assert name is not None
    spec, data = TensorSpec(name, array.shape), np.frombuffer(array.tobytes(), np.uint8)
    if not data.size:
        return [empty_piece(path, spec)]
    return [Piece(path, spec, at, data[at : at + chunk]) for at in range(0, data.size, chunk)]


def written(
    pieces: list[Piece], chunk: int = CHUNK, bound: int | None = None
) -> tuple[bytes, Any, list[int]]:
    """A pack of these pieces: its bytes, what a manifest says of it, where each piece starts in the data."""
    sink = Sink()
    bound = header_bound(sorted({(p.path, p.spec) for p in pieces}), chunk) if bound is None else bound
    writer = PackWriter(sink, checkpoint=ULID, chunk_bytes=chunk, bound=bound)
    starts = [writer.append(piece, digest_of(piece.data)) for piece in pieces]
    facts = writer.finish()
    assert sink.made == 1
    return bytes(sink.data), facts, starts


def header_of(data: bytes) -> PackHeader:
    array = np.frombuffer(data, np.uint8)
    return read_header(lambda offset, length: array[offset : offset + length], len(data), "e/p.safetensors")


def forged(entries: Any, size: int = 0, **metadata: Any) -> bytes:
    """A header that says what it likes, under a digest that fits, and so many bytes of data."""
    facts = {"ckpt.format": "1", "ckpt.checkpoint": ULID, "ckpt.digest": "sha256", "ckpt.chunk_bytes": "64", "ckpt.digests": "",
             **{f"ckpt.{key}": value for key, value in metadata.items()}}  # fmt: skip
    facts = {key: value for key, value in facts.items() if value is not None}
    text = json.dumps({"__metadata__": {"ckpt.sha256": "A" * 43, **facts}}, separators=(",", ":"))[:-1]
    text += "," + (entries if isinstance(entries, str) else json.dumps(entries)[1:-1]) if entries else ""
    body = (text + "}").encode()
    length = -(-(len(body) + 8) // PAGE) * PAGE - 8
    raw = length.to_bytes(8, "little") + body.ljust(length)
    seal = digest_text(hashlib.sha256(raw).digest()).encode()
    at = 8 + len(PREFIX)
    return raw[:at] + seal + raw[at + 43 :] + bytes(size)


def entry(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}
