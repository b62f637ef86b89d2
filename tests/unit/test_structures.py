"""Objects that open up: saved as dicts of their members, filled in place by `like=`, the same objects afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckpt_core import CheckpointManager, StateError, StateMismatchError
from ckpt_core.tree import StructureCodec, UnsupportedValueError, opened, registry


class Box:
    """Holds arrays that can be written to."""

    def __init__(self, *values: float) -> None:
        self.arrays: list[Any] = [np.full(2, value) for value in values]


class Crate(Box):
    """A box by inheritance."""


class Pair(NamedTuple):
    box: Any
    count: int


def _members(box: Box) -> dict[str, Any]:
    if not box.arrays:
        raise UnsupportedValueError("this box is empty")
    return {"arrays": box.arrays}


@pytest.fixture(autouse=True)
def _boxes_open() -> None:
    registry.add_structure(StructureCodec("test.Box", _members), Box)


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with CheckpointManager(tmp_path / "store", experiment="test") as manager:
        yield manager


def test_it_is_saved_as_a_dict_and_filled_in_place(manager: CheckpointManager) -> None:
    box = Crate(1.0, 2.0)
    state = {"boxes": [box, (box, 5)], "pair": Pair(Box(3.0), 6), "plain": np.ones(1)}
    manager.save(state, step=1, wait=True)
    plain = manager.load()
    assert plain["boxes"][0]["arrays"][1].tolist() == [2.0, 2.0]
    assert plain["pair"][0]["arrays"][0].tolist() == [3.0, 3.0]

    shared, other = Crate(0.0, 0.0), Box(0.0)
    arrays = list(shared.arrays)
    like = {"boxes": [shared, (shared, 0)], "pair": Pair(other, 0), "plain": np.zeros(1)}
    loaded = manager.load(like=like)
    assert loaded["boxes"][0] is loaded["boxes"][1][0] is shared
    assert loaded["pair"] == Pair(other, 6)
    assert isinstance(loaded["pair"], Pair)
    assert [each.tolist() for each in arrays] == [[1.0, 1.0], [2.0, 2.0]]
    assert all(now is then for now, then in zip(shared.arrays, arrays, strict=True))
    assert other.arrays[0].tolist() == [3.0, 3.0]


def test_at_the_top_and_by_parts(manager: CheckpointManager) -> None:
    manager.save(Box(1.0, 2.0), step=1, wait=True)
    box = Box(0.0, 0.0)
    assert manager.load(like=box, include="arrays/1") is box
    assert [each.tolist() for each in box.arrays] == [[0.0, 0.0], [2.0, 2.0]]


def test_members_that_differ_are_named(manager: CheckpointManager) -> None:
    manager.save({"box": Box(1.0)}, step=1, wait=True)
    with pytest.raises(StateMismatchError) as error:
        manager.load(like={"box": Box(0.0, 0.0)})
    assert error.value.paths == ("box/arrays/1",)


def test_one_that_cannot_be_opened_is_named(manager: CheckpointManager) -> None:
    with pytest.raises(StateError, match="cannot save 'boxes/0': this box is empty"):
        manager.save({"boxes": [Box()]}, step=1)
    manager.save({"boxes": [Box(1.0)]}, step=1, wait=True)
    with pytest.raises(StateMismatchError, match="like= at boxes/0: this box is empty"):
        manager.load(like={"boxes": [Box()]})


def test_one_that_holds_itself_is_refused(manager: CheckpointManager) -> None:
    box = Box(1.0)
    box.arrays.append(box)
    with pytest.raises(StateError, match="contains itself"):
        manager.save(box, step=1)
    manager.save(Box(1.0), step=1, wait=True)
    with pytest.raises(StateMismatchError, match="like= at arrays/1: it contains itself"):
        manager.load(like=box)


def test_objects_among_the_members_open_up_too(manager: CheckpointManager) -> None:
    outer, inner = Box(), Box(1.0)
    outer.arrays = [inner]
    manager.save(outer, step=1, wait=True)
    inner.arrays[0][:] = 0
    assert manager.load(like=outer) is outer
    assert inner.arrays[0].tolist() == [1.0, 1.0]


def test_a_container_that_contains_itself_is_refused() -> None:
    like: dict[str, Any] = {}
    like["a"] = [like]
    with pytest.raises(StateMismatchError, match="contains itself"):
        opened(like, registry)
