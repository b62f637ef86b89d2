"""Taking a state apart: what the tree holds, which tensors are one, and which path an error names."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckpt_core.errors import StateError
from ckpt_core.tree import Flat, flatten, registry, tensor_paths
from ckpt_core.tree.nodes import MAX_DEPTH, key_component


class Point(NamedTuple):
    x: Any
    y: Any


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 1


class Whole(int):
    def __str__(self) -> str:
        return "another text"


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


def flat(state: Any) -> Flat:
    return flatten(state, registry)


def paths(state: Any) -> list[str]:
    return [leaf.path for leaf in flat(state).leaves]


@pytest.mark.parametrize(
    ("value", "tree"),
    [
        (None, None), (True, True), (-5, -5), (0.1, 0.1), ("ä", "ä"), ([], []), ({}, {}), ([1, [2]], [1, [2]]),
        ({"a": 1}, {"a": 1}), ((), {"$tuple": []}), ((1, (2,)), {"$tuple": [1, {"$tuple": [2]}]}),
        (Point(1, None), {"$namedtuple": {"name": "Point", "fields": {"x": 1, "y": None}}}),
        ({1: "a", None: "b", 0.5: "c"}, {"$dict": [[1, "a"], [None, "b"], [0.5, "c"]]}), ({True: 1}, {"$dict": [[True, 1]]}),
        ({"$x": 1}, {"$dict": [["$x", 1]]}), ({"$tensor": 1, "a": 2}, {"$dict": [["$tensor", 1], ["a", 2]]}),
        ({"": 1, "a/b": 2, "~": 3}, {"": 1, "a/b": 2, "~": 3}),
        (b"ab", {"$bytes": "YWI="}), (b"", {"$bytes": ""}), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)),
        (2**63, {"$int": "0x8000000000000000"}), (-(2**63) - 1, {"$int": "-0x8000000000000001"}),
        (math.inf, {"$float": "7ff0000000000000"}), (1 + 0j, {"$complex": [1.0, 0.0]}),
        (complex(math.inf, -0.0), {"$complex": [{"$float": "7ff0000000000000"}, -0.0]}),
        (Whole(3), 3), (type("Text", (str,), {})("x"), "x"), (type("Real", (float,), {})(1.5), 1.5),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}), (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({np.float64(0.5): 1}, {"$dict": [[0.5, 1]]}), ({np.str_("a"): 1}, {"a": 1}), ({Whole(3): 1}, {"$dict": [[3, 1]]}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_s_tree(value: Any, tree: Any) -> None:
    found = flat(value)
    assert found.tree == tree
    assert repr(found.tree) == repr(tree)
    assert found.leaves == ()


def test_a_very_large_number_is_no_trouble() -> None:
    assert flat(10**6000).tree["$int"] == hex(10**6000)
    assert list(tensor_paths(flat({10**6000: np.zeros(1)}).tree)) == [hex(10**6000)]


def test_tensors_are_named_by_their_paths() -> None:
    state = {
        "model": {"layer.0": {"weight": np.zeros(2)}, "a/b": np.zeros(3), "~": [np.zeros(4), (np.zeros(5),)]},
        "": np.zeros(6),
        3: {None: np.zeros(7)},
        "point": Point(np.zeros(8), 1),
        "ä ö": np.zeros(9),
    }
    found = flat(state)
    assert [leaf.path for leaf in found.leaves] == [
        "model/layer.0/weight", "model/a~1b", "model/~0/0", "model/~0/1/0", "", "3/None", "point/x", "ä ö",
    ]  # fmt: skip
    assert [leaf.spec.shape for leaf in found.leaves] == [(n,) for n in range(2, 10)]
    assert tensor_paths(found.tree) == {leaf.path: n for n, leaf in enumerate(found.leaves)}


def test_a_state_that_is_one_tensor_or_one_value() -> None:
    assert flat(np.zeros(2)).tree == {"$tensor": 0}
    assert paths(np.zeros(2)) == [""]
    assert flat(3).tree == 3


def test_paths_never_meet() -> None:
    state = {"a": {"b": np.zeros(1), "": {"": np.zeros(1)}}, "a/b": np.zeros(1), "a~1b": np.zeros(1), "": {"a": np.zeros(1)},
             "a/": {"": np.zeros(1)}, "~01": np.zeros(1), "/": {"": np.zeros(1)}}  # fmt: skip
    found = paths(state)
    assert len(set(found)) == len(found) == 8
    assert key_component("a/~b~1") == "a~1~0b~01"


# -- tied tensors


def test_one_tensor_in_two_places_is_stored_once() -> None:
    weight = np.zeros((2, 3))
    found = flat({"a": weight, "b": {"c": weight}, "view": weight[:], "d": [weight.T, weight.T]})
    assert [leaf.path for leaf in found.leaves] == ["a", "d/0"]
    assert found.tree == {
        "a": {"$tensor": 0}, "b": {"c": {"$tensor": 0}}, "view": {"$tensor": 0}, "d": [{"$tensor": 1}, {"$tensor": 1}],
    }  # fmt: skip


def test_what_is_seen_another_way_is_another_tensor() -> None:
    weight = np.zeros((2, 2), np.float32)
    views = [
        weight,
        weight[0],
        weight.reshape(4),
        weight.T,
        weight.view(np.int32),
        weight.view(">f4"),
        weight[:, :1],
    ]
    assert len(flat(views).leaves) == len(views)


def test_equal_tensors_are_not_one() -> None:
    assert len(flat([np.zeros(2), np.zeros(2)]).leaves) == 2
    assert len(flat([np.zeros(0), np.zeros(0)]).leaves) == 2
    empty, block = np.zeros(0), np.zeros(4)
    assert len(flat([empty, empty]).leaves) == 1
    assert len(flat([block[:0], block[:0]]).leaves) == 2


def test_what_a_codec_makes_on_the_way_is_not_taken_for_another() -> None:
    generators = [np.random.Generator(np.random.MT19937(n)) for n in range(20)]
    found = flat(generators)  # each encodes into arrays that nobody else holds
    assert len(found.leaves) == 20
    assert len({leaf.value.tobytes() for leaf in found.leaves}) == 20


def test_one_long_byte_string_in_two_places_is_stored_once() -> None:
    data = bytes(5000)
    assert len(flat([data, data, bytearray(data)]).leaves) == 2


# -- what cannot be saved


@pytest.mark.parametrize(
    ("value", "kind", "advice"),
    [
        (object(), "no-codec", "register_codec"),
        (lambda: None, "no-codec", "register_codec"),
        (Colour.RED, "no-codec", r"\.value"),
        (Level.HIGH, "no-codec", r"\.value"),
        (Settings(), "no-codec", "asdict"),
        (type("Module", (), {"state_dict": lambda self: {}})(), "no-codec", r"state_dict\(\)"),
        ({Colour.RED: 1}, "key", "convert it"),
        ({Level.HIGH: 1}, "key", "convert it"),
        ({(1, 2): 1}, "key", "convert it"),
        ({np.int64(1): 1}, "key", "convert it"),
        ({b"x": 1}, "key", "convert it"),
        ({1: "a", "1": "b"}, "key", "the same path"),
        ({None: "a", "None": "b"}, "key", "the same path"),
        ({float("nan"): 1, "nan": 2}, "key", "the same path"),
        ("lone \ud800", "text", "save it as bytes"),
        ({"lone \ud800": 1}, "text", "save it as bytes"),
        (np.array([object()]), "unsupported", "no fixed bytes"),
        (frozenset([Colour.RED]), "no-codec", r"\.value"),
    ],
    ids=lambda value: type(value).__name__ if " at 0x" in ascii(value) else ascii(value)[:40],
)
def test_an_error_names_the_path(value: Any, kind: str, advice: str) -> None:
    with pytest.raises(StateError, match=advice) as caught:
        flat({"model": [0, {"x": value}]})
    assert caught.value.kind == kind
    assert caught.value.path.startswith("model/1/x")
    assert caught.value.path in str(caught.value)
    with pytest.raises(StateError, match="the top of the state|'0'|'1'"):
        flat(value)


def test_a_state_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {"a": [1]}
    state["a"].append(state)
    with pytest.raises(StateError, match="contains itself at 'a/1'") as caught:
        flat(state)
    assert caught.value.kind == "cycle"


def test_a_container_may_stand_in_two_places() -> None:
    shared = {"x": 1}
    assert flat([shared, shared]).tree == [{"x": 1}, {"x": 1}]


@pytest.mark.parametrize("wrap", [lambda s: [s], lambda s: {"k": s}, lambda s: (s,), lambda s: Point(s, 1),
                                  lambda s: {1: s}, lambda s: slice(s)], ids=range(6))  # fmt: skip
def test_the_depth_is_bounded(wrap: Any) -> None:
    state: Any = 1
    for _ in range(MAX_DEPTH // 2):
        state = wrap(state)
    flat(state)
    for _ in range(MAX_DEPTH):
        state = wrap(state)
    with pytest.raises(StateError, match=f"over {MAX_DEPTH} levels") as caught:
        flat(state)
    assert caught.value.kind == "depth"


def test_a_codec_that_encodes_into_itself_is_refused() -> None:
    from ckpt_core.tree import CodecRegistry, ObjectCodec, register_builtin

    fresh = CodecRegistry()
    register_builtin(fresh)
    fresh.add_object(ObjectCodec("settings", Settings, lambda s: [s], lambda p: p))
    with pytest.raises(StateError, match="contains itself"):
        flatten(Settings(), fresh)
    fresh.add_object(ObjectCodec("settings", Settings, lambda s: [Settings()], lambda p: p))
    with pytest.raises(StateError, match="levels deep"):
        flatten(Settings(), fresh)


def test_five_thousand_tensors_take_no_time() -> None:
    from ckpt_core import clock

    state = {f"layer.{n}": {"weight": np.full(3, n), "bias": np.full(1, n)} for n in range(2500)}
    before = clock.monotonic()
    assert len(flat(state).leaves) == 5000
    assert clock.monotonic() - before < 5
