"""Parity by itself: a burst of the promised size heals wherever it lies, and no bit of a sidecar can lie."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ckpt_core import CorruptionError
from ckpt_core.format.parity import Parity, encode, faulty_cells, read_parity, rebuild, shape_for
from contract.pack_case import Sink

pytest.importorskip("zfec")
PACK, HEADER = "e/01ARZ3NDEKTSV4RRFFQ69G5FAV-0-0.safetensors", "A" * 43
SIZES = [1, 511, 513, 4096, 5000, 70_001, 1_234_567]


def reader_of(data: bytes):
    array = np.frombuffer(data, np.uint8)
    return lambda offset, length: array[offset : offset + length]


def sidecar_of(data: bytes, percent: int) -> bytes:
    sink = Sink()
    size = encode(reader_of(data), len(data), sink.write, pack=PACK, header=HEADER, percent=percent)
    assert len(sink.data) == size
    return bytes(sink.data)


def parity_of(sidecar: bytes) -> Parity:
    return read_parity(reader_of(sidecar), len(sidecar), "p.parity")


def healed(data: bytes, sidecar: bytes, size: int) -> tuple[bytes, int]:
    sink = Sink()
    done = rebuild(reader_of(data), reader_of(sidecar), parity_of(sidecar), sink.write)
    assert len(sink.data) == size
    return bytes(sink.data), done.lost_bytes


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("percent", [1, 5, 10, 37, 100])
def test_a_burst_of_the_promised_size_heals_wherever_it_lies(size: int, percent: int) -> None:
    data = random_bytes(size)
    sidecar = sidecar_of(data, percent)
    assert parity_of(sidecar).intact
    burst = -(-size * percent // 100)
    chance = random.Random(percent)
    for begin in {0, size - burst, *(chance.randrange(size - burst + 1) for _ in range(6))}:
        hurt = bytearray(data)
        hurt[begin : begin + burst] = bytes(255 - byte for byte in hurt[begin : begin + burst])
        assert healed(bytes(hurt), sidecar, size) == (data, 0), begin


@pytest.mark.parametrize("size", [5000, 1_234_567])
def test_a_burst_that_is_too_long_stays_lost_and_is_told(size: int) -> None:
    data = random_bytes(size)
    sidecar = sidecar_of(data, 10)
    hurt = bytearray(data)
    hurt[: size // 2] = bytes(size // 2)
    back, lost = healed(bytes(hurt), sidecar, size)
    assert lost > 0
    assert back != data


@pytest.mark.parametrize("size", [0, 100, 4999])
def test_a_pack_that_is_cut_short_is_rebuilt_where_parity_reaches(size: int) -> None:
    data = random_bytes(5000)
    assert healed(data[:size], sidecar_of(data, 100), 5000) == (data, 0)


def test_scattered_damage_heals_row_by_row() -> None:
    data = random_bytes(1_234_567)
    sidecar, shape = sidecar_of(data, 10), shape_for(len(data), 10)
    hurt = bytearray(data)
    for row in range(shape.rows):
        at, _ = shape.row(row)
        for block in range(shape.parity_blocks):
            hurt[block * 3 * shape.block_bytes + at] ^= 1
    assert healed(bytes(hurt), sidecar, len(data)) == (data, 0)


def test_every_bit_of_a_sidecar_is_under_a_digest() -> None:
    data = random_bytes(700)
    sidecar = sidecar_of(data, 10)
    for at in range(len(sidecar)):
        hurt = bytearray(sidecar)
        hurt[at] ^= 1 << at % 8
        found = parity_of(bytes(hurt))
        assert not found.intact or list(faulty_cells(reader_of(bytes(hurt)), found)), at
        assert healed(data, bytes(hurt), len(data)) == (data, 0)


def test_a_sidecar_heals_though_one_copy_of_its_document_and_some_cells_are_lost() -> None:
    data = random_bytes(1_234_567)
    sidecar, shape = bytearray(sidecar_of(data, 10)), shape_for(1_234_567, 10)
    whole = parity_of(bytes(sidecar))
    sidecar[: whole.begin + shape.block_bytes] = bytes(
        whole.begin + shape.block_bytes
    )  # and one block of parity
    hurt = bytearray(data)
    hurt[100 : 100 + 5 * shape.block_bytes] = bytes(5 * shape.block_bytes)
    assert healed(bytes(hurt), bytes(sidecar), len(data)) == (data, 0)


@pytest.mark.parametrize("size", [0, 7, 16, 300])
def test_what_is_no_sidecar_is_refused(size: int) -> None:
    with pytest.raises(CorruptionError, match="p.parity is damaged"):
        parity_of(random_bytes(size))


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_the_share_that_it_costs(percent: int) -> None:
    size = 64 << 20
    shape = shape_for(size, percent)
    assert shape.parity_blocks * shape.block_bytes <= size * (percent + 1.6) / 100
    assert shape.shares * shape.cell_bytes <= 32 << 20
