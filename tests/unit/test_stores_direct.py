"""Files past the page cache: every byte in its place, whatever the pieces and wherever they lie in memory."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_core.errors import StoreError
from ckpt_core.stores import LocalStore, direct, files
from ckpt_core.stores.direct import ALIGN, BLOCK, BlockPool, BlockStream, DirectReads, go_cached, go_direct
from contract.mounts import PowerDisk, small_disk

LONG = 3 * BLOCK + 12345
NOISE = np.random.default_rng(5).integers(0, 256, LONG + 2 * ALIGN, np.uint8)
POOL = BlockPool()


def aligned(nbytes: int, shift: int = 0) -> np.ndarray:
    """Noise that begins `shift` bytes behind the beginning of a page."""
    memory = np.empty(nbytes + 2 * ALIGN, np.uint8)
    begin = -memory.__array_interface__["data"][0] % ALIGN + shift
    memory[begin : begin + nbytes] = NOISE[:nbytes]
    return memory[begin : begin + nbytes]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def written(fd: int, pieces: list[np.ndarray], begin: int = 0) -> bytes:
    """What stands in the file after these pieces were written one behind the other."""
    assert go_direct(fd), "the file system of the tests' folder knows direct writes"
    stream = BlockStream(fd, begin, POOL)
    try:
        for piece in pieces:
            stream.write(piece.data)
        end = stream.finish()
    finally:
        stream.abandon()
    os.ftruncate(fd, end)
    go_cached(fd)
    assert end == begin + sum(piece.nbytes for piece in pieces)
    return os.pread(fd, end - begin + 1, begin)


@pytest.mark.parametrize("nbytes", [1, ALIGN, ALIGN + 1, BLOCK - 1, BLOCK, BLOCK + 1, LONG])
@pytest.mark.parametrize("shift", [0, 1, 64])
def test_one_piece_of_any_size_and_place(fd: int, nbytes: int, shift: int) -> None:
    assert written(fd, [aligned(nbytes, shift)]) == NOISE[:nbytes].tobytes()


def test_it_begins_where_it_is_told_to(fd: int) -> None:
    os.pwrite(fd, b"x" * ALIGN, 0)
    assert written(fd, [aligned(BLOCK + 5)], begin=ALIGN) == NOISE[: BLOCK + 5].tobytes()
    assert os.pread(fd, ALIGN, 0) == b"x" * ALIGN


# Cuts of one stretch of memory: neighbours, pieces left out (as chunks that are known already), jumps back.
cuts = st.lists(
    st.tuples(st.integers(0, LONG), st.integers(1, BLOCK + ALIGN))
    | st.tuples(st.none(), st.integers(1, BLOCK)),
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=cuts, shift=st.sampled_from([0, 8, 512]))
def test_pieces_that_are_neighbours_in_memory_or_not(
    tmp_path: Path, cuts: list[tuple[int | None, int]], shift: int
) -> None:
    memory, pieces, end = aligned(LONG, shift), [], 0
    for begin, length in cuts:
        begin = end if begin is None else begin
        end = min(begin + length, LONG)
        pieces.append(memory[begin:end])
    pieces = [piece for piece in pieces if piece.nbytes]
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        assert written(fd, pieces) == b"".join(piece.tobytes() for piece in pieces)
    finally:
        os.close(fd)


def test_memory_that_lies_as_the_file_will_is_not_copied(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(BlockPool, "acquire", lambda self: taken.append(1) or np.empty(BLOCK, np.uint8))
    memory = aligned(2 * BLOCK + ALIGN)
    cuts = [0, 1000, BLOCK - 7, BLOCK + 9, 2 * BLOCK + ALIGN]
    pieces = [memory[a:b] for a, b in itertools.pairwise(cuts)]
    assert written(fd, pieces) == memory.tobytes()
    assert taken == []


def test_copies_that_lie_as_the_file_will_are_not_copied_again(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []
    original = BlockStream._gather
    monkeypatch.setattr(
        BlockStream, "_gather", lambda self, each: (gathered.append(each.nbytes), original(self, each))[1]
    )
    sizes = [3 * ALIGN + 100, BLOCK, BLOCK - 37, 2 << 20, 900 << 10, 5]
    pieces = [aligned(sizes[0], 1)]  # not as the file will lie
    for size in sizes[1:]:
        pieces.append(aligned(size, sum(piece.nbytes for piece in pieces) % ALIGN))
    assert written(fd, pieces) == b"".join(piece.tobytes() for piece in pieces)
    assert sum(gathered) < sizes[0] + sizes[4] + 2 * ALIGN * len(sizes)  # the small ones, and ends of pages


def test_room_is_found_ahead_and_what_is_left_of_it_given_back(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    original = direct.allocate

    def noting(fd: int, begin: int, nbytes: int) -> bool:
        steps.append((begin, nbytes))
        return original(fd, begin, nbytes)

    monkeypatch.setattr(direct, "allocate", noting)
    monkeypatch.setattr(direct, "_STEP", BLOCK)
    assert written(fd, [aligned(LONG)]) == NOISE[:LONG].tobytes()
    assert steps == [(n * BLOCK, BLOCK) for n in range(4)]
    assert os.fstat(fd).st_blocks * 512 < LONG + 2 * ALIGN


def test_without_room_to_be_found_ahead_all_is_written(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(direct, "allocate", lambda fd, begin, nbytes: bool(asked.append(begin)))
    assert written(fd, [aligned(LONG)]) == NOISE[:LONG].tobytes()
    assert asked == [0]


def test_an_error_of_a_write_reaches_the_caller_and_the_pool_is_whole(fd: int) -> None:
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    stream = BlockStream(readable, 0, POOL)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            for _ in range(20):
                stream.write(aligned(BLOCK, 1).data)
            stream.finish()
    finally:
        stream.abandon()
        os.close(readable)
    assert written(fd, [aligned(LONG, 1)]) == NOISE[:LONG].tobytes()


def test_blocks_are_kept_for_the_next_file_and_no_more_than_it_needs() -> None:
    pool = BlockPool()
    blocks = [pool.acquire() for _ in range(9)]
    for block in blocks:
        pool.release(block)
    kept = {id(pool.acquire()) for _ in range(9)} & {id(block) for block in blocks}
    assert 0 < len(kept) < 9


# -- reading ------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offset=st.integers(0, 3 * ALIGN) | st.sampled_from([LONG - 1, LONG - ALIGN, LONG, LONG + 5]),
    nbytes=st.integers(0, 40 * ALIGN) | st.sampled_from([BLOCK, 2 * BLOCK + 3]),
    congruent=st.booleans(),
)
def test_any_range_into_any_memory(tmp_path: Path, offset: int, nbytes: int, congruent: bool) -> None:
    path = tmp_path / "file"
    if not path.exists():
        path.write_bytes(NOISE[:LONG].tobytes())
    fd = os.open(path, os.O_RDONLY)
    reads = DirectReads.of(fd, POOL)
    assert reads is not None
    memory = np.zeros(nbytes + 2 * ALIGN, np.uint8)
    begin = (offset - memory.__array_interface__["data"][0]) % ALIGN + (0 if congruent else 13)
    out = memory[begin : begin + nbytes]
    try:
        count = reads.read_into(offset, out)
    finally:
        reads.close()
        os.close(fd)
    expected = NOISE[:LONG][offset : offset + nbytes]
    assert count == expected.nbytes
    assert (out[:count] == expected).all()
    assert not memory[begin + nbytes :].any()


# -- through the store --------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", [False, True])
def test_a_large_object_whether_the_file_system_takes_direct_writes_or_not(
    tmp_path: Path, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused:
        monkeypatch.setattr(files, "go_direct", lambda fd: False)
        monkeypatch.setattr(DirectReads, "of", classmethod(lambda cls, fd, pool: None))
    store = LocalStore(tmp_path / "store")
    with store.create("a/k") as writer:
        writer.write(ALIGN, NOISE[:BLOCK])
        writer.write(ALIGN + BLOCK, NOISE[BLOCK:LONG])
        writer.write(0, b"h" * ALIGN)
        writer.commit()
    with store.open("a/k") as reader:
        assert reader.size == ALIGN + LONG
        _forget_cache(tmp_path / "store/a/k")
        assert (reader.read(ALIGN, LONG) == NOISE[:LONG]).all()
        assert reader.read(0, ALIGN).tobytes() == b"h" * ALIGN
        assert (reader.read(ALIGN + 77, BLOCK) == NOISE[77 : BLOCK + 77]).all()


@pytest.mark.parametrize("sizes", [[4, BLOCK], [100 << 10] * 5, [4], [4, 8]])
def test_what_begins_with_little_may_yet_be_large(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    original = files.go_direct
    monkeypatch.setattr(files, "go_direct", lambda fd: (streams.append(fd), original(fd))[1])
    store = LocalStore(tmp_path / "store")
    with store.create("a/k") as writer:
        end = ALIGN
        for size in sizes:
            piece = bytearray(NOISE[end - ALIGN : end - ALIGN + size].tobytes())
            writer.write(end, piece)
            if size < BLOCK:
                piece[:] = bytes(size)  # of what is small, a copy was made
            end += size
        writer.write(0, b"h" * ALIGN)
        writer.commit()
    assert store.get("a/k") == b"h" * ALIGN + NOISE[: end - ALIGN].tobytes()
    assert len(streams) == (sum(sizes) >= files._DIRECT)


def test_a_file_system_that_knows_no_direct_writes_is_no_error(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(direct.fcntl, "fcntl", refuse)
    assert not go_direct(fd)


def test_a_disk_that_fills_up_is_said_to_be(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = LocalStore(disk / "store")
        with pytest.raises(StoreError) as caught, store.create("a/k") as writer:
            for begin in range(0, 4 * BLOCK, BLOCK):
                writer.write(begin, NOISE[:BLOCK])
            writer.commit()
        assert caught.value.kind == "full"
        assert list(disk.rglob("*k")) == []
        store.put_new("a/k", b"small")


def test_what_went_past_the_cache_survives_a_power_cut(tmp_path: Path) -> None:
    disk = PowerDisk(tmp_path)
    try:
        store = LocalStore(disk.root / "store")
        with store.create("a/k") as writer:
            writer.write(ALIGN, NOISE[: BLOCK + 99])
            writer.write(0, b"h" * ALIGN)
            writer.commit()
        disk.cut_power()
        found = LocalStore(disk.root / "store").get("a/k")
        assert found == b"h" * ALIGN + NOISE[: BLOCK + 99].tobytes()
    finally:
        disk.close()


def _forget_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
