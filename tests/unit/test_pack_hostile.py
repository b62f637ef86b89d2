"""A pack that is damaged or lies: found by its header, or by a digest, before anything false is believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.header import PAGE, read_header
from contract.pack_case import D, entry, forged, header_of, pieces_of, written


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data, facts, _ = written(
        [
            p
            for name, array in (("f64", np.arange(20.0)), ("u8", np.arange(7, dtype=np.uint8)))
            for p in pieces_of(name, array)
        ]
    )
    end = len(data[: facts.header_size].rstrip()) + 8
    for at in [*range(end), *range(end, facts.header_size, 97), facts.header_size - 1]:
        for bit in range(8) if at < 200 else (at % 8,):
            hurt = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            with pytest.raises(CorruptionError, match=r"e/p\.safetensors is damaged") as caught:
                header_of(hurt)
            assert caught.value.kind == "header"


def test_every_flipped_bit_of_the_data_contradicts_a_digest() -> None:
    data, facts, _ = written(pieces_of("w", np.arange(40.0)))
    header = header_of(data)
    for at in range(facts.header_size, len(data)):
        hurt = np.frombuffer(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], np.uint8)
        wrong = [c for c in header.chunks if digest_of(hurt[c.offset : c.offset + c.length]) != c.digest]
        assert len(wrong) == 1


def test_a_pack_of_another_length_is_found() -> None:
    data, facts, _ = written(pieces_of("w", np.arange(40.0)))
    for hurt in (
        b"",
        data[:8],
        data[:100],
        data[: facts.header_size - 1],
        data[: facts.header_size],
        data[:-1],
        data + b"\0",
        bytes(5000),
    ):
        with pytest.raises(CorruptionError):
            header_of(hurt)


def test_a_forged_header_that_tells_the_truth_is_read() -> None:
    header = header_of(
        forged({"a": entry(0, 70), "b": entry(70, 70), "c": entry(70, 80)}, 80, digests=f"{D} {D} {D}")
    )
    assert [(c.path, c.begin, c.length) for c in header.chunks] == [("a", 0, 64), ("a", 64, 6), ("c", 0, 10)]


@pytest.mark.parametrize(
    ("entries", "size", "metadata"),
    [
        ({"a": entry(0, 10)}, 11, {"digests": D}), ({"a": entry(0, 10)}, 9, {"digests": D}), ({"a": entry(0, 10)}, 10, {}),
        ({"a": entry(0, 10)}, 10, {"digests": f"{D} {D}"}), ({"a": entry(0, 10), "b": entry(5, 15)}, 15, {"digests": f"{D} {D}"}),
        ({"a": entry(0, 10), "b": entry(11, 15)}, 15, {"digests": f"{D} {D}"}), ({"a": entry(5, 10)}, 10, {"digests": D}),
        ({"a": entry(10, 0, shape=[0])}, 0, {}), ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-5, 5]}}, 5, {"digests": D}),
        ({"a": entry(0, 10), "b": entry(0, 10)}, 10, {"digests": f"{D} {D}"}),
        ('"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"a":{"dtype":"U8","shape":[5],"data_offsets":[5,10]}', 10,
         {"digests": f"{D} {D}"}),
        ({"a": entry(0, 10), "b": entry(10, 5, shape=[5])}, 5, {"digests": D}), ({"a": entry(0, 1 << 60)}, 10, {"digests": D}), ({"a": entry(0, 1 << 60)}, 10, {"digests": D, "chunk_bytes": "1"}),
        ({"a": entry(0, 1 << 63)}, 10, {"digests": D}), ({"a": entry(0, 10)}, 10, {"digests": D, "chunk_bytes": "0"}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "chunk_bytes": "-64"}), ({"a": entry(0, 10)}, 10, {"digests": D, "chunk_bytes": "x"}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "chunk_bytes": "9" * 5000}), ({"a": entry(0, 10)}, 10, {"digests": D, "format": "x"}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "format": None}), ({"a": entry(0, 10)}, 10, {"digests": D, "checkpoint": None}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": "not json"}), ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": "[]"}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": '{"a":["a","U8",[10],7]}'}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": '{"a":["a","U8",[-10],0]}'}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": '{"a":["a","U8",[10],-64]}'}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "tensors": "[" * 5000}), ({"a": []}, 0, {}), ({"a": {"dtype": "U8"}}, 0, {}),
        ({"a": entry(0, 10, shape=[-1])}, 10, {"digests": D}), ('"a":' + "[" * 3000, 0, {}), ('"a":1e999', 0, {}),
        ({"a": entry(0, 10)}, 10, {"digests": D, "digest": None}),
    ],
    ids=range(34),
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(
    entries: Any, size: int, metadata: dict[str, Any]
) -> None:
    with pytest.raises(CorruptionError) as caught:
        header_of(forged(entries, size, **metadata))
    assert caught.value.kind == "header"


@pytest.mark.parametrize("metadata", [{"format": "3"}, {"digest": "md5"}])
def test_a_newer_pack_asks_for_an_upgrade(metadata: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="upgrade"):
        header_of(forged({"a": entry(0, 10)}, 10, digests=D, **metadata))


def test_a_header_length_that_is_not_possible_costs_nothing() -> None:
    data, _, _ = written(pieces_of("w", np.arange(40.0)))
    asked = []

    def read(offset: int, length: int) -> Any:
        asked.append(length)
        return np.frombuffer((length_field + data[8:])[offset : offset + length], np.uint8)

    for length in (0, 1, PAGE - 8 - 1, 1 << 32, (1 << 64) - 8, 100_000_008):
        length_field = length.to_bytes(8, "little")
        with pytest.raises(CorruptionError):
            read_header(read, 1 << 40, "p")
    assert sum(asked) < 1 << 20


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(data: bytes, long: bool) -> None:
    with pytest.raises((CorruptionError, FormatError)):
        header_of(data + bytes(8192) if long else data)
