"""Hostile input, kind by kind: a small store of two checkpoints, and what somebody did to it.

Each kind says what must come: `refused` (loading step 2 is an error of ours, step 1 is what was saved), `right` (both
are what was saved, whatever lies beside them), or `raises` (what the kind returned raises an error of ours when it is
called). Whatever it is, everything else that reads the store ends well or in an error of ours.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ckpt_core import CkptError, clock
from ckpt_core.format.compression import expand
from ckpt_core.format.parity import read_parity, rebuild
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.chunks import damaged_chunks
from ckpt_core.maintenance.doctor import examine
from ckpt_core.maintenance.parity import protect_all
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.verify import verify
from ckpt_core.model import MetricPoint
from ckpt_core.pipeline.mirror import remembered
from ckpt_core.repository import Committed, MetricSegments, References, Repository, layout
from ckpt_core.stores import Store
from contract.pack_case import D, entry, forged, header_of
from contract.store_case import ATTEMPT, CHUNK, commit, load, new_repository, same

__all__ = ["KINDS", "Ground", "Kind", "Must", "put_at"]

Must = Literal["refused", "right", "raises"]
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Ground:
    """A store of two checkpoints, of which the second needs the pack of the first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.repository = new_repository(store)
        self.states = {
            step: {"w": np.arange(CHUNK), "v": np.full(9, step), "t": (step, b"x"), "e": np.empty((0, 2))}
            for step in (1, 2)
        }
        self.first = commit(self.repository, self.states[1], 1)
        self.second = commit(self.repository, self.states[2], 2, self.first.manifest)
        self.pack = self.second.packs[-1][0]
        self.tag = layout.reference_key("digits", "tags", "good")
        References(store).set_tag("digits", "good", self.first.manifest.id)
        self.segment = MetricSegments(store).append(
            "digits", ATTEMPT, [MetricPoint("loss", 1, 0.5, clock.now(), 1)]
        )

    def document(self, key: str) -> dict[str, Any]:
        """A sealed document without its seal."""
        found: dict[str, Any] = json.loads(self.store.get(key))
        found.pop("sha256")
        return found

    def seal(self, key: str, document: dict[str, Any]) -> None:
        """What somebody writes who knows how documents are sealed."""
        self.store.put(key, seal(document))

    def lie(self, key: str, path: str, value: Any) -> None:
        """Another value for a member: `tensors.0.1` is the shape of the first tensor."""
        document = self.document(key)
        put_at(document, path, value)
        self.seal(key, document)

    def load(self, committed: Committed) -> Any:
        """The state of a checkpoint, every byte checked. `store` is opened anew: it may be another by now."""
        return load(Repository.open(self.store), committed.key)

    def is_right(self, committed: Committed) -> bool:
        return same(self.load(committed), self.states[committed.manifest.step])

    def look(self) -> Iterator[Callable[[], object]]:
        """All else that reads a store. Each may find fault with it, by an error of ours."""
        store, repository = self.store, self.repository
        references = References(store)

        def no_catalog() -> Any:
            raise CkptError("there is none here")

        yield lambda: list(references.all())
        yield lambda: list(MetricSegments(store).all())
        yield lambda: list(repository.manifest_keys(trash=True))
        yield repository.leases.living
        yield repository.leases.claims
        yield repository.trash.granted
        yield lambda: plan_prune(repository)
        yield lambda: verify(repository)
        yield lambda: examine(repository, references, no_catalog)
        yield lambda: remembered(store)
        yield lambda: store.sweep(0.0)


@dataclass(frozen=True)
class Kind:
    """One kind of hostile input: what part of a store it is in, how it is made, and what must come."""

    group: str
    name: str
    must: Must
    make: Callable[[Ground], Callable[[], object] | None]


KINDS: list[Kind] = []


def kind(group: str, must: Must) -> Callable[[Callable[[Ground], Any]], Callable[[Ground], Any]]:
    """Enters a function into the list, under its own name."""

    def enter(make: Callable[[Ground], Any]) -> Callable[[Ground], Any]:
        KINDS.append(Kind(group, make.__name__.strip("_").replace("_", " "), must, make))
        return make

    return enter


def kinds(group: str, must: Must, named: dict[str, Any], make: Callable[[Ground, Any], Any]) -> None:
    """Enters several, which differ in a value."""
    for name, value in named.items():
        KINDS.append(Kind(group, name, must, lambda ground, value=value: make(ground, value)))


def put_at(document: Any, path: str, value: Any) -> None:
    """Sets a member deep in a document."""
    *folders, last = path.split(".")
    for part in folders:
        document = document[int(part) if isinstance(document, list) else part]
    document[int(last) if isinstance(document, list) else last] = value


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# -- headers of packs ----------------------------------------------------------------------------------


def header(ground: Ground, data: Any) -> Callable[[], object]:
    made = data() if callable(data) else data
    return lambda: header_of(made)


ONE = {"a": entry(0, 10)}
kinds("header", "raises", {
    "an empty file": b"", "seven bytes": b"\1" * 7, "a length of 2^64-1": b"\xff" * 8 + b"{}",
    "a length beyond the file": (1 << 40).to_bytes(8, "little") + b"{}" * 4000,
    "no JSON": (4088).to_bytes(8, "little") + b"\0" * 4088, "a list": (4088).to_bytes(8, "little") + b"[]".ljust(4088),
    "UTF-16": (4088).to_bytes(8, "little") + '{"a":1}'.encode("utf-16").ljust(4088),
    "offsets that overlap": lambda: forged({"a": entry(0, 10), "b": entry(5, 15)}, 15, digests=f"{D} {D}"),
    "offsets with a hole": lambda: forged({"a": entry(0, 10), "b": entry(11, 15)}, 15, digests=f"{D} {D}"),
    "offsets of 2^62": lambda: forged({"a": entry(0, 1 << 62)}, 10, digests=D),
    "negative offsets": lambda: forged({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-5, 5]}}, 5, digests=D),
    "offsets that are no whole numbers": lambda: forged('"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e1]}', 10, digests=D),
    "a name that stands twice": lambda: forged('"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"a":{"dtype":"U8","shape":[5],"data_offsets":[5,10]}', 10, digests=f"{D} {D}"),
    "chunks of no bytes": lambda: forged(ONE, 10, digests=D, chunk_bytes="0"),
    "chunks of 5000 digits": lambda: forged(ONE, 10, digests=D, chunk_bytes="9" * 5000),
    "a billion chunks": lambda: forged({"a": entry(0, 1 << 30)}, 10, digests=D, chunk_bytes="1"),
    "too few digests": lambda: forged({"a": entry(0, 100)}, 100, digests=D),
    "nesting of 100,000": lambda: forged('"a":' + "[" * 100_000, 0),
    "a number beyond all": lambda: forged('"a":1e999', 0),
    "bytes behind the last tensor": lambda: forged(ONE, 11, digests=D),
    "thirty thousand entries": lambda: forged(",".join(f'"{i}":1' for i in range(30_000)), 0),
}, header)  # fmt: skip


def unbelieved(ground: Ground, data: Callable[[], bytes]) -> Callable[[], object]:
    """What a header says of shapes and types is for others: its chunks are read by their offsets, and are not right."""
    made = np.frombuffer(data(), np.uint8)

    def read(offset: int, length: int) -> Any:
        return made[offset : offset + length]

    return lambda: list(damaged_chunks(read, header_of(made.tobytes()), "sha256")) == [made.nbytes - 10]


kinds("header", "right", {
    "a shape of 2^62": lambda: forged({"a": entry(0, 10, shape=[1 << 62])}, 10, digests=D),
    "a shape whose product wraps round": lambda: forged({"a": entry(0, 10, shape=[1 << 32, 1 << 32])}, 10, digests=D),
    "an unknown element type": lambda: forged({"a": entry(0, 10, dtype="PICKLE")}, 10, digests=D),
    "a digest that is none": lambda: forged(ONE, 10, digests="../../etc/passwd"),
}, unbelieved)  # fmt: skip


# -- tensors, states and names in a manifest -----------------------------------------------------------


def lie(ground: Ground, value: tuple[str, Any]) -> None:
    ground.lie(ground.second.key, *value)


kinds("tensor", "refused", {
    "a shape of 2^62": ("tensors.0.1", [2**62]), "a negative shape": ("tensors.0.1", [-1]),
    "a shape whose product wraps round": ("tensors.0.1", [2**32, 2**32]), "10^30 values": ("tensors.0.1", [10**30]),
    "65 axes": ("tensors.0.1", [1] * 65), "an empty axis beside endless ones": ("tensors.2.1", [0, 2**62, 2**62]),
    "an element type that is Python's own": ("tensors.0.0", "|O8"),
    "texts of two billion characters": ("tensors.0.0", "<U2147483647"),
    "fewer chunks than bytes": ("tensors.0.2.0.chunks", []), "a pack that is not listed": ("tensors.0.2.0.chunks.0.1", 99),
    "a chunk behind the end of its pack": ("tensors.0.2.0.chunks.0.2", 2**61),
    "a negative place": ("tensors.0.2.0.chunks.0.2", -8), "another chunk's place": ("tensors.0.2.0.chunks.0.2", 4096 + CHUNK),
    "a compressed chunk in format 1": ("tensors.0.2.0.stored", [64] * 8),
    "a framework that nobody has": ("tensors.0.3", "os.system"),
}, lie)  # fmt: skip

kinds("state", "refused", {
    "a tensor that is not there": ("state.x", {"$tensor": 2**40}), "nesting of 200": ("state.x", nested(200)),
    "a tag that nobody knows": ("state.x", {"$eval": "1+1"}), "a codec that nobody has": ("state.x", {"$object": {"codec": "os.system", "value": "id"}}),
    "a number of a million digits": ("state.x", {"$int": "0x" + "f" * 10**6 + "g"}),
    "a key that cannot be one": ("state.x", {"$dict": [[[1], 2]]}),
    "bytes that are no base64": ("state.x", {"$bytes": "!!"}),
    "a codec with a value that it cannot take": ("state.x", {"$object": {"codec": "range", "value": [0, "x", {}]}}),
    "an object array through a scalar": ("state.x", {"$object": {"codec": "numpy.scalar", "value": {"dtype": "|O8", "value": "AAAAAAAAAAA="}}}),
    "a backend's file that leads elsewhere": ("state", {"$backend": {"name": "npz", "path": "x", "files": {"x/../../y": {"$tensor": 0}}}}),
}, lie)  # fmt: skip

kinds("manifest", "refused", {
    "another checkpoint's id": ("id", ULID), "another experiment": ("experiment", "other"), "a path as experiment": ("experiment", "../../etc"),
    "another step": ("step", 3), "a negative step": ("step", -1), "a step of 2^64": ("step", 2**64),
    "a step that is a text": ("step", "2"), "a moment that is none": ("created_at", "yesterday, about noon, or so."),
    "metrics that are no numbers": ("metrics", {"loss": {"$eval": 1}}), "a pack outside of the store": ("packs.0.name", "../../../etc/passwd"),
    "an absolute pack": ("packs.0.name", "/etc/passwd"), "a pack with a NUL": ("packs.0.name", "digits/a\0b.safetensors"),
    "a pack of another size": ("packs.0.size", 10), "chunks of no bytes": ("chunk_bytes", 0),
    "a newer format": ("format", 3), "a format below all": ("format", -1),
}, lie)  # fmt: skip


@kind("manifest", "refused")
def that_is_not_sealed(ground: Ground) -> None:
    ground.store.put(ground.second.key, json.dumps(ground.document(ground.second.key)).encode())


@kind("manifest", "refused")
def cut_in_half(ground: Ground) -> None:
    data = ground.store.get(ground.second.key)
    ground.store.put(ground.second.key, data[: len(data) // 2])


@kind("manifest", "refused")
def of_the_other_checkpoint(ground: Ground) -> None:
    ground.store.put(ground.second.key, ground.store.get(ground.first.key))


@kind("manifest", "refused")
def that_is_no_object(ground: Ground) -> None:
    ground.store.put(ground.second.key, b'[1],"sha256":"' + b"A" * 43 + b'"}')


@kind("manifest", "right")
def with_unknown_members_nested_deeply(ground: Ground) -> None:
    ground.lie(ground.second.key, "future", nested(90))


@kind("manifest", "right")
def beside_names_that_are_no_keys(ground: Ground) -> None:
    for name in (
        "checkpoints/digits/x.json",
        f"checkpoints/digits/1-{ULID}.json",
        "checkpoints/stray",
        "packs/stray",
    ):
        ground.store.put(name, b"\0")


@kind("manifest", "right")
def copied_under_another_experiment(ground: Ground) -> None:
    name = ground.second.key.rpartition("/")[2]
    ground.store.put(f"checkpoints/other/{name}", ground.store.get(ground.second.key))


# -- archives: what is compressed ----------------------------------------------------------------------


def frame(planes: int, lengths: list[int], body: bytes) -> bytes:
    data = struct.pack("<B3x", planes) + b"".join(struct.pack("<I", length) for length in lengths) + body
    return struct.pack("<I", zlib.crc32(data)) + data


def zstd_claiming(size: int) -> bytes:
    """A frame of one empty block that says that it holds so many bytes."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


def expanded(ground: Ground, data: bytes) -> Callable[[], object]:
    stored = np.frombuffer(data.ljust(64, b"\0"), np.uint8)
    return lambda: expand(stored, np.empty(8192, np.uint8))


BOMB = zstd_claiming(1 << 60)
kinds("archive", "raises", {
    "a bomb that claims 2^60 bytes": frame(1, [len(BOMB)], BOMB),
    "less than it claims": frame(1, [len(zstd_claiming(8192))], zstd_claiming(8192)),
    "a checksum that does not fit": b"\0" * 8 + BOMB, "three planes": frame(3, [1, 1, 1], b"abc"),
    "planes behind the end": frame(1, [2**32 - 1], b""), "no zstd at all": frame(1, [9], b"not zstd!"),
    "a window of 2^40": frame(1, [15], b"\x28\xb5\x2f\xfd\x00\xf0\x01\x00\x00" + bytes(6)), "nothing": b"",
}, expanded)  # fmt: skip


# -- small documents beside the checkpoints ------------------------------------------------------------


def sidecar(ground: Ground, change: tuple[str, Any]) -> Callable[[], object]:
    protect_all(ground.repository, 10)
    data = ground.store.get(layout.parity_key(ground.pack))
    length = int.from_bytes(data[:8], "little")
    document = json.loads(data[8 : 8 + length])
    document.pop("sha256")
    put_at(document, *change)
    changed = seal(document)
    prefix = len(changed).to_bytes(8, "little")
    side = prefix + changed + data[8 + length : -(8 + length)] + changed + prefix
    ground.store.put(layout.parity_key(ground.pack), side)
    pack = ground.store.get(layout.pack_key(ground.pack))

    def read(data: bytes) -> Any:
        return lambda offset, length: np.frombuffer(data, np.uint8)[offset : offset + length]

    return lambda: rebuild(read(pack), read(side), read_parity(read(side), len(side), "p"), None)


kinds("parity", "raises", {
    "no data blocks": ("data_blocks", 0), "a million parity blocks": ("parity_blocks", 10**6),
    "blocks of 2^62 bytes": ("block_bytes", 2**62), "cells of no bytes": ("cell_bytes", 0),
    "digests that are too few": ("cells", "AAAA"), "a pack outside of the store": ("pack", "../../x"),
    "a pack of 2^62 bytes": ("size", 2**62),
}, sidecar)  # fmt: skip


@kind("parity", "right")
def a_length_of_all_bits(ground: Ground) -> None:
    ground.store.put(layout.parity_key(ground.pack), b"\xff" * 5000)


def forward(ground: Ground, rows: Any) -> None:
    name = ground.pack
    ground.store.delete(layout.pack_key(name))
    ground.seal(layout.forward_key(name), {"format": 1, "pack": name, "rows": rows(name)})


kinds("forward", "refused", {
    "in a circle": lambda name: [[4096, D, name, 4096]], "outside of the store": lambda name: [[4096, D, "../../x", 0]],
    "behind the end": lambda name: [[4096, D, name.replace("-0-0", "-0-1"), 2**62]], "no rows": lambda name: {},
}, forward)  # fmt: skip


@kind("forward", "right")
def of_another_pack_beside_one_that_stands(ground: Ground) -> None:
    ground.seal(layout.forward_key(ground.pack), {"format": 1, "pack": "x/y.safetensors", "rows": []})


def beside(ground: Ground, value: tuple[str, Any]) -> None:
    key, document = value
    name = ground.second.key.rpartition("/")[2]
    key = key.format(name=name, stem=name.removesuffix(".json"), ulid=ULID)
    if isinstance(document, bytes):
        ground.store.put(key, document)
    else:
        ground.seal(key, document)


LEASE = {"format": 1, "id": ULID, "purpose": "save", "holder": "x", "process": "x", "seconds": 60}
ROW = {
    "format": 1,
    "kind": "tags",
    "name": "x",
    "experiment": "digits",
    "checkpoint": ULID,
    "created_at": "2026-01-31T12:00:00.000000Z",
}
SIGNED = {"format": 1, "experiment": "digits", "checkpoint": ULID}
kinds("lease", "right", {
    "that is no document": ("leases/{ulid}.json", b"\0" * 100), "that lasts for ever": ("leases/{ulid}.json", LEASE | {"seconds": 2**62}),
    "of a process that is a path": ("leases/{ulid}.json", LEASE | {"process": "../../../../proc/1/stat"}),
    "that claims packs outside": ("leases/{ulid}.json", LEASE | {"packs": ["../../etc/passwd"]}),
    "with escapes in its holder": ("leases/{ulid}.json", LEASE | {"holder": "\x1b[2J\u202e", "lock": "maintenance\x1b]0;x\x07"}),
    "of a newer format": ("leases/{ulid}.json", LEASE | {"format": 99}), "of a megabyte": ("leases/{ulid}.json", LEASE | {"holder": "x" * 2**20}),
}, beside)  # fmt: skip
kinds("trash", "right", {
    "grace for 10^300 seconds": ("trash/digits/{stem}.grace.json", {"format": 1, "seconds": 1e300, "by": "x"}),
    "grace that is no document": ("trash/digits/{stem}.grace.json", b"{}"),
    "a manifest that is none": ("trash/digits/{name}", b"\xff" * 64), "a pack that nobody wrote": ("trash/packs/digits/x.safetensors", b""),
    "a note for the mirror that leads outside": ("trash/mirror/x/y.json", {"format": 1, "key": "../../x", "created_at": "x" * 27}),
}, beside)  # fmt: skip
kinds("mirror", "right", {
    "a scheme that nobody has": ("mirror.json", {"format": 1, "url": "gopher://x", "created_at": ROW["created_at"]}),
    "no address": ("mirror.json", {"format": 1, "url": "", "created_at": ROW["created_at"]}), "no document": ("mirror.json", b"x" * 70_000),
}, beside)  # fmt: skip
kinds("signature", "right", {
    "that is no document": ("signatures/digits/{name}", b"-----BEGIN SIGNATURE-----"),
    "that is none": ("signatures/digits/{name}", SIGNED | {"signatures": []}),
    "by a key that is too short": ("signatures/digits/{name}", SIGNED | {"signatures": [["AAAA", "A" * 86]]}),
    "of a checkpoint that is not there": ("signatures/digits/{name}", SIGNED | {"signatures": [["A" * 43, "A" * 86]]}),
    "thousands": ("signatures/digits/{name}", SIGNED | {"signatures": [["A" * 43, "A" * 86]] * 5000}),
    "under a name that is no key": ("signatures/x", b""),
}, beside)  # fmt: skip
kinds("reference", "right", {
    "a tag that is no document": ("refs/digits/tags/x.json", b"ref: refs/heads/main"), "a tag under another name": ("refs/digits/tags/y.json", ROW),
    "a tag of a checkpoint that is not there": ("refs/digits/tags/x.json", ROW), "a tag with a path": ("refs/digits/tags/x.json", ROW | {"name": "../x"}),
    "a pin of nothing": (f"refs/digits/pins/{ULID}.json", ROW | {"kind": "pins", "name": ULID}),
}, beside)  # fmt: skip
kinds("metrics", "right", {
    "a segment that is no document": ("metrics/digits/000001-{ulid}.json", b"loss,1,0.5\n"),
    "a segment of another experiment": ("metrics/digits/000001-{ulid}.json", {"format": 1, "experiment": "x", "attempt": {}, "rows": []}),
    "rows that are none": ("metrics/digits/000001-{ulid}.json", {"format": 1, "experiment": "digits", "attempt": {"number": 1, "id": ULID, "lineage": ULID}, "rows": [[1, 2]]}),
}, beside)  # fmt: skip


def store_document(ground: Ground, change: tuple[str, Any]) -> Callable[[], object]:
    ground.lie("store.json", *change)
    return lambda: Repository.open(ground.store)


kinds("store", "raises", {
    "an id that is none": ("store_id", "../x"), "chunks of 2^62 bytes": ("chunk_bytes", 2**62), "chunks of no bytes": ("chunk_bytes", 0),
    "a digest that nobody knows": ("digest", "md5"), "a newer format": ("format", 99),
}, store_document)  # fmt: skip


@kind("store", "raises")
def a_document_of_megabytes(ground: Ground) -> Callable[[], object]:
    ground.store.put("store.json", b" " * (2 << 20))
    return lambda: Repository.open(ground.store)
