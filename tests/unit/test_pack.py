"""Packs: plain safetensors readers open them, and each proves itself."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open

from ckpt_core.errors import StateError
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.header import PAGE
from ckpt_core.format.pack import PackWriter, header_bound
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes
from contract.pack_case import CHUNK, ULID, Sink, header_of, pieces_of, written


def plain(data: bytes, tmp_path: Any) -> dict[str, np.ndarray]:
    (tmp_path / "p.safetensors").write_bytes(data)
    with safe_open(tmp_path / "p.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


ARRAYS = {
    "f64": np.arange(20.0), "c64": (np.arange(3) + 1j).astype(np.complex64), "f32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "i64": np.arange(5), "f16": np.arange(3, dtype=np.float16), "u8": np.arange(7, dtype=np.uint8), "bool": np.array([True, False]),
    "bf16": np.arange(3).astype(ml_dtypes.bfloat16), "f8": np.arange(3).astype(ml_dtypes.float8_e5m2), "0-d": np.array(5, np.int32),
    "empty": np.zeros((0, 3), np.float32),
}  # fmt: skip
NAMES = [
    "a/b",
    "with space",
    "ä名",
    "",
    "__metadata",
    "~",
    "$",
    "x[0:4]",
    "..",
    "../../etc/x",
    "\x1b[31m",
    '"\\',
    "\0",
    "a\nb",
]


@pytest.mark.parametrize("name", ARRAYS)
def test_plain_safetensors_gives_a_whole_tensor(name: str, tmp_path: Any) -> None:
    data, _, _ = written(pieces_of(name, ARRAYS[name]))
    ((key, facts),) = deserialize(data)
    assert (key, facts["shape"], bytes(facts["data"])) == (
        name,
        list(ARRAYS[name].shape),
        ARRAYS[name].tobytes(),
    )
    if name == "f8":
        return  # safetensors knows it, but not how to say it to numpy
    found = plain(data, tmp_path)
    assert list(found) == [name]
    assert found[name].dtype == ARRAYS[name].dtype
    assert found[name].shape == ARRAYS[name].shape
    assert found[name].tobytes() == ARRAYS[name].tobytes()


def test_plain_safetensors_gives_tensors_of_any_name(tmp_path: Any) -> None:
    data, _, _ = written([p for n, name in enumerate(NAMES) for p in pieces_of(name, np.array([n, n]))])
    found = plain(data, tmp_path)
    assert {name: int(array[0]) for name, array in found.items()} == {name: n for n, name in enumerate(NAMES)}


@pytest.mark.parametrize("array", [np.arange(3).astype(np.complex128), np.array(["ab", "c"]), np.array(["2026-01-01"], "<M8[D]"),
                                   np.arange(3, dtype=">i4"), np.arange(3).astype(ml_dtypes.int4)], ids=lambda a: str(a.dtype))  # fmt: skip
def test_what_safetensors_lacks_is_there_as_bytes(array: np.ndarray, tmp_path: Any) -> None:
    data, _, _ = written(pieces_of("x", array))
    assert plain(data, tmp_path)["x"].tobytes() == array.tobytes()
    chunk = header_of(data).chunks[0]
    assert chunk.spec == TensorSpec(dtypes.name_of_numpy(array.dtype) or "", array.shape)


def test_data_begins_on_a_page_and_each_tensor_where_its_values_may_stand() -> None:
    order = ["f64", "c64", "i64", "f32", "0-d", "f16", "bf16", "u8", "f8", "bool"]
    data, facts, _ = written([p for name in order for p in pieces_of(name, ARRAYS[name])])
    header = json.loads(data[8 : facts.header_size])
    assert facts.header_size % PAGE == 0
    del header["__metadata__"]
    for entry in header.values():
        assert entry["data_offsets"][0] % dtypes.alignment(entry["dtype"]) == 0


def test_a_tensor_that_would_not_be_aligned_is_stored_as_bytes(tmp_path: Any) -> None:
    data, _, _ = written(
        [
            *pieces_of("u8", ARRAYS["u8"]),
            *pieces_of("f32", ARRAYS["f32"]),
            *pieces_of("empty", ARRAYS["empty"]),
        ]
    )
    found = plain(data, tmp_path)
    assert set(found) == {"u8", "f32[0:48]", "empty"}
    assert found["f32[0:48]"].tobytes() == ARRAYS["f32"].tobytes()
    assert {chunk.path for chunk in header_of(data).chunks} == {"u8", "f32"}


def test_a_part_of_a_tensor_is_named_by_its_bytes(tmp_path: Any) -> None:
    array = np.arange(64.0)  # eight chunks
    pieces = pieces_of("w", array)
    data, _, starts = written([pieces[0], pieces[2], pieces[3], pieces[7]])
    found = plain(data, tmp_path)
    assert {key: part.size for key, part in found.items()} == {
        "w[0:64]": 64,
        "w[128:256]": 128,
        "w[448:512]": 64,
    }
    assert found["w[128:256]"].tobytes() == array[16:32].tobytes()
    header = header_of(data)
    assert [(c.path, c.begin, c.length) for c in header.chunks] == [
        ("w", 0, 64),
        ("w", 128, 64),
        ("w", 192, 64),
        ("w", 448, 64),
    ]
    assert [c.offset for c in header.chunks] == [header.header_size + start for start in starts]
    assert all(c.spec == TensorSpec("F64", (64,)) for c in header.chunks)


def test_a_name_that_is_taken_gets_a_number(tmp_path: Any) -> None:
    pieces = pieces_of("w", np.arange(64.0))
    data, _, _ = written([*pieces_of("w[0:64]", np.arange(3)), *pieces_of("w[0:64]#2", np.arange(4)), pieces[0],
                          *pieces_of("__metadata__", np.arange(5))])  # fmt: skip
    found = plain(data, tmp_path)
    assert set(found) == {"w[0:64]", "w[0:64]#2", "w[0:64]#3", "__metadata__[0:40]"}
    assert [c.path for c in header_of(data).chunks] == ["w[0:64]", "w[0:64]#2", "w", "__metadata__"]


def test_the_header_names_every_chunk_with_its_digest() -> None:
    pieces = [p for name, array in ARRAYS.items() for p in pieces_of(name, array)]
    data, facts, starts = written(pieces)
    header = header_of(data)
    assert header.checkpoint == ULID
    assert (header.header_size, header.data_bytes) == (facts.header_size, facts.size - facts.header_size)
    assert (
        header.digest
        == facts.header_digest
        == digest_text(hashlib.sha256(data[: facts.header_size]).digest())
    )
    assert len(data) == facts.size
    kept = [(piece, start) for piece, start in zip(pieces, starts, strict=True) if piece.data.size]
    assert len(header.chunks) == len(kept)
    for chunk, (piece, start) in zip(header.chunks, kept, strict=True):
        assert (chunk.path, chunk.spec, chunk.begin) == (piece.path, piece.spec, piece.begin)
        assert chunk.offset == facts.header_size + start
        assert data[chunk.offset : chunk.offset + chunk.length] == piece.data.tobytes()
        assert chunk.digest == digest_of(piece.data)


def test_a_small_pack_has_a_small_header_and_a_large_one_keeps_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [p for n in range(200) for p in pieces_of(f"layer.{n}", np.arange(20.0))]
    small, facts, _ = written(pieces, bound=1 << 20)
    assert facts.header_size < 1 << 16
    monkeypatch.setattr("ckpt_core.format.pack._HOLD", 1000)
    large, facts, _ = written(pieces, bound=1 << 20)
    assert facts.header_size == 1 << 20
    assert [c.digest for c in header_of(small).chunks] == [c.digest for c in header_of(large).chunks]


def test_a_header_that_does_not_fit_is_refused() -> None:
    sink = Sink()
    writer = PackWriter(sink, checkpoint=ULID, chunk_bytes=CHUNK, bound=PAGE)
    writer._held = None
    writer._sink, writer._flushed = sink, PAGE
    for n in range(200):
        for piece in pieces_of(f"layer.{n}", np.arange(2.0)):
            writer.append(piece, digest_of(piece.data))
    with pytest.raises(StateError, match="stack small ones"):
        writer.finish()


plain_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
paths = st.sampled_from(['"' * 300, "\\" * 50, "\x01" * 100, "é" * 100, "", "w"]) | plain_text
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
specs = st.tuples(paths, shapes, st.sampled_from(["F32", "F64", "U8", "C128", "<M8[25s]", "|S7"]))


@given(
    st.lists(specs, min_size=1, max_size=8, unique_by=lambda s: s[0]),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_the_bound_holds_for_any_chunks_in_any_order(rows: list[Any], random: Any, shuffle: bool) -> None:
    chosen = []
    for path, shape, dtype in rows:
        chosen += pieces_of(path, np.zeros(shape, dtypes.numpy_dtype(dtype)), 8)
    if shuffle:
        random.shuffle(chosen)
        chosen = chosen[: len(chosen) // 2 + 1]
    if not any(piece.data.size for piece in chosen):
        return
    sink = Sink()
    bound = header_bound(sorted({(p.path, p.spec) for p in chosen}), 8)
    writer = PackWriter(sink, checkpoint=ULID, chunk_bytes=8, bound=bound)
    writer._release(bound)
    for piece in chosen:
        writer.append(piece, digest_of(piece.data))
    writer.finish()  # raises where the bound is wrong
    header = header_of(bytes(sink.data))
    assert header.header_size == bound
    assert [(c.path, c.begin, c.spec) for c in header.chunks] == [
        (p.path, p.begin, p.spec) for p in chosen if p.data.size
    ]


def test_the_bound_holds_for_chunks_that_are_each_an_entry_of_its_own() -> None:
    pieces = pieces_of('"' * 300, np.zeros(40 * 8), 64)[::-1]
    sink = Sink()
    bound = header_bound([(pieces[0].path, pieces[0].spec)], 64)
    writer = PackWriter(sink, checkpoint=ULID, chunk_bytes=64, bound=bound)
    writer._release(bound)
    for piece in pieces:
        writer.append(piece, digest_of(piece.data))
    writer.finish()
    assert len(header_of(bytes(sink.data)).chunks) == 40
