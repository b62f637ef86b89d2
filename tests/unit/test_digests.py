"""Digests in order: every piece its digest, copies that lie as the pack will, and bounded memory for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core import ChecksumCalculator
from ckpt_core.format.pack import Piece
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import TensorSpec
from ckpt_core.pages import PAGE, address
from ckpt_core.repository import digests
from ckpt_core.repository.digests import Digested, digest_in_order

LARGE = 8 << 20
NOISE = np.random.default_rng(3).integers(0, 256, 3 * LARGE, np.uint8)


def piece(begin: int, nbytes: int) -> Piece:
    return Piece(f"t{begin}", TensorSpec("U8", (nbytes,)), 0, NOISE[begin : begin + nbytes])


def settled(pieces: list[Piece], threads: int | None = 2) -> Iterator[Digested]:
    """As a writer takes them: `position` is what it has taken so far."""
    taken = [0]
    for each in digest_in_order(pieces, threads=threads, position=lambda: sum(taken)):
        yield each
        taken.append(each.data.nbytes)


sizes = st.lists(st.integers(1, LARGE) | st.integers(1, 300 << 10), max_size=8)


@settings(max_examples=25, deadline=None)
@given(sizes=sizes, shift=st.integers(0, 2 * PAGE), threads=st.integers(1, 3), hold=st.booleans())
def test_every_piece_has_its_own_digest_and_bytes(
    sizes: list[int], shift: int, threads: int, hold: bool
) -> None:
    pieces = [piece(shift + 7 * n, size) for n, size in enumerate(sizes)]
    held = []
    for mine, each in zip(pieces, settled(pieces, threads), strict=True):
        assert each.piece is mine
        assert each.digest == digest_text(hashlib.sha256(mine.data.tobytes()).digest())
        assert np.array_equal(each.data, mine.data)
        if hold:
            held.append((mine.data, each.data))
    for original, data in held:  # nobody's block was lent a second time
        assert np.array_equal(original, data)


def test_large_pieces_lie_in_their_pages_as_they_will_in_the_pack() -> None:
    pieces = [piece(64, 5000), *(piece(64 * n, LARGE - 8 * n) for n in range(1, 5))]
    position = 0
    for each in settled(pieces):
        if each.piece is not pieces[0]:
            assert (address(each.data) - position) % PAGE == 0
            assert not np.shares_memory(each.data, each.piece.data)
        position += each.data.nbytes


def test_what_lies_right_already_is_not_copied() -> None:
    begin = -address(NOISE) % PAGE
    pieces = [piece(begin, LARGE), piece(begin + LARGE, LARGE)]
    assert all(each.data is each.piece.data for each in settled(pieces))


@pytest.mark.parametrize("hold", [False, True])
def test_blocks_are_used_again_and_where_none_is_left_the_bytes_stay_where_they_are(
    monkeypatch: pytest.MonkeyPatch, hold: bool
) -> None:
    made: list[int] = []
    original = digests.pages
    monkeypatch.setattr(digests, "pages", lambda nbytes: (made.append(nbytes), original(nbytes))[1])
    pieces = [piece(64, 2 << 20) for _ in range(60)]
    held = []
    copied = 0
    for each in settled(pieces, threads=1):
        copied += each.data is not each.piece.data
        if hold:
            held.append(each)
    most = 2 + digests._SPARE
    assert len(made) <= most
    assert copied == (most if hold else 60)


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(digests.Hasher):
        def update(self, data: object) -> None:
            raise MemoryError("no more")

    monkeypatch.setattr(digests, "Hasher", Broken)
    with pytest.raises(MemoryError, match="no more"):
        list(settled([piece(0, 1 << 20)]))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 7])
def test_of_bytes_in_memory_and_in_a_file_the_digest_is_the_same(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NOISE[:size])
    checksums = ChecksumCalculator()
    digest = checksums.digest_file(path)
    assert digest == digest_text(hashlib.sha256(NOISE[:size]).digest())
    assert checksums.matches(NOISE[:size], digest)
    assert checksums.matches(path.read_bytes(), digest)
    assert not checksums.matches(NOISE[1 : size + 2], digest)
