"""Manifests that are intact and lie: refused by our own errors, before they cost memory or lead anywhere."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_core.errors import CkptError, CorruptionError, FormatError
from ckpt_core.format.sealed import digest_text, seal
from ckpt_core.repository import Repository
from ckpt_core.stores import MemoryStore
from contract.store_case import commit, load, new_repository


def forge(change: Any) -> tuple[Repository, str]:
    """A store whose one manifest was changed by hand and sealed again."""
    repository = new_repository(MemoryStore())
    state = {"w": np.arange(1500.0), "e": np.zeros((0, 2)), "t": (1, {"x": [2**70, b"x"]})}
    committed = commit(repository, state)
    document = msgspec.json.decode(repository.store.get(committed.key))
    del document["sha256"]
    document = change(document) or document
    repository.store.put(committed.key, seal(document))
    return repository, committed.key


def put(path: str, value: Any) -> Any:
    """Sets a member deep in a document: `tensors.0.1` is the shape of the first tensor."""

    def change(document: Any) -> None:
        *folders, last = path.split(".")
        for part in folders:
            document = document[int(part) if isinstance(document, list) else part]
        document[int(last) if isinstance(document, list) else last] = value

    return change


def test_what_is_not_changed_is_read() -> None:
    repository, key = forge(lambda document: None)
    assert load(repository, key)["w"].size == 1500


CHUNK = ["A" * 43, 0, 0]
LIES = [
    # which one it is
    ("experiment", "other"), ("experiment", "../x"), ("step", 2), ("step", -1), ("step", 2**63), ("step", "1"),
    ("id", "01ARZ3NDEKTSV4RRFFQ69G5FAV"), ("id", 5), ("created_at", "yesterday"), ("created_at", "2026-99-01T00:00:00.000000Z"),
    ("attempt", {}), ("attempt.number", 0), ("attempt.number", 2**64), ("attempt.id", "x"), ("parent", "x"), ("parent", 1),
    ("metrics", {"loss": "big"}), ("metrics", []), ("writer", None), ("chunk_bytes", 0), ("chunk_bytes", 2**40), ("packs", None),
    # tensors
    ("tensors.0.0", "F16"), ("tensors.0.0", "float32"), ("tensors.0.0", "|O8"), ("tensors.0.0", "ml:finfo"), ("tensors.0.0", "x" * 10**5),
    ("tensors.0.1", [1501]), ("tensors.0.1", [10**9]), ("tensors.0.1", [2**62, 2**62]), ("tensors.0.1", [-1]), ("tensors.0.1", [0]),
    ("tensors.0.1", [1500.0]), ("tensors.0.1", "1500"), ("tensors.0.1", [1] * 65 + [1500]), ("tensors.0.1", [2**63]),
    ("tensors.1.1", [0, 2**62, 2**62]), ("tensors.1.1", [0] * 65), ("tensors.1.1", [1]),
    ("tensors.0.2", []), ("tensors.0.2", [{}]), ("tensors.0.2", [{"chunks": []}]), ("tensors.0.2", [{"chunks": [CHUNK]}]),
    ("tensors.0.2.0.offset", [0]), ("tensors.0.3", 5), ("tensors.0", {}), ("tensors.0", []), ("tensors", []), ("tensors", {}),
    ("tensors.0.2.0.chunks.0.0", "short"), ("tensors.0.2.0.chunks.0.1", 1), ("tensors.0.2.0.chunks.0.1", -1),
    ("tensors.0.2.0.chunks.0.2", 2**61), ("tensors.0.2.0.chunks.2.2", 2**62), ("tensors.0.2.0.chunks.0.2", -8),
    ("tensors.0.2.0.chunks.0", [1]), ("tensors.0.2.0.chunks.0", None),
    # packs
    ("packs", []), ("packs.0.name", "../../etc/passwd"), ("packs.0.name", "e/../../x.safetensors"), ("packs.0.name", "/x.safetensors"),
    ("packs.0.name", "digits/x.json"), ("packs.0.size", 5), ("packs.0.size", -1), ("packs.0.header", "x"), ("packs.0", []),
    # the tree
    ("state", {"$tensor": 2}), ("state", {"$tensor": -1}), ("state", {"$new": 1}), ("state", {"$dict": [[{"$tensor": 0}, 1]]}),
    ("state", {"$tuple": 5}), ("state", [[{"$object": {}}]]), ("state", {"$int": "five"}), ("state.t", {"$bytes": "?"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), LIES, ids=lambda value: repr(value)[:40])
def test_a_lie_is_refused_when_the_manifest_is_read(path: str, value: Any) -> None:
    repository, key = forge(put(path, value))
    with pytest.raises(
        (CorruptionError, FormatError), match=r"damaged|cannot be read|not known|upgrade|moved|whole bytes"
    ):
        repository.read(key)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("packs.0.name", "digits/01ARZ3NDEKTSV4RRFFQ69G5FAV-0-0.safetensors"), ("packs.0.size", 2**62), ("packs.0.header_size", 2**62),
        ("packs.0.header_size", 0), ("packs.0.header", "A" * 43), ("tensors.0.2.0.chunks.0.0", "A" * 43), ("tensors.0.2.0.chunks.0.2", 0),
        ("tensors.0.0", "F4"), ("tensors.0.1", [3, 500]),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_lie_about_the_packs_is_found_when_they_are(path: str, value: Any) -> None:
    if path == "tensors.0.0":
        repository, key = forge(lambda d: put("tensors.0.1", [24000])(d) or put(path, value)(d))
    else:
        repository, key = forge(put(path, value))
    if path in ("tensors.0.0", "tensors.0.1"):  # the same bytes, read another way: a digest cannot know
        assert load(repository, key)["w"].size in (24000, 1500)
        return
    with pytest.raises(CorruptionError):
        load(repository, key)


def test_a_newer_format_asks_for_an_upgrade() -> None:
    repository, key = forge(put("format", 3))
    with pytest.raises(FormatError, match="upgrade") as caught:
        repository.read(key)
    assert caught.value.kind == "newer"


def test_a_tensor_in_several_shards_asks_for_an_upgrade() -> None:
    repository, key = forge(lambda d: put("tensors.0.2", [{"chunks": [CHUNK]}, {"chunks": [CHUNK]}])(d))
    with pytest.raises(FormatError, match="upgrade") as caught:
        repository.read(key)
    assert caught.value.kind == "sharded"


@pytest.mark.parametrize("name", ["../x", "a\x1b[31m", " a", "x" * 256])
def test_an_experiment_s_name_from_a_file_is_checked(name: str) -> None:
    repository = new_repository(MemoryStore())
    committed = commit(repository, {"x": 1}, experiment=name)
    with pytest.raises(CorruptionError, match="its experiment") as caught:
        repository.read(committed.key)
    assert str(caught.value).isprintable()


def test_members_that_later_versions_add_are_passed_over() -> None:
    repository, key = forge(lambda d: d | {"later": [1]} | {"attempt": d["attempt"] | {"later": 1}})
    assert load(repository, key)["w"].size == 1500


def test_a_number_of_many_digits_is_no_trouble() -> None:
    repository, key = forge(lambda d: None)
    data = repository.store.get(key)
    body = data[: data.rindex(b',"sha256"')].replace(b'"step":1', b'"step":' + b"1" * 5000)
    repository.store.put(key, body + b',"sha256":"' + digest_text(sha256(body).digest()).encode() + b'"}')
    with pytest.raises(CorruptionError):
        repository.read(key)


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=4)
    | st.just([])
    | st.just({})
)


@st.composite
def changes(draw: st.DrawFn) -> Any:
    """Replaces, deletes or doubles something at a random place of a manifest."""
    what = draw(st.sampled_from(["replace", "delete", "double"]))
    value = draw(values)
    turns = draw(st.lists(st.integers(0, 50), min_size=1, max_size=7))

    def change(document: Any) -> None:
        node = document
        for turn in turns:
            if not isinstance(node, (dict, list)) or not node:
                break
            parent, where = node, list(node)[turn % len(node)] if isinstance(node, dict) else turn % len(node)
            node = node[where]
        if what == "replace":
            parent[where] = value
        elif what == "delete":
            del parent[where]
        elif isinstance(parent, list):
            parent.append(node)
        else:
            parent[str(where) + "x"] = node

    return change


@given(st.lists(changes(), min_size=1, max_size=2))
@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_changed_the_errors_are_ours(several: list[Any]) -> None:
    def change(document: Any) -> None:
        for each in several:
            if document:
                each(document)

    try:
        repository, key = forge(change)
    except AssertionError:  # nothing is left that could be sealed
        return
    try:
        load(repository, key)
        repository.read(key).checkpoint()
    except CkptError as error:
        assert str(error)
