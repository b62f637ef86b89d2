"""A tree from a file is a tree or is refused, by our own errors, in bounded time and memory."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.errors import CkptError, FormatError
from ckpt_core.tree import Selection, check_tree, rebuild, rebuild_like, registry, tensor_paths, walk
from ckpt_core.tree.nodes import MAX_DEPTH, TAGS

TENSORS = [np.zeros(2), np.zeros(1, np.uint8), np.zeros((0, 3))]


def get(index: int, like: Any) -> Any:
    return TENSORS[index] if like is None else like


BAD = [
    {"$unknown": 1}, {"$": 1}, {"$tensor": 3}, {"$tensor": -1}, {"$tensor": True}, {"$tensor": 0.0}, {"$tensor": "0"},
    {"$tensor": None}, {"$tensor": 10**30}, {"$tuple": {}}, {"$tuple": None}, {"$tuple": "ab"}, {"$namedtuple": []},
    {"$namedtuple": {"name": "P"}}, {"$namedtuple": {"name": 1, "fields": {}}}, {"$namedtuple": {"name": "P", "fields": []}},
    {"$dict": {}}, {"$dict": [1]}, {"$dict": [[1]]}, {"$dict": [[1, 2, 3]]}, {"$dict": [[[1], 2]]}, {"$dict": [[{}, 2]]},
    {"$dict": [[{"$tuple": []}, 2]]}, {"$dict": [[{"$tensor": 0}, 2]]}, {"$dict": [[{"$int": "x"}, 2]]},
    {"$dict": ["ab"]}, {"$bytes": 1}, {"$bytes": "a"}, {"$bytes": "a b="}, {"$bytes": "ä"}, {"$float": 1.0},
    {"$float": "7ff"}, {"$float": "7FF0000000000000"}, {"$float": "7ff00000000000zz"}, {"$float": "0x7ff00000000000"},
    {"$int": 5}, {"$int": "5"}, {"$int": "0x"}, {"$int": "0x_1"}, {"$int": " 0x1"}, {"$int": "0x1\n"}, {"$int": "--0x1"},
    {"$complex": 1.0}, {"$complex": [1.0]}, {"$complex": [1.0, 2.0, 3.0]}, {"$complex": ["1", 2.0]},
    {"$complex": [{"$float": 1}, 2.0]}, {"$complex": [{"$int": "0x1"}, 2.0]}, {"$object": {}}, {"$object": "x"},
    {"$object": {"codec": "set"}}, {"$object": {"codec": 1, "value": []}}, {"$object": {"value": []}},
    *({"$backend": body} for body in (
        1, {}, {"name": "npz", "path": "x"}, {"name": "npz", "path": "x", "files": {}},
        {"name": "npz", "path": "x", "files": []}, {"name": "npz", "path": "x", "files": {"x": 0}},
        {"name": 1, "path": "x", "files": {"x": {"$tensor": 0}}}, {"name": "npz", "path": "x", "files": {"x": {"$tensor": 3}}},
        {"name": "npz", "path": "x", "files": {"x": [{"$tensor": 0}]}}, {"name": "npz", "path": "x", "files": {"y": {"$tensor": 0}}},
        {"name": "npz", "path": "x", "files": {"x": {"$tensor": 0}, "x/y": {"$tensor": 0}}},
        *({"name": "npz", "path": "x", "files": {name: {"$tensor": 0}}} for name in (
            "x/", "x//y", "x/../y", "x/..", "x/.", "x/a\\b", "x/a\0b", "x/a\nb", "x/\udcff", "x/" + "a" * 256, "xy")),
        *({"name": "npz", "path": name, "files": {f"{name}/y": {"$tensor": 0}}} for name in ("", "..", "/", "/x", "../x", "a\\b")),
    )),
]  # fmt: skip


def test_files_of_a_backend_stand_at_the_top_alone() -> None:
    node = {
        "$backend": {"name": "npz", "path": "x", "files": {"x/a": {"$tensor": 0}, "x/b~": {"$tensor": 1}}}
    }
    check_tree(node, 2)
    assert dict(walk(node)) == {"x~1a": {"$tensor": 0}, "x~1b~0": {"$tensor": 1}}
    for nested in ([node], {"a": node}, {"$tuple": [node]}):
        with pytest.raises(FormatError, match="backend"):
            check_tree(nested, 2)


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [1, n], lambda n: {"a": {"$dict": [[1, n]]}},
                                  lambda n: {"$object": {"codec": "set", "value": {"$tuple": [n]}}},
                                  lambda n: {"$namedtuple": {"name": "P", "fields": {"x": n}}}], ids=range(5))  # fmt: skip
@pytest.mark.parametrize("node", BAD, ids=repr)
def test_what_is_no_tree_is_refused(node: Any, wrap: Any) -> None:
    with pytest.raises(FormatError) as caught:
        check_tree(wrap(node), 3)
    assert caught.value.kind == "tree"


def test_an_unknown_tag_asks_for_a_newer_version() -> None:
    with pytest.raises(FormatError, match=r"'\$frozen'.*upgrade"):
        check_tree([{"$frozen": []}], 0)


@pytest.mark.parametrize("layer", [lambda n: [n], lambda n: {"a": n}, lambda n: {"$tuple": [n]},
                                   lambda n: {"$object": {"codec": "set", "value": n}}], ids=range(4))  # fmt: skip
def test_a_deep_tree_is_refused_however_deep(layer: Any) -> None:
    node: Any = {"$tensor": 0}
    for _ in range(MAX_DEPTH):
        node = layer(node)
    check_tree(node, 1)
    assert list(tensor_paths(node).values()) == [0]
    for _ in range(100_000):
        node = layer(node)
    with pytest.raises(FormatError, match=f"over {MAX_DEPTH} levels"):
        check_tree(node, 1)
    while isinstance(node, (dict, list)):  # Python frees it with recursion otherwise
        node = node.popitem()[1] if isinstance(node, dict) else node.pop()


def test_the_greatest_depth_is_read_in_a_deep_stack() -> None:
    node: Any = {"$tensor": 0}
    for _ in range(MAX_DEPTH):
        node = {"$dict": [[1, node]]}

    def below(frames: int) -> Any:
        return below(frames - 1) if frames else rebuild(node, get, registry)

    state = below(400)
    for _ in range(MAX_DEPTH):
        state = state[1]
    assert state is TENSORS[0]


# -- whatever passes the check can be rebuilt, and raises nothing of its own

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
tags = st.sampled_from([*sorted(TAGS), "$x", "$"])
keys = st.text(string.ascii_letters + "$/~ ", max_size=4)
codecs = st.sampled_from(["set", "range", "slice", "datetime", "uuid", "decimal", "fraction", "numpy.scalar", "timedelta",
                          "path", "deque", "numpy.Generator", "numpy.RandomState", "frozenset", "time", "other"])  # fmt: skip


def bodies(node: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    key = st.sampled_from(["a", "", 1, None, True, 0.5, {"$int": "0x8000000000000000"}])
    return (
        st.fixed_dictionaries({"$tensor": st.integers(-1, 3)})
        | st.fixed_dictionaries({"$tuple": st.lists(node, max_size=3)})
        | st.fixed_dictionaries({"$dict": st.lists(st.tuples(key, node).map(list), max_size=3)})
        | st.fixed_dictionaries({"$int": st.sampled_from(["0x10", "-0xff", "12"])})
        | st.fixed_dictionaries({"$float": st.sampled_from(["7ff8000000000001", "7ff"])})
        | st.fixed_dictionaries({"$bytes": st.sampled_from(["YQ==", "YQ"])})
        | st.builds(lambda c, v: {"$object": {"codec": c, "value": v}}, codecs, node)
        | st.builds(
            lambda f: {"$namedtuple": {"name": "P", "fields": f}}, st.dictionaries(keys, node, max_size=3)
        )
        | st.builds(lambda t, v: {t: v}, tags, node)
    )


trees = st.recursive(
    scalars,
    lambda node: st.lists(node, max_size=3) | st.dictionaries(keys, node, max_size=3) | bodies(node),
    max_leaves=12,
)


@given(
    trees,
    st.sampled_from([None, "a", "a/*", ["1", "0"]]),
    st.sampled_from([None, {}, {"a": 1}, [], 0, (1, 2)]),
)
@settings(max_examples=5 * settings.default.max_examples)
def test_a_tree_is_refused_or_rebuilt(tree: Any, include: Any, like: Any) -> None:
    selection = Selection(include)
    try:
        check_tree(tree, len(TENSORS))
        list(walk(tree))
        selection.check(tree)
        if like is None:
            rebuild(tree, get, registry, selection)
        else:
            rebuild_like(tree, like, get, registry, selection)
    except CkptError as error:
        assert str(error)


@given(trees)
@settings(max_examples=5 * settings.default.max_examples)
def test_what_is_refused_is_refused_before_anything_is_built(tree: Any) -> None:
    try:
        check_tree(tree, len(TENSORS))
    except FormatError:
        return
    leaves = list(walk(tree))
    assert all(isinstance(path, str) for path, _ in leaves)
    try:
        rebuild(tree, get, registry)
    except FormatError as error:
        assert error.kind == "codec"
