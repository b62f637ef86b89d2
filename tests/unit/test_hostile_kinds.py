"""Every kind of hostile input that we know of, listed and run: `contract/hostile.py` and `contract/hostile_places.py`."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from ckpt_core.errors import CkptError
from ckpt_core.stores import LocalStore, MemoryStore
from contract import hostile, hostile_places
from contract.hostile import Ground, Kind

MOST = 64 << 20
"""Bytes of memory that no kind may take: the largest header that one brings along has ten."""

UNTRACED = {"catalog", "catalog backup", "configuration"}
"""Groups in which nothing claims a size, and that take long when every allocation is counted."""

KINDS = [*hostile.KINDS, *hostile_places.KINDS]


def name_of(kind: Kind) -> str:
    return f"{kind.group}: {kind.name}"


def test_the_list_is_long_and_names_each_kind_once() -> None:
    assert len(KINDS) >= 60
    assert [name for name, count in Counter(map(name_of, KINDS)).items() if count > 1] == []
    assert {kind.group for kind in KINDS} >= {
        "header", "tensor", "state", "manifest", "archive", "link", "place", "name", "configuration",
        "parity", "forward", "lease", "trash", "mirror", "signature", "reference", "metrics", "store", "catalog",
    }  # fmt: skip


def ends_well(act: object) -> None:
    """Whatever it comes to: a value, or an error of ours."""
    assert callable(act)
    with suppress(CkptError):
        act()


def check(kind: Kind, ground: Ground) -> None:
    act = kind.make(ground)
    if kind.must == "raises":
        assert act is not None
        with pytest.raises(CkptError) as caught:
            act()
        assert caught.value.message
    elif kind.must == "refused":
        with pytest.raises(CkptError):
            ground.load(ground.second)
        assert ground.is_right(ground.first)
    else:
        assert ground.is_right(ground.second)
        assert ground.is_right(ground.first)
        if act is not None:
            assert act() is not False
    for look in ground.look():
        ends_well(look)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_hostile_input_is_refused_or_does_no_harm(kind: Kind, tmp_path: Path) -> None:
    in_a_folder = kind in hostile_places.KINDS
    ground = Ground(LocalStore(tmp_path / "store") if in_a_folder else MemoryStore())
    if kind.group in UNTRACED:
        check(kind, ground)
        return
    tracemalloc.start()
    try:
        check(kind, ground)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST
