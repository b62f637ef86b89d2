"""Writes the frozen store of format 2 anew, for people: `python tests/compat/write_compressed_store.py FOLDER`.

What lies in `format-2/` was written by this script when the format was made, and is never written again:
later versions, and later versions of zstandard, must read those very bytes.
"""

from __future__ import annotations

import datetime as dt
import pathlib
import sys
from typing import Any

import ml_dtypes
import numpy as np

from ckpt_core import clock
from ckpt_core.format.documents import StoreDocument
from ckpt_core.format.header import read_header
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.rewriting import rewrite
from ckpt_core.model import Attempt, Snapshot, StagedTensor
from ckpt_core.repository import Committed, Draft, Repository, layout
from ckpt_core.stores import LocalStore
from ckpt_core.tree import dtypes, flatten, registry

CHUNK = 4096
EXPERIMENT = "digits 8x8"
ATTEMPT = Attempt(1, "01J00000000000000000000001", "01J00000000000000000000001")
MOMENT = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)


def mixed(count: int) -> np.ndarray:
    """Whole numbers in no order, the same ones on every machine."""
    return (np.arange(count, dtype=np.int64) * 40503 + 7919) % 65521


def weights(count: int = 2500) -> np.ndarray:
    """Fractions around 0, as exact as they are on every machine."""
    return (mixed(count) - 32760) / 2.0**20


def noise(count: int) -> np.ndarray:
    """Bytes that zstd makes nothing of."""
    value, found = 1, np.empty(count, np.uint8)
    for place in range(count):
        value = (value * 6364136223846793005 + 1442695040888963407) % 2**64
        found[place] = value >> 56
    return found


def plain_state() -> dict[str, Any]:
    """What the first checkpoint holds, nothing of it compressed."""
    return {"shared": weights(3000).astype(np.float32), "first": noise(CHUNK + 100)}


def compressed_state() -> dict[str, Any]:
    """Values of every size, chunks of both kinds in one tensor, and what the first has uncompressed."""
    types = ["<f4", "<f8", "<f2", ">f4", "<c8", "<c16", "bfloat16"]
    found: dict[str, Any] = {t: weights().astype(getattr(ml_dtypes, t, t)) for t in types}
    found |= {t: mixed(5000).astype(t) for t in ("<i8", "<u2", "|b1", "<M8[s]")}
    found["float8_e4m3fn"] = (weights(5000) * 2**10).astype(ml_dtypes.float8_e4m3fn)
    return found | {
        "shared": plain_state()["shared"],
        "both": np.concatenate([noise(CHUNK), np.zeros(CHUNK, np.uint8), noise(CHUNK), np.full(CHUNK, 7, np.uint8)]),
        "text": b'{"loss": 0.25, "step": 17}\n' * 400,
        "short": np.zeros(100), "empty": np.zeros((0, 2)), "step": 200,
    }  # fmt: skip


def changed_state() -> dict[str, Any]:
    """The second with one chunk changed, saved without compression: it names chunks of both kinds."""
    state = compressed_state()
    state["<f4"][1500] = 1
    return state


def snapshot_of(state: Any) -> Snapshot:
    flat, staged = flatten(state, registry), []
    for leaf in flat.leaves:
        data = np.empty(dtypes.nbytes(leaf.spec), np.uint8)
        if data.size:
            leaf.codec.copy_into(leaf.value, data)
        staged.append(StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data))
    return Snapshot(flat.tree, tuple(staged))


def write(root: pathlib.Path) -> None:
    """Three checkpoints, each built on the one before, and a compressed pack that was rewritten."""
    store = LocalStore(root)
    document = StoreDocument(
        store_id="01J00000000000000000000000", chunk_bytes=CHUNK, created_at=clock.to_text(MOMENT)
    )
    store.put_new("store.json", seal(document))
    repository = Repository.open(store)

    def save(state: Any, step: int, base: Committed | None, compression: str | None = None) -> Committed:
        draft = Draft(EXPERIMENT, step, ATTEMPT, {}, {"host": "example"}, base.manifest.id if base else None)
        known = base.manifest if base else None
        return repository.commit(snapshot_of(state), draft, base=known, compression=compression)

    first = save(plain_state(), 100, None)
    second = save(compressed_state(), 200, first, "zstd")
    save(changed_state(), 300, second)
    moved = save({"moved": weights(4000).astype(np.float32)}, 400, None, "zstd")
    name = moved.packs[0][0]
    with store.open(layout.pack_key(name)) as reader:
        offsets = [chunk.offset for chunk in read_header(reader.read, reader.size, name).chunks]
    rewrite(repository, name, offsets, ())
    store.delete(layout.pack_key(name))


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
