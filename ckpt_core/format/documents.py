"""The JSON documents of format 1 as typed records. `docs/format.md` describes each member."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ckpt_core import clock
from ckpt_core.format.numbers import Number
from ckpt_core.format.sealed import DIGEST_LENGTH, FORMAT

__all__ = [
    "AttemptRecord",
    "AttemptStart",
    "AttemptWord",
    "Chunk",
    "ExperimentTag",
    "Forward",
    "ForwardRow",
    "Grace",
    "Lease",
    "Manifest",
    "MetricRow",
    "MetricSegment",
    "MirrorDocument",
    "MirrorNote",
    "PackRecord",
    "ParityDocument",
    "Reference",
    "Shard",
    "SignatureDocument",
    "SignatureRow",
    "StoreDocument",
    "TensorRecord",
]

_LARGEST = 1 << 62

Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
Step = Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)]
Digest = Annotated[str, Meta(pattern=rf"\A[A-Za-z0-9_-]{{{DIGEST_LENGTH}}}\Z")]
Ulid = Annotated[str, Meta(pattern=r"\A[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")]
Moment = Annotated[str, Meta(min_length=27, max_length=27)]
PackName = Annotated[
    str,
    Meta(max_length=400, pattern=r"\A[A-Za-z0-9%~_-][A-Za-z0-9%~._-]*/[A-Za-z0-9-]+\.safetensors\Z"),
]


class StoreDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`store.json`: what holds for the whole store."""

    format: int = FORMAT
    store_id: Ulid
    chunk_bytes: Annotated[int, Meta(ge=4096, le=(1 << 30), multiple_of=4096)]
    created_at: Moment
    digest: str = "sha256"

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`[digest, pack, offset]`: `pack` counts in the manifest's packs, `offset` from the pack's beginning."""

    digest: Digest
    pack: Count
    offset: Count


class Shard(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A box of a tensor: its chunks one after the other; `offset` and `shape` where it is not the whole;
    `stored` where some are compressed: the bytes that each takes in its pack, 0 for one that is not."""

    chunks: tuple[Chunk, ...] = ()
    offset: tuple[Count, ...] | None = None
    shape: tuple[Count, ...] | None = None
    stored: tuple[Count, ...] | None = None

    def stored_length(self, number: int) -> int:
        """The bytes that a compressed chunk takes; 0 for one that is as it is in the tensor."""
        return self.stored[number] if self.stored is not None else 0


class TensorRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`[dtype, shape, shards, kind]`; its paths are where the tree names its index.

    An array, since there are hundreds: what a save of an unchanged state writes is little more than these.
    """

    dtype: Annotated[str, Meta(max_length=64)]
    shape: tuple[Count, ...]
    shards: tuple[Shard, ...]
    kind: str


class PackRecord(msgspec.Struct, frozen=True):
    """A pack that the checkpoint needs: its name under `packs/`, its size, the digest of its header."""

    name: PackName
    size: Count
    header_size: Count
    header: Digest


class AttemptRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The start of a training process that made the checkpoint."""

    number: Annotated[int, Meta(ge=1, le=_LARGEST)]
    id: Ulid
    lineage: Ulid
    resumed_from: Ulid | None = None
    resumed_step: Count | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The document that makes a checkpoint. Publishing it is the commit."""

    format: int = FORMAT
    id: Ulid
    experiment: str
    step: Count
    created_at: Moment
    attempt: AttemptRecord
    parent: Ulid | None
    writer: dict[str, Any]
    metrics: dict[str, Number]
    chunk_bytes: Annotated[int, Meta(ge=1, le=(1 << 30))]
    logical_bytes: Count
    written_bytes: Count
    state: Any
    tensors: tuple[TensorRecord, ...]
    packs: tuple[PackRecord, ...]

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A tag or a pin: a name that points to a checkpoint."""

    format: int = FORMAT
    kind: Literal["tags", "pins"]
    name: str
    experiment: str
    checkpoint: Ulid
    created_at: Moment

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class SignatureRow(msgspec.Struct, frozen=True, array_like=True):
    """`[key, signature]`: a public key, and what its owner made of the message that names the checkpoint."""

    key: Digest
    signature: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{86}\Z")]


class SignatureDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed a checkpoint."""

    format: int = FORMAT
    experiment: str
    checkpoint: Ulid
    signatures: Annotated[tuple[SignatureRow, ...], Meta(min_length=1, max_length=256)]


class AttemptStart(msgspec.Struct, frozen=True, kw_only=True):
    """That a training process began, from what, with which configuration, and where it runs."""

    format: int = FORMAT
    experiment: str
    attempt: AttemptRecord
    started_at: Moment
    origin: str | None
    config: dict[str, Any] | None
    environment: dict[str, Any]
    process: Annotated[str, Meta(max_length=255)]
    lease: Ulid

    def __post_init__(self) -> None:
        clock.from_text(self.started_at)


class AttemptWord(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt said of itself at its end, or when it went on after all: its last word counts."""

    format: int = FORMAT
    experiment: str
    attempt: Ulid
    outcome: Annotated[str, Meta(min_length=1, max_length=64)]
    reason: str
    at: Moment
    performance: dict[str, Any]

    def __post_init__(self) -> None:
        clock.from_text(self.at)


class ExperimentTag(msgspec.Struct, frozen=True, kw_only=True):
    """A word that somebody put on an experiment."""

    format: int = FORMAT
    experiment: str
    name: str
    created_at: Moment

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class MetricRow(msgspec.Struct, frozen=True, array_like=True):
    """`[name, step, value, at]`; a value that is not finite is the text `nan`, `inf` or `-inf`."""

    name: str
    step: Step
    value: Number
    at: Moment

    def __post_init__(self) -> None:
        clock.from_text(self.at)


class MetricSegment(msgspec.Struct, frozen=True, kw_only=True):
    """Metric values of one attempt, in the order in which they were logged."""

    format: int = FORMAT
    experiment: str
    attempt: AttemptRecord
    rows: tuple[MetricRow, ...]


class ForwardRow(msgspec.Struct, frozen=True, array_like=True):
    """`[offset, digest, pack, new_offset]`: where a chunk of a pack that was rewritten has gone."""

    offset: Count
    digest: Digest
    pack: PackName
    new_offset: Count


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in place of a pack that prune has rewritten."""

    format: int = FORMAT
    pack: PackName
    rows: tuple[ForwardRow, ...]


class ParityDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a sidecar says of itself and of its pack. `cells` are the digests of all cells, row by row."""

    format: int = FORMAT
    pack: PackName
    size: Count
    header: Digest
    percent: Count
    data_blocks: Annotated[int, Meta(ge=1, le=256)]
    parity_blocks: Annotated[int, Meta(ge=1, le=256)]
    block_bytes: Annotated[int, Meta(ge=1, le=_LARGEST)]
    cell_bytes: Annotated[int, Meta(ge=1, le=(1 << 30))]
    cells: str


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A claim of a process that is at work: what it is about to name, and what nobody else may do meanwhile."""

    format: int = FORMAT
    id: Ulid
    purpose: str
    holder: str
    process: str
    seconds: Annotated[int, Meta(ge=1, le=_LARGEST)]
    lock: str = ""
    checkpoint: Ulid | None = None
    packs: tuple[PackName, ...] = ()
    report: dict[str, Any] = {}


class MirrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`mirror.json`: where the store's mirror is."""

    format: int = FORMAT
    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    created_at: Moment

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class MirrorNote(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed from the store while its mirror was out of reach."""

    format: int = FORMAT
    key: str
    created_at: Moment

    def __post_init__(self) -> None:
        clock.from_text(self.created_at)


class Grace(msgspec.Struct, frozen=True, kw_only=True):
    """How long after it was forgotten a checkpoint can be brought back, and who forgot it."""

    format: int = FORMAT
    seconds: Annotated[float, Meta(ge=0, le=1e12)]
    by: str
