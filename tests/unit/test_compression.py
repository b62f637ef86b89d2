"""Chunks compressed and expanded: nothing is lost, nothing hostile is believed, and what does not pay is left."""

from __future__ import annotations

import struct
import sys
import threading
import tracemalloc
import zlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.errors import CorruptionError, MissingExtraError
from ckpt_core.format.compression import EXPANSION, compress, expand

NORMAL = np.random.default_rng(5).standard_normal(1 << 16)


def stored(array: np.ndarray[Any, Any], itemsize: int | None = None) -> bytes | None:
    """What a chunk of these values becomes."""
    data = np.frombuffer(array.tobytes(), np.uint8)
    found = compress(data, itemsize or array.dtype.itemsize)
    if found is None:
        return None
    whole = b"".join(part.tobytes() for part in found.parts)
    assert len(whole) == found.nbytes
    assert len(whole) % 64 == 0
    return whole


def back(data: bytes, length: int) -> bytes:
    out = np.full(length, 0xA5, np.uint8)
    expand(np.frombuffer(data, np.uint8), out)
    return out.tobytes()


# -- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("<f4", 0.86), ("<f8", 0.90), ("<f2", 0.88), ("bfloat16", 0.70), ("float8_e4m3fn", 0.85), (">f4", 0.86)],
)
def test_weights_become_smaller_by_their_exponents(dtype: str, most: float) -> None:
    array = (NORMAL * 0.02).astype(getattr(ml_dtypes, dtype, dtype))
    if "8" in dtype and dtype.startswith("float"):
        array = NORMAL.astype(ml_dtypes.float8_e4m3fn)
    found = stored(array)
    assert found is not None
    assert len(found) < most * array.nbytes
    assert back(found, array.nbytes) == array.tobytes()


def test_counts_masks_and_texts_become_smaller() -> None:
    for array, most in (
        (np.arange(8192), 0.01),
        (NORMAL < -1, 0.3),
        (np.zeros(1 << 20, np.float32), 0.001),
        (np.frombuffer(b'{"loss": 0.25}\n' * 4096, np.uint8), 0.02),
    ):
        found = stored(array)
        assert found is not None
        assert len(found) < most * array.nbytes
        assert back(found, array.nbytes) == array.tobytes()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_noise_and_what_is_short_stay_as_they_are(itemsize: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 1 << 16, np.uint8)
    assert stored(noise, itemsize) is None
    assert stored(np.zeros(4095, np.uint8), itemsize) is None


planes = st.sampled_from(["zeros", "noise", "few", "ramp"])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int]:
    """Values whose bytes are of different kinds, place by place; also such as do not end with an item."""
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    count = draw(st.integers(0, 3000))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    made = {
        "zeros": np.zeros(count, np.uint8), "noise": random.integers(0, 256, count, np.uint8),
        "few": random.integers(0, 5, count, np.uint8), "ramp": np.arange(count).astype(np.uint8),
    }  # fmt: skip
    columns = [made[draw(planes)] for _ in range(itemsize)]
    data = np.stack(columns, axis=1).reshape(-1) if count else np.empty(0, np.uint8)
    return np.concatenate([data, np.arange(draw(st.integers(0, 7)), dtype=np.uint8)]), itemsize


@given(chunks())
def test_whatever_is_compressed_comes_back(chunk: tuple[np.ndarray[Any, Any], int]) -> None:
    data, itemsize = chunk
    found = stored(data, itemsize)
    if found is None:
        return
    assert len(found) <= 0.95 * data.nbytes
    assert data.nbytes <= len(found) * EXPANSION
    assert back(found, data.nbytes) == data.tobytes()
    for wrong in (data.nbytes + 8, data.nbytes - 8, data.nbytes * 2):
        with pytest.raises(CorruptionError):
            back(found, wrong)


def test_threads_do_not_share_what_is_for_one() -> None:
    arrays = [(NORMAL * n).astype(np.float32) for n in range(1, 9)]
    results: dict[int, bool] = {}

    def work(n: int) -> None:
        results[n] = all(
            back(found, arrays[n].nbytes) == arrays[n].tobytes()
            for found in (stored(arrays[n]) for _ in range(20))
            if found is not None
        )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(8), True)


def test_no_more_memory_than_the_chunk_and_two_planes() -> None:
    data = np.frombuffer(np.tile(NORMAL, 16).astype(np.float32).tobytes(), np.uint8)
    compress(data, 4)  # zstd's own contexts, once
    tracemalloc.start()
    try:
        found = compress(data, 4)
        assert found is not None
        assert tracemalloc.get_traced_memory()[1] < 1.6 * data.nbytes
    finally:
        tracemalloc.stop()


# -- what is damaged or lies --------------------------------------------------------------------------


def test_every_flipped_bit_is_found() -> None:
    """Also where zstd would give the same bytes, or asks for no attention: the checksum is over all of it."""
    found = stored(NORMAL[:1200].astype(np.float32))
    assert found is not None
    for at in range(len(found)):
        for bit in range(8):
            hurt = found[:at] + bytes([found[at] ^ 1 << bit]) + found[at + 1 :]
            with pytest.raises(CorruptionError) as caught:
                back(hurt, 4800)
            assert caught.value.kind == "compressed"


def forged(planes: int, lengths: list[int], body: bytes, tail: bytes | None = None) -> bytes:
    """Says what it likes, under a checksum that fits."""
    head = bytes([planes, 0, 0, 0]) + b"".join(struct.pack("<I", length) for length in lengths) + body
    head += bytes(-(len(head) + 4) % 64) if tail is None else tail
    return zlib.crc32(head).to_bytes(4, "little") + head


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def test_a_forged_chunk_that_tells_the_truth_is_expanded() -> None:
    good = frame(bytes(5000))
    assert back(forged(1, [len(good)], good), 5000) == bytes(5000)
    assert back(forged(2, [len(good), 5000], good + b"\1" * 5000), 10000) == b"\0\1" * 5000


BOMB = frame(bytes(1 << 28))
GOOD = frame(bytes(5000))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 7, bytes(64), GOOD,
        forged(0, [], b""), forged(3, [10, 10, 10], bytes(30)), forged(255, [], b""), forged(16, [0] * 16, b""),
        forged(8, [1, 2], b""),
        forged(1, [len(GOOD) + 1], GOOD), forged(1, [len(GOOD) - 1], GOOD), forged(1, [0], b""), forged(1, [5001], bytes(5001)),
        forged(1, [2**32 - 1], GOOD), forged(2, [len(GOOD), 0], GOOD),
        forged(1, [len(GOOD)], GOOD, tail=bytes(200)), forged(1, [len(GOOD)], GOOD, tail=b"x"),
        forged(1, [len(BOMB)], BOMB), forged(1, [len(GOOD) // 2], GOOD[: len(GOOD) // 2]),
        forged(1, [2 * len(GOOD)], GOOD + GOOD), forged(1, [len(GOOD) + 9], GOOD + b"more bytes"[:9]),
        *(forged(1, [len(other)], other) for other in (
            frame(bytes(4999)), frame(bytes(5001)), frame(b""),
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000)),
            b"\x50\x2a\x4d\x18\x88\x13\x00\x00" + bytes(100), b"not a frame at all", b"\x28\xb5\x2f\xfd",
        )),
    ],
    ids=range(28),
)  # fmt: skip
def test_what_lies_is_refused_and_takes_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptionError) as caught:
            back(data, 5000)
        assert caught.value.kind == "compressed"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    samples = [b"value %d of the exponents of a layer" % n for n in range(2000)]
    trained = zstandard.train_dictionary(1024, samples)
    data = b"".join(samples)[:5000]
    needy = zstandard.ZstdCompressor(dict_data=trained).compress(data)
    assert zstandard.get_frame_parameters(needy).dict_id
    with pytest.raises(CorruptionError, match="claims"):
        back(forged(1, [len(needy)], needy), 5000)


def test_a_frame_with_a_window_beyond_reason_is_refused() -> None:
    # RFC 8878: a descriptor (two bytes of size, a window), the window, the size, one block of 5000 times 0.
    wide = b"\x28\xb5\x2f\xfd" + bytes([0x40, (27 - 10) << 3]) + struct.pack("<H", 5000 - 256)
    wide += (5000 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    assert zstandard.ZstdDecompressor().decompress(wide) == bytes(5000)
    assert zstandard.get_frame_parameters(wide).window_size == 1 << 27
    with pytest.raises(CorruptionError, match="claims"):
        back(forged(1, [len(wide)], wide), 5000)


@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8]))
def test_no_bytes_make_it_fail_otherwise(body: bytes, planes: int) -> None:
    for data in (body, forged(planes, [len(body)] + [0] * (planes - 1), body)):
        with pytest.raises(CorruptionError):
            back(data, 4096)


# -- the library --------------------------------------------------------------------------------------


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stored(np.zeros(5000, np.float32))
    assert found is not None
    errors: list[BaseException] = []

    def work() -> None:  # a thread that has used nothing of it yet
        for each in (lambda: stored(np.zeros(5000, np.float32)), lambda: back(found, 20000)):
            try:
                each()
            except MissingExtraError as error:
                errors.append(error)

    monkeypatch.setitem(sys.modules, "zstandard", None)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(error) for error in errors] == [
        "compressed chunks are written and read by zstandard: pip install 'ckpt-core[zstd]'"
    ] * 2
