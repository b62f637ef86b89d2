"""Whether what somebody asks for can be, and whether an intact manifest makes sense: it comes from a file, and nothing
in it is believed unproved."""

from __future__ import annotations

import math

from ckpt_core.errors import CorruptionError, FormatError, UsageError
from ckpt_core.format.compression import COMPRESSIONS, EXPANSION
from ckpt_core.format.compression import require as require_compression
from ckpt_core.format.documents import Manifest, TensorRecord
from ckpt_core.format.hashing import ALGORITHMS, require
from ckpt_core.format.names import fault_in_stored
from ckpt_core.format.sealed import FORMAT
from ckpt_core.model import TensorSpec
from ckpt_core.tree import check_tree, dtypes

__all__ = ["check_manifest", "check_options"]

_MOST_AXES = 64
_LARGEST = 1 << 62
_CHUNK_STEP, _CHUNK_MOST = 4096, 1 << 30


def check_options(chunk_bytes: int | None, digest: str | None, compression: str | None = None) -> None:
    """Raises UsageError for what no store can be made with, nor a checkpoint written; MissingExtraError."""
    if chunk_bytes is not None and (
        chunk_bytes % _CHUNK_STEP or not _CHUNK_STEP <= chunk_bytes <= _CHUNK_MOST
    ):
        raise UsageError(
            f"chunk_bytes={chunk_bytes!r} must be a multiple of {_CHUNK_STEP}, {_CHUNK_MOST} at most",
            kind="option",
        )
    if digest is not None:
        if digest not in ALGORITHMS:
            raise UsageError(f"digest={digest!r} must be one of {', '.join(ALGORITHMS)}", kind="option")
        require(digest)
    if compression is not None:
        if compression not in COMPRESSIONS:
            raise UsageError(
                f"compression={compression!r} must be None or one of {', '.join(COMPRESSIONS)}", kind="option"
            )
        require_compression()


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises CorruptionError where a manifest, though intact, contradicts itself; FormatError where it
    holds what this version cannot read.

    After this no number in it leads outside a pack or a list, and none asks for more memory than the chunks
    that it names can hold.
    """
    fault = fault_in_stored(manifest.experiment)
    if fault:
        raise CorruptionError(
            f"{where} is damaged: its experiment {manifest.experiment!a} {fault}", kind="document", key=where
        )
    for index, tensor in enumerate(manifest.tensors):
        fault = _fault(tensor, manifest, where)
        if fault:
            raise CorruptionError(f"{where} is damaged: tensor {index} {fault}", kind="document", key=where)
    try:
        check_tree(manifest.state, len(manifest.tensors))
    except FormatError as error:
        raise FormatError(f"{where} cannot be read: {error}", kind=error.kind, key=where) from error


def _fault(tensor: TensorRecord, manifest: Manifest, where: str) -> str | None:
    if len(tensor.shards) != 1 or tensor.shards[0].offset is not None:
        raise FormatError(
            f"{where} holds a tensor in several shards: upgrade ckpt-core", kind="sharded", key=where
        )
    # Also where one axis is empty, the others must be such that a framework can hold the shape.
    extent = math.prod(length for length in tensor.shape if length)
    if len(tensor.shape) > _MOST_AXES or extent > _LARGEST:
        return f"has an impossible shape of {len(tensor.shape)} axes"
    size = dtypes.nbytes(TensorSpec(tensor.dtype, tensor.shape))
    chunks = tensor.shards[0].chunks
    if len(chunks) != -(-size // manifest.chunk_bytes):
        return "has too few or too many chunks"
    stored = tensor.shards[0].stored
    if stored is not None and (len(stored) != len(chunks) or manifest.format == FORMAT):
        return f"has compressed chunks, but not as many as chunks, or though it is of format {FORMAT}"
    for number, chunk in enumerate(chunks):
        length = min(manifest.chunk_bytes, size - number * manifest.chunk_bytes)
        if stored is not None and stored[number]:
            if length > stored[number] * EXPANSION:
                return "has a compressed chunk that is too short for what it is to hold"
            length = stored[number]
        if chunk.pack >= len(manifest.packs) or chunk.offset + length > manifest.packs[chunk.pack].size:
            return "has a chunk that lies outside its pack"
    return None
