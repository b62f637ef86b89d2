"""Putting a state together again: as plain containers, into a structure that is given, or a part of it."""

from __future__ import annotations

import collections
import types
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckpt_core.errors import FormatError, StateMismatchError, UsageError
from ckpt_core.repository import Repository
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import Selection, registry
from ckpt_core.tree.rebuild import wanted_tensors
from contract.store_case import commit, load, new_repository, same


class Point(NamedTuple):
    x: Any
    y: Any


class Other(NamedTuple):
    x: Any
    z: Any


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


def saved(repository: Repository, state: Any) -> str:
    return commit(repository, state).key


def trip(state: Any, **options: Any) -> Any:
    repository = new_repository(MemoryStore())
    return load(repository, saved(repository, state), **options)


STATE: dict[str, Any] = {
    "model": {"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3, np.float32), "none": None},
    "point": Point(np.arange(3), {"k": (1, 2)}),
    "steps": [1, 2.5, "x", None, np.arange(2)],
    5: {"$a": b"xyz", "": set()},
    "empty": [{}, [], (), set()],
    "big": 2**100,
}


# -- plain containers


def test_a_state_comes_back_as_plain_containers() -> None:
    found = trip(STATE)
    assert same(found, {**STATE, "point": (np.arange(3), {"k": (1, 2)})})
    assert type(found["point"]) is tuple


def test_tied_tensors_come_back_as_one() -> None:
    weight = np.arange(3.0)
    found = trip({"a": weight, "b": [weight], "c": weight.copy()})
    assert found["a"] is found["b"][0]
    assert found["a"] is not found["c"]


def test_views_of_one_memory_come_back_with_their_values() -> None:
    block = np.arange(100.0)
    found = trip({"all": block, "head": block[:10], "odd": block[1::2], "square": block.reshape(10, 10).T})
    assert same(found["head"], np.arange(10.0))
    assert same(found["odd"], np.arange(1.0, 100, 2))
    assert (found["square"] == np.arange(100.0).reshape(10, 10).T).all()


@pytest.mark.parametrize("value", [3, None, "x", np.arange(3), [], {}, (), set(), b"x", {"": {"": 1}}])
def test_any_value_may_be_a_state(value: Any) -> None:
    assert same(trip(value), value)


# -- a part of it


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("model", {"model": STATE["model"]}), ("model/weight", {"model": {"weight": STATE["model"]["weight"]}}),
        (["model/bias", "big"], {"model": {"bias": STATE["model"]["bias"]}, "big": 2**100}),
        ("model/*s", {"model": {"bias": STATE["model"]["bias"]}}), ("*/weight", {"model": {"weight": STATE["model"]["weight"]}}),
        ("point/y", {"point": (None, {"k": (1, 2)})}), ("steps/1", {"steps": [None, 2.5, None, None, None]}),
        ("5", {5: STATE[5]}), ("5/", {5: STATE[5]}), ("empty/3", {"empty": [None, None, None, set()]}), ([], {}),
        ("empty", {"empty": STATE["empty"]}), ("*", {**STATE, "point": tuple(STATE["point"])}),
        (None, {**STATE, "point": tuple(STATE["point"])}),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_selected_comes_alone(include: Any, expected: Any) -> None:
    assert same(trip(STATE, include=include), expected)


def test_what_is_not_selected_is_not_asked_for(repository: Repository) -> None:
    tree = repository.read(saved(repository, STATE)).manifest.state
    wanted = wanted_tensors(tree, None, registry, Selection("model/bias"), plain=True)
    assert len(wanted) == 1


def test_a_part_of_an_object_selects_the_whole(repository: Repository) -> None:
    generator = np.random.Generator(np.random.MT19937(1))
    found = trip({"rng": generator, "x": 1}, include="rng/state/state/key")
    assert list(found) == ["rng"]
    assert found["rng"].random() == generator.random()


def test_a_pattern_that_matches_nothing_is_a_mistake(repository: Repository) -> None:
    tree = repository.read(saved(repository, STATE)).manifest.state
    Selection(["model", "*/weight"]).check(tree)
    with pytest.raises(StateMismatchError, match="'modle'.*model/weight") as caught:
        Selection(["model", "modle"]).check(tree)
    assert (caught.value.kind, caught.value.paths) == ("include", ("modle",))
    Selection(None).check(tree)


@pytest.mark.parametrize("patterns", [3, [3], [None], {"a": 1}, b"a"])
def test_patterns_are_texts(patterns: Any) -> None:
    with pytest.raises(UsageError, match="include="):
        Selection(patterns)


# -- into a structure


def test_like_is_filled_in_place(repository: Repository) -> None:
    key = saved(repository, STATE)
    like = {
        "model": {"weight": np.zeros((2, 3)), "bias": np.ones(3, np.float32), "none": None},
        "point": Point(np.zeros(3, np.int64), {"k": (0, 0)}),
        "steps": [0, 0.0, "", None, np.zeros(2, np.int64)],
        5: {"$a": b"", "": {1}},
        "empty": [{}, [], (), set()],
        "big": 0,
    }
    found = load(repository, key, like=like)
    assert same(found, STATE)
    assert found["model"]["weight"] is like["model"]["weight"]
    assert found["point"].x is like["point"].x
    assert type(found["point"]) is Point
    assert found is not like
    assert like["big"] == 0


def test_like_keeps_what_is_not_selected(repository: Repository) -> None:
    key = saved(repository, {"a": np.ones(2), "b": np.ones(2), "c": {1, 2}, "d": {"e": 1}})
    like = {"a": np.zeros(2), "b": np.zeros(2), "c": {3}, "d": {"e": 5}, "new": 7}
    found = load(repository, key, like=like, include=["a"])
    assert same(found, {"a": np.ones(2), "b": np.zeros(2), "c": {3}, "d": {"e": 5}, "new": 7})
    assert found["c"] is like["c"]


def test_tensors_of_another_kind_of_memory_are_converted(repository: Repository) -> None:
    values = np.arange(6.0).reshape(2, 3)
    key = saved(repository, {"x": values, "n": np.array([5, -5])})
    for dtype in (np.float32, np.float16, ">f8"):
        for order in ("C", "F"):
            like = {"x": np.zeros((2, 3), dtype, order), "n": np.zeros(2, np.int8)}
            found = load(repository, key, like=like)
            assert found["x"] is like["x"]
            assert (found["x"] == values).all()
            assert found["n"].tolist() == [5, -5]


def test_an_array_that_may_not_be_written_is_replaced(repository: Repository) -> None:
    key = saved(repository, {"x": np.arange(3.0)})
    like = {"x": np.zeros(3)}
    like["x"].flags.writeable = False
    found = load(repository, key, like=like)
    assert found["x"] is not like["x"]
    assert same(found["x"], np.arange(3.0))
    assert not like["x"].any()


def test_numbers_that_do_not_fit_are_refused_by_path(repository: Repository) -> None:
    key = saved(repository, {"a": {"n": np.array([300])}})
    like = {"a": {"n": np.zeros(1, np.uint8)}}
    with pytest.raises(StateMismatchError, match=r"a/n: its values do not fit in uint8") as caught:
        load(repository, key, like=like)
    assert (caught.value.kind, caught.value.paths) == ("values", ("a/n",))
    assert like["a"]["n"][0] == 0


def test_dicts_keep_their_kind(repository: Repository) -> None:
    key = saved(repository, {"o": {"b": 1, "a": 2}, "d": {"x": [1]}, "m": {"a": 1}, "u": {"a": 1}})
    like: dict[str, Any] = {
        "o": collections.OrderedDict(b=0, a=0),
        "d": collections.defaultdict(list, x=[0]),
        "m": types.MappingProxyType({"a": 0}),
        "u": UserDict({"a": 0}),
    }
    found = load(repository, key, like=like)
    assert type(found["o"]) is collections.OrderedDict
    assert list(found["o"].items()) == [("b", 1), ("a", 2)]
    assert found["d"]["new"] == []
    assert found["m"] == {"a": 1}
    assert type(found["u"]) is UserDict
    assert (found["u"]["a"], like["u"]["a"], like["d"]["x"]) == (1, 0, [0])


def test_a_dict_that_cannot_be_copied_is_named(repository: Repository) -> None:
    class Stubborn(UserDict):  # type: ignore[type-arg]
        def __copy__(self) -> Any:
            raise RuntimeError("no")

    key = saved(repository, {"u": {"a": 1}})
    with pytest.raises(StateMismatchError, match="Stubborn at u") as caught:
        load(repository, key, like={"u": Stubborn(a=0)})
    assert caught.value.kind == "like"


def test_named_tuples_and_plain_ones_pair_by_position(repository: Repository) -> None:
    key = saved(repository, {"named": Point(1, np.arange(2)), "plain": (1, np.arange(2))})
    back = load(repository, key)
    again = load(repository, key, like=back)
    assert same(again, {"named": (1, np.arange(2)), "plain": (1, np.arange(2))})
    found = load(repository, key, like={"named": (0, np.zeros(2, int)), "plain": Point(0, np.zeros(2, int))})
    assert type(found["named"]) is tuple
    assert type(found["plain"]) is Point
    assert (found["plain"].x, found["plain"].y.tolist(), found["named"][0]) == (1, [0, 1], 1)


def test_byte_strings_pair_whatever_their_length(repository: Repository) -> None:
    long = bytes(3000)
    key = saved(
        repository,
        {"short": b"x", "long": long, "array": bytearray(b"y"), "loose": b"z", "tight": bytearray(b"w")},
    )
    like = {"short": long, "long": b"", "array": bytearray(), "loose": bytearray(), "tight": b""}
    found = load(repository, key, like=like)
    assert found == {"short": b"x", "long": long, "array": b"y", "loose": b"z", "tight": b"w"}
    assert [type(value) for value in found.values()] == [bytes, bytes, bytearray, bytearray, bytes]


def test_objects_and_numbers_pair_with_what_stands_for_them(repository: Repository) -> None:
    key = saved(repository, {"lr": np.float64(0.5), "set": {1}, "n": 3, "none": None})
    found = load(repository, key, like={"lr": 0.1, "set": set(), "n": 2.5, "none": 7})
    assert same(found, {"lr": np.float64(0.5), "set": {1}, "n": 3, "none": None})


@pytest.mark.parametrize(
    ("like", "paths"),
    [
        ({"a": {"x": np.zeros(2)}, "l": [1, 2], "t": (1,), "s": {1}, "b": b""}, ["p"]),
        ({"a": {"x": np.zeros(2), "y": 1}, "l": [1, 2], "t": (1,), "p": Point(1, 2), "s": {1}, "b": b"", "new": 1}, ["a/y", "new"]),
        ({"a": {"x": 1.0}, "l": [1, 2], "t": (1,), "p": Point(1, 2), "s": {1}, "b": b""}, ["a/x"]),
        ({"a": {"x": None}, "l": [1, np.zeros(1)], "t": (1,), "p": Point(1, 2), "s": {1}, "b": b""}, ["a/x", "l/1"]),
        ({"a": {"x": [1]}, "l": (1, 2), "t": [1], "p": {"x": 1, "y": 2}, "s": [1], "b": []}, ["a/x", "l", "t", "p", "s", "b"]),
        ({"a": {"x": np.zeros(2)}, "l": [1], "t": (1, 2), "p": Other(1, 2), "s": np.zeros(1), "b": 1},
         ["l/1", "t/1", "p/y", "p/z", "s"]),
        ({"a": {"x": b""}, "l": [1, b""], "t": (1,), "p": Point(1, 2), "s": {1}, "b": b""}, ["l/1"]),
        ({"a": {"x": np.zeros(2)}, "l": [1, 2], "t": (), "p": (1, 2, 3), "s": {1}, "b": b""}, ["t/0", "p/2"]),
        ([1], ["the top"]), (np.zeros(2), ["the top"]),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_does_not_fit_is_named(repository: Repository, like: Any, paths: list[str]) -> None:
    key = saved(
        repository, {"a": {"x": np.ones(2)}, "l": [1, 2], "t": (1,), "p": Point(1, 2), "s": {1}, "b": b"x"}
    )
    asked = []
    with pytest.raises(StateMismatchError) as caught:
        from ckpt_core.tree import rebuild_like

        rebuild_like(repository.read(key).manifest.state, like, lambda i, _: asked.append(i), registry)
    assert list(caught.value.paths) == paths
    assert all(path in str(caught.value) for path in paths)
    assert asked == []


def test_what_does_not_fit_but_is_not_selected_is_let_be(repository: Repository) -> None:
    key = saved(repository, {"a": np.ones(2), "b": {"c": 1}})
    like = {"a": np.zeros(2), "b": [5], "d": 1}
    found = load(repository, key, like=like, include="a")
    assert same(found, {"a": np.ones(2), "b": [5], "d": 1})


def test_many_differences_are_counted(repository: Repository) -> None:
    key = saved(repository, {str(n): 1 for n in range(30)})
    with pytest.raises(StateMismatchError, match="and 22 more") as caught:
        load(repository, key, like={})
    assert len(caught.value.paths) == 30


def test_two_keys_of_like_that_give_one_path_are_a_mistake(repository: Repository) -> None:
    key = saved(repository, {"a": {"1": 5}})
    with pytest.raises(StateMismatchError, match="the same path"):
        load(repository, key, like={"a": {"1": 0, 1: 0}})


def test_a_codec_that_fails_on_what_is_stored_says_where(repository: Repository) -> None:
    tree = {"a": {"$object": {"codec": "uuid", "value": "not one"}}}
    from ckpt_core.tree import rebuild

    with pytest.raises(FormatError, match=r"codec 'uuid'.*'a'") as caught:
        rebuild(tree, lambda *_: None, registry)
    assert (caught.value.kind, caught.value.path) == ("codec", "a")
