"""Names that people choose become parts of keys, whatever is in them, and no two names the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.errors import UsageError
from ckpt_core.format.names import check_name, check_tag, encode_name, fault_in_stored
from ckpt_core.repository import layout
from ckpt_core.stores.contract import is_key

GOOD = ["digits", "a b", "ä", "名前", "run=5", "a.b-c_d~e", "x" * 255, "100%", "CON", "a..", "👩🏽", "%2E%2E"]
BAD = [
    "", " a", "a ", "\ta", "../x", "a/b", "a\\b", "a@b", ".hidden", "..", ".", "-rf", "x" * 256, "a\nb", "a\0b",
    "a\x1b[31mb", "a\u202eb", "a\u200bb", "a\u2028b", "\ud800", "a\x85b", "\ufeffa", "a\ue000b",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_a_good_name_is_taken_as_it_is(name: str) -> None:
    assert check_name(name, "an experiment's name") == name
    assert fault_in_stored(name) is None


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_name_is_refused_and_said_why(name: str) -> None:
    with pytest.raises(UsageError, match="choose another name") as caught:
        check_name(name, "an experiment's name")
    assert caught.value.kind == "name"
    assert caught.value.name == name
    assert str(caught.value).isascii()  # it may reach a terminal


@pytest.mark.parametrize("name", [None, 3, b"x", ["x"]])
def test_a_name_is_a_text(name: object) -> None:
    with pytest.raises(UsageError, match="must be a string"):
        check_name(name, "a tag")


@pytest.mark.parametrize("name", [name for name in BAD if name != "a\ue000b"], ids=ascii)
def test_a_bad_name_from_a_file_is_told(name: str) -> None:
    assert fault_in_stored(name)


def test_a_character_that_this_unicode_does_not_know_is_read_but_not_chosen() -> None:
    name = "a\U000e0fffb"
    assert fault_in_stored(name) is None
    with pytest.raises(UsageError):
        check_name(name, "a tag")


@pytest.mark.parametrize("tag", ["latest", "best", "step=5", "step="])
def test_a_tag_must_not_mean_something_else(tag: str) -> None:
    with pytest.raises(UsageError, match="choose another tag"):
        check_tag(tag)
    assert check_name(tag, "an experiment's name") == tag


@pytest.mark.parametrize("tag", ["latest2", "Best", "steps", "v1"])
def test_other_tags_are_fine(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("digits", "digits"), ("a b", "a%20b"), ("a/b", "a%2Fb"), ("../x", "%2E.%2Fx"), ("..", "%2E."), (".", "%2E"),
        ("~", "%7E"), ("%41", "%2541"), ("ä", "%C3%A4"), ("A", "A"), ("\0", "%00"), ("\udcff", "%ED%B3%BF"), ("", ""),
    ],
)  # fmt: skip
def test_a_name_is_encoded(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded


@given(st.text(min_size=1, max_size=300))
def test_whatever_a_name_is_its_keys_are_keys(name: str) -> None:
    encoded = encode_name(name)
    assert re.fullmatch(r"[A-Za-z0-9%~_-][A-Za-z0-9%~._-]{0,159}", encoded)
    ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    for key in (
        layout.manifest_key(name, 5, ulid), layout.pack_key(layout.pack_name(name, ulid, 0, 0)),
        layout.forward_key(layout.pack_name(name, ulid, 99999, 99999)), layout.reference_key(name, "tags", name),
        layout.segment_key(name, 7),
    ):  # fmt: skip
        assert is_key(key)


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_names_are_never_encoded_alike(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_long_names_differ_in_their_ends() -> None:
    assert encode_name("x" * 250 + "a") != encode_name("x" * 250 + "b")
    assert len(encode_name("ä" * 255)) == 157


# -- keys taken apart


def test_a_manifest_s_key_is_taken_apart() -> None:
    key = layout.manifest_key("a b", 42, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert key == "checkpoints/a%20b/000000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV.json"
    for each in (key, layout.trash_key(key)):
        assert layout.parse_manifest_key(each) == (each, "a%20b", 42, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    long = layout.manifest_key("e", 10**14, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    parsed = layout.parse_manifest_key(long)
    assert parsed is not None
    assert parsed.step == 10**14


@pytest.mark.parametrize(
    "key",
    [
        "checkpoints/e/000000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV", "checkpoints/000000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV.json",
        "checkpoints/e/42-01ARZ3NDEKTSV4RRFFQ69G5FAV.json", "checkpoints/e/000000000042-short.json", "checkpoints/e/x.json",
        "packs/e/000000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV.json", "checkpoints/e/-00000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV.json",
        "checkpoints/e/00000000004²-01ARZ3NDEKTSV4RRFFQ69G5FAV.json", "checkpoints/e/f/000000000042-01ARZ3NDEKTSV4RRFFQ69G5FAV.json",
    ],
)  # fmt: skip
def test_other_keys_are_no_manifest_s(key: str) -> None:
    assert layout.parse_manifest_key(key) is None


def test_a_reference_s_key_is_taken_apart() -> None:
    assert layout.parse_reference_key("refs/a%20b/tags/v1.json") == (
        "refs/a%20b/tags/v1.json",
        "a%20b",
        "tags",
        "v1",
    )
    for key in ("refs/e/other/v1.json", "refs/e/tags/v1", "refs/tags/v1.json", "packs/e/tags/v1.json"):
        assert layout.parse_reference_key(key) is None
