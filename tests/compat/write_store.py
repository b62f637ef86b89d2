"""Writes the frozen store of format 1 anew, for people: `python tests/compat/write_store.py FOLDER`.

What lies in `format-1/` was written by this script when the format was made, and is never written again:
later versions must read those very bytes. A later format gets a folder and a script of its own.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import math
import pathlib
import struct
import sys
import uuid
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ckpt_core import clock
from ckpt_core.format.documents import Forward, ForwardRow, StoreDocument
from ckpt_core.format.header import read_header
from ckpt_core.format.pack import PackWriter, Piece, header_bound
from ckpt_core.format.sealed import seal
from ckpt_core.model import Attempt, MetricPoint, Snapshot, StagedTensor, TensorSpec
from ckpt_core.repository import Committed, Draft, MetricSegments, References, Repository, layout
from ckpt_core.stores import LocalStore
from ckpt_core.tree import dtypes, flatten, registry

CHUNK = 4096
FIRST = Attempt(1, "01J00000000000000000000001", "01J00000000000000000000001")
SECOND = Attempt(2, "01J00000000000000000000002", FIRST.lineage, "01J00000000000000000000003", 100)
REWRITTEN = "01J00000000000000000000009"
MOMENT = dt.datetime(2026, 1, 31, 12, 0, tzinfo=dt.UTC)
NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]


class Point(NamedTuple):
    x: Any
    y: Any


def weights() -> np.ndarray:
    """1,500 values in three chunks."""
    return np.arange(1500, dtype=np.float64) / 7


def plain_state() -> dict[str, Any]:
    """What training states are made of, and every plain value that a tree may hold."""
    tied = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "model": {"layer.0/weight": weights(), "tied": tied, "head": tied, "empty": np.zeros((0, 3), np.float32)},
        "plain": {
            "none": None, "true": True, "int": -5, "large": 2**63 - 1, "larger": 2**100, "negative": -(2**70),
            "float": 0.1, "minus zero": -0.0, "inf": math.inf, "nan": NAN, "tiny": 5e-324, "text": "ä 名 \u2028 \"",
            "complex": complex(1.5, -math.inf), "bytes": b"\x00\xff", "no bytes": b"", "long bytes": bytes(range(256)) * 5,
            "array of bytes": bytearray(b"abc"),
        },
        "containers": [1, (2, (3, [])), {}, {2: "int", None: "none", True: "bool", 0.5: "float"}, {"$tensor": "not one"},
                       Point(np.arange(2), None), ()],
        "": {"": 1, "a/b": 2, "~": 3, "__metadata__": np.arange(3)},
    }  # fmt: skip


def dtype_state() -> dict[str, np.ndarray]:
    """An array of every element type that numpy or ml_dtypes can make, and of odd shapes and orders."""
    plain = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16", ">f4", ">i8",
             "<M8[ns]", "<m8[s]", "<U3", "S5"]  # fmt: skip
    special = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
               "float8_e3m4", "float4_e2m1fn", "int4", "uint4"]  # fmt: skip
    values = np.array([0, 1, 2, 3, 1, 0]).reshape(2, 3)
    found = {text: values.astype(text) for text in plain}
    found |= {text: values.astype(np.float32).astype(getattr(ml_dtypes, text)) for text in special}
    return found | {
        "0-d": np.array(7.5), "Fortran": np.asfortranarray(values), "backwards": values[::-1, ::-1],
        "no axis but one": np.arange(3).reshape(1, 3, 1), "nothing": np.zeros((2, 0, 3), np.int8),
    }  # fmt: skip


def object_state() -> dict[str, Any]:
    """An object of every codec that comes with the engine."""
    generators = {
        name: np.random.Generator(getattr(np.random, name)(7))
        for name in ("PCG64", "PCG64DXSM", "Philox", "SFC64")
    }
    generators["PCG64"].random(3)
    generators["PCG64"].spawn(1)
    return {
        **generators,
        "set": {1, "a", None}, "frozenset": frozenset({1, 2}), "range": range(1, 9, 3), "slice": slice(None, 5, 2),
        "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), "date": dt.date(2026, 1, 2), "time": dt.time(3, 4),
        "timedelta": dt.timedelta(-1, 2, 3), "uuid": uuid.UUID(int=5), "decimal": decimal.Decimal("1.10"),
        "fraction": fractions.Fraction(-1, 3), "purepath": pathlib.PurePosixPath("a/b"), "path": pathlib.Path("/a"),
        "deque": collections.deque([1, 2], maxlen=4), "float32": np.float32(0.1), "bfloat16": ml_dtypes.bfloat16(1.5),
        "day": np.datetime64("2026-01-02", "D"), "words": np.str_("ä"), "empty": np.bytes_(b""),
    }  # fmt: skip


def changed_state() -> dict[str, Any]:
    """The first state with one chunk changed: it needs the packs of both."""
    state = plain_state()
    state["model"]["layer.0/weight"][700] = -1
    return state


def torch_snapshot() -> Snapshot:
    """Tensors of PyTorch as its codec gives them, written without it: one of each type that numpy lacks."""
    shapes = {"weight": ("F32", (2, 3)), "half": ("BF16", (4,)), "f4": ("F4", (2, 4)), "f8": ("F8_E8M0", (2, 2)),
              "c32": ("C32", (2,)), "c128": ("C128", (1,)), "0-d": ("I64", ())}  # fmt: skip
    staged = []
    for name, (dtype, shape) in shapes.items():
        spec = TensorSpec(dtype, shape)
        staged.append(
            StagedTensor(name, "torch", spec, np.arange(1, dtypes.nbytes(spec) + 1, dtype=np.uint8))
        )
    tree: dict[str, Any] = {name: {"$tensor": n} for n, name in enumerate(shapes)}
    tree["device"] = {"$object": {"codec": "torch.device", "value": "cpu"}}
    tree["dtype"] = {"$object": {"codec": "torch.dtype", "value": "bfloat16"}}
    return Snapshot(tree, tuple(staged))


def snapshot_of(state: Any) -> Snapshot:
    flat, staged = flatten(state, registry), []
    for leaf in flat.leaves:
        data = np.empty(dtypes.nbytes(leaf.spec), np.uint8)
        if data.size:
            leaf.codec.copy_into(leaf.value, data)
        staged.append(StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data))
    return Snapshot(flat.tree, tuple(staged))


def rewrite(store: LocalStore, name: str) -> None:
    """What prune does to a pack: the chunks to a new one, a forwarding file, and the old one goes."""
    with store.open(layout.pack_key(name)) as reader:
        header = read_header(reader.read, reader.size, name)
        target = layout.pack_name("digits 8x8", REWRITTEN, 0, 0)
        with store.create(layout.pack_key(target)) as sink:
            bound = header_bound([(c.path, c.spec) for c in header.chunks], CHUNK)
            pack = PackWriter(lambda: sink, checkpoint=header.checkpoint, chunk_bytes=CHUNK, bound=bound)
            starts = [
                pack.append(Piece(c.path, c.spec, c.begin, reader.read(c.offset, c.length)), c.digest)
                for c in header.chunks
            ]
            written = pack.finish()
            sink.commit()
    rows = zip(header.chunks, starts, strict=True)
    moved = tuple(ForwardRow(c.offset, c.digest, target, written.header_size + start) for c, start in rows)
    store.put(layout.forward_key(name), seal(Forward(pack=name, rows=moved)))
    store.delete(layout.pack_key(name))


def write(root: pathlib.Path) -> None:
    """Every kind of object that a store of format 1 has."""
    store = LocalStore(root)
    document = StoreDocument(
        store_id="01J00000000000000000000000", chunk_bytes=CHUNK, created_at=clock.to_text(MOMENT)
    )
    store.put_new("store.json", seal(document))
    repository, references, segments = Repository.open(store), References(store), MetricSegments(store)

    def save(state: Any, step: int, attempt: Attempt, base: Committed | None, **metrics: float) -> Committed:
        parent = base.manifest.id if base else None
        draft = Draft("digits 8x8", step, attempt, metrics, {"host": "example"}, parent)
        snapshot = state if isinstance(state, Snapshot) else snapshot_of(state)
        return repository.commit(snapshot, draft, base=base.manifest if base else None)

    first = save(plain_state(), 100, FIRST, None, loss=0.5)
    second = save(changed_state(), 200, SECOND, first, loss=math.nan, accuracy=math.inf)
    types = save(dtype_state(), 300, SECOND, None)
    save(object_state(), 400, SECOND, None)
    save(torch_snapshot(), 450, SECOND, None)
    forgotten = save({"gone": np.arange(3)}, 500, SECOND, None)
    repository.forget(forgotten.key)
    rewrite(store, types.packs[0][0])
    references.set_tag("digits 8x8", "ä", second.manifest.id)
    references.pin("digits 8x8", first.manifest.id)
    points = [MetricPoint("loss", 1, 0.5, MOMENT, 1), MetricPoint("loss", 2, math.nan, MOMENT, 1)]
    segments.append("digits 8x8", FIRST, points)
    segments.append("digits 8x8", SECOND, [MetricPoint("accuracy", 200, -math.inf, MOMENT, 2)])


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
