"""Packs with compressed chunks: valid safetensors files that say what they hold, and prove themselves alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from ckpt_core.errors import CorruptionError
from ckpt_core.format.compression import compress
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.header import PAGE, PackHeader
from ckpt_core.format.pack import PackWriter, header_bound
from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes
from contract.pack_case import ULID, D, Sink, entry, forged, header_of, pieces_of, written

CHUNK = 8192
WEIGHTS = (
    np.random.default_rng(1).standard_normal(5200).astype(np.float32)
)  # three chunks, the last one short
NOISE = np.random.default_rng(2).integers(0, 256, CHUNK, np.uint8)


def pack_of(**arrays: np.ndarray[Any, Any]) -> tuple[bytes, PackHeader]:
    pieces = [piece for name, array in arrays.items() for piece in pieces_of(name, array, CHUNK)]
    sink = Sink()
    specs = sorted({(p.path, p.spec) for p in pieces})
    writer = PackWriter(
        sink, checkpoint=ULID, chunk_bytes=CHUNK, bound=header_bound(specs, CHUNK, compressed=True)
    )
    for piece in pieces:
        smaller = compress(piece.data, dtypes.alignment(piece.spec.dtype)) if piece.data.size else None
        writer.append(piece, digest_of(piece.data), smaller)
    writer.finish()
    return bytes(sink.data), header_of(bytes(sink.data))


def contents(data: bytes, header: PackHeader) -> dict[str, bytes]:
    """What every tensor has of its bytes in a pack, each chunk checked."""
    found: dict[str, bytes] = {}
    array = np.frombuffer(data, np.uint8)
    for chunk in header.chunks:
        part = chunk.content(array[chunk.offset : chunk.offset + chunk.length], "sha256")
        assert chunk.begin == len(found.setdefault(chunk.path, b""))
        found[chunk.path] += part.tobytes()
    return found


def test_a_pack_gives_back_what_went_in_and_says_which_chunks_are_compressed() -> None:
    arrays = {
        "w": WEIGHTS,
        "noise": NOISE,
        "half": WEIGHTS.astype(np.float16),
        "short": np.arange(9),
        "none": np.zeros(0),
    }
    data, header = pack_of(**arrays)
    assert contents(data, header) == {name: array.tobytes() for name, array in arrays.items() if array.size}
    assert [(c.path, c.expanded) for c in header.chunks] == [
        ("w", 8192), ("w", 8192), ("w", 4416), ("noise", None), ("half", 8192), ("half", None), ("short", None),
    ]  # fmt: skip
    assert all((c.expanded or c.length) >= c.length for c in header.chunks)
    assert header.chunks[5].length == 2208, "too short to be compressed"


def test_plain_safetensors_opens_it_and_gives_what_is_not_compressed() -> None:
    data, _ = pack_of(w=WEIGHTS, f64=np.arange(3.0), noise=NOISE)
    found = {key: (facts["dtype"], facts["shape"], bytes(facts["data"])) for key, facts in deserialize(data)}
    assert set(found) == {"w[0:20800].zstd", "f64", "noise"}
    assert found["w[0:20800].zstd"][0] == "U8"
    assert found["f64"] == ("F64", [3], np.arange(3.0).tobytes())
    assert found["noise"] == ("U8", [CHUNK], NOISE.tobytes())


def test_what_follows_a_compressed_chunk_is_as_well_aligned_as_ever() -> None:
    data, header = pack_of(
        w=WEIGHTS, f64=np.arange(3.0), more=WEIGHTS[::-1].copy(), f32=np.ones(7, np.float32)
    )
    assert header.header_size % PAGE == 0
    assert [c.offset % 64 for c in header.chunks if c.path in ("f64", "more")] == [0, 24, 24, 24]
    assert {"f64", "f32"} < {key for key, _ in deserialize(data)}


def test_only_a_pack_that_needs_it_is_of_format_2() -> None:
    for arrays, version in (({"w": WEIGHTS}, "2"), ({"noise": NOISE}, "1"), ({"short": np.arange(9)}, "1")):
        data, header = pack_of(**arrays)
        metadata = json.loads(data[8 : header.header_size])["__metadata__"]
        assert metadata["ckpt.format"] == version
        assert list(metadata)[:5] == [
            "ckpt.sha256",
            "ckpt.format",
            "ckpt.checkpoint",
            "ckpt.digest",
            "ckpt.chunk_bytes",
        ]
    assert (
        pack_of(noise=NOISE)[0]
        == written(
            pieces_of("noise", NOISE, CHUNK),
            CHUNK,
            bound=header_bound([("noise", TensorSpec("U8", (CHUNK,)))], CHUNK),
        )[0]
    )


def test_chunks_of_both_kinds_in_one_tensor_are_entries_of_their_own() -> None:
    mixed = np.concatenate([NOISE, np.zeros(CHUNK, np.uint8), np.ones(CHUNK, np.uint8), NOISE])
    data, header = pack_of(m=mixed)
    assert [key for key, _ in sorted(deserialize(data))] == [
        "m[0:8192]", "m[24576:32768]", "m[8192:24576].zstd",
    ]  # fmt: skip
    assert contents(data, header) == {"m": mixed.tobytes()}


plain_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
paths = st.sampled_from(['"' * 300, "\\" * 50, "\x01" * 100, "é" * 100, "", "w"]) | plain_text
kinds = st.lists(st.sampled_from("zsn"), min_size=1, max_size=5)  # a chunk of zeros, a short one, noise


@given(
    st.lists(st.tuples(paths, kinds), min_size=1, max_size=6, unique_by=lambda s: s[0]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_the_bound_holds_whichever_chunks_are_compressed(rows: list[Any], random: Any) -> None:
    made = {"z": bytes(CHUNK), "s": bytes(range(100)), "n": NOISE.tobytes()}
    pieces = []
    for path, row in rows:
        array = np.frombuffer(b"".join(made[kind] for kind in row), np.uint8)
        pieces += pieces_of(path, array, CHUNK)
    random.shuffle(pieces)
    bound = header_bound(sorted({(p.path, p.spec) for p in pieces}), CHUNK, compressed=True)
    sink = Sink()
    writer = PackWriter(sink, checkpoint=ULID, chunk_bytes=CHUNK, bound=bound)
    for piece in pieces:
        writer.append(piece, digest_of(piece.data), compress(piece.data, 1))
    assert writer.finish().header_size <= bound
    header = header_of(bytes(sink.data))
    assert sorted((c.path, c.begin) for c in header.chunks) == sorted((p.path, p.begin) for p in pieces)


# -- headers that lie ---------------------------------------------------------------------------------


def lying(tensors: Any, *, length: int = 128, digests: str = D, **metadata: Any) -> bytes:
    text = json.dumps({"a": tensors})
    facts = {"format": "2", "chunk_bytes": "4096", "tensors": text, **metadata}
    return forged({"a": entry(0, length)}, length, digests=digests, **facts)


def test_a_forged_header_that_tells_the_truth_is_read() -> None:
    header = header_of(lying(["t", "F32", [2000], 4096, 8000, [128]]))
    (chunk,) = header.chunks
    assert (chunk.path, chunk.begin, chunk.length, chunk.expanded) == ("t", 4096, 128, 3904)
    header = header_of(lying(["t", "F32", [2000], 0, 8000, [100, 28]], digests=f"{D} {D}"))
    assert [(c.begin, c.offset - header.header_size, c.length, c.expanded) for c in header.chunks] == [
        (0, 0, 100, 4096), (4096, 100, 28, 3904),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        lying(["t", "F32", [2000], 0, 8000, [128]]), lying(["t", "F32", [2000], 0, 4096, [127]]),
        lying(["t", "F32", [2000], 0, 4096, [129]]), lying(["t", "F32", [2000], 0, 0, [128]]),
        lying(["t", "F32", [2000], 4096, 96, [128]]), lying(["t", "F32", [2000], 7, 96, [128]]),
        lying(["t", "F32", [2000], 0, 8000, [128, 0]], digests=f"{D} {D}"), lying(["t", "F32", [2000], 0, 4096, [128]], digests=f"{D} {D}"),
        lying(["t", "F32", [2000], 0, 4096, [-128]]), lying(["t", "F32", [2000], 0, 4096, ["128"]]),
        lying(["t", "F32", [2000], 0, 4096, [128]], format="1"),
        lying(["t", "U8", [1 << 40], 0, 1 << 40, [128]], chunk_bytes=str(1 << 40)),
        lying(["t", "U8", [1 << 30], 0, 1 << 30, [128]], chunk_bytes=str(1 << 30)),
        lying(["t", "U8", [1 << 62], 0, 1 << 62, [128]], chunk_bytes=str(1 << 62)),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError) as caught:
        header_of(data)
    assert caught.value.kind == "header"


def test_every_flipped_bit_of_compressed_data_is_found() -> None:
    data, header = pack_of(w=WEIGHTS[:1100])
    (chunk,) = header.chunks
    assert chunk.expanded == 4400
    for at in range(chunk.offset, chunk.offset + chunk.length):
        hurt = bytearray(data[chunk.offset : chunk.offset + chunk.length])
        hurt[at - chunk.offset] ^= 1 << at % 8
        with pytest.raises(CorruptionError):
            chunk.content(np.frombuffer(hurt, np.uint8), "sha256")
