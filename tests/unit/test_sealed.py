"""Sealed documents: whatever is not exactly what was written is found by reading it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.format import documents
from ckpt_core.format.numbers import number_from, number_to
from ckpt_core.format.sealed import FORMAT, digest_bytes, digest_text, seal, seal_digest, unseal

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = "2026-01-31T12:00:00.000000Z"
REFERENCE: dict[str, Any] = {
    "format": 1, "kind": "tags", "name": "v1", "experiment": "digits", "checkpoint": ULID, "created_at": NOW,
}  # fmt: skip


def read(document: Any, kind: Any = documents.Reference) -> Any:
    return unseal(seal(document), kind, "refs/x")


def test_a_document_comes_back() -> None:
    reference = documents.Reference(kind="pins", name="ä", experiment="e", checkpoint=ULID, created_at=NOW)
    data = seal(reference)
    assert unseal(data, documents.Reference, "x") == reference
    assert data.endswith(b'","sha256":"' + seal_digest(data).encode() + b'"}')
    assert msgspec.json.decode(data)["sha256"] == seal_digest(data)


def test_a_digest_is_written_in_one_way() -> None:
    digest = sha256(b"x").digest()
    text = digest_text(digest)
    assert digest_bytes(text) == digest
    other_ending = text[:-1] + chr(ord(text[-1]) + 1)  # the last character has two bits that say nothing
    for wrong in (other_ending, text[:-1] + "?", text[:-1], text + "A", "", "\udc80" * 43, "=" * 43):
        assert digest_bytes(wrong) is None, wrong


def test_every_flipped_bit_is_found() -> None:
    data = seal(REFERENCE)
    for at in range(len(data)):
        for bit in range(8):
            hurt = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            with pytest.raises(CorruptionError) as caught:
                unseal(hurt, documents.Reference, "refs/x")
            assert caught.value.key == "refs/x"


def test_every_cut_is_found() -> None:
    data = seal(REFERENCE)
    for cut in range(len(data)):
        for hurt in (data[:cut], data[cut + 1 :]):
            with pytest.raises(CorruptionError):
                unseal(hurt, documents.Reference, "refs/x")
    for hurt in (data + b"\n", data + data, b" " + data):
        with pytest.raises(CorruptionError):
            unseal(hurt, documents.Reference, "refs/x")


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(FormatError, match="upgrade") as caught:
        read({"format": FORMAT + 1, "all": "else may differ"})
    assert (caught.value.kind, caught.value.format) == ("newer", FORMAT + 1)


def test_members_that_are_not_known_are_passed_over() -> None:
    assert read({**REFERENCE, "later": {"x": 1}}).name == "v1"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0}, {"format": "1"}, {"format": None}, {"kind": "other"}, {"name": 1}, {"checkpoint": "x"},
        {"checkpoint": ULID + "\n"}, {"checkpoint": "8" + ULID[1:]}, {"checkpoint": ULID.lower()}, {"created_at": "x" * 27},
        {"created_at": "2026-02-30T12:00:00.000000Z"}, {"created_at": NOW + "\n"}, {"experiment": None},
    ],
    ids=repr,
)  # fmt: skip
def test_members_of_other_kinds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptionError, match="refs/x is damaged") as caught:
        read({**REFERENCE, **change})
    assert caught.value.kind == "document"


@pytest.mark.parametrize("member", REFERENCE)
def test_members_that_are_missing_are_missed(member: str) -> None:
    with pytest.raises(CorruptionError):
        read({name: value for name, value in REFERENCE.items() if name != member})


def sealed(body: bytes) -> bytes:
    """A body that may be no document, with a seal that fits."""
    return body + b',"sha256":"' + digest_text(sha256(body).digest()).encode() + b'"}'


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[1", b'{"format":1,"state":' + b"[" * 5000, b'{"format":1,"state":' + b"1" * 5000, b'{"format":1e999',
        b'{"format":1,"a":"\xff"', b'{"format":1,"a":"\\ud800"', b'{"format":1,"format":2', b'{"format":true', b"null",
        b'{"format":1,"state":NaN', b'{"format":-1', b'{"format":99999999999999999999',
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_bodies_that_are_no_json_of_ours_are_refused(body: bytes) -> None:
    for kind in (documents.Manifest, documents.Reference, dict):
        with pytest.raises((CorruptionError, FormatError)):
            unseal(sealed(body), kind, "x")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for each in (data, sealed(data)):
        with pytest.raises((CorruptionError, FormatError)):
            unseal(each, documents.Reference, "x")


# -- records within documents

ROW = {"format": 1, "experiment": "e", "attempt": {"number": 1, "id": ULID, "lineage": ULID}}


@pytest.mark.parametrize("value", [0.5, 3, "nan", "inf", "-inf"])
def test_metric_values_are_numbers_or_their_names(value: Any) -> None:
    found = read({**ROW, "rows": [["loss", 1, value, NOW]]}, documents.MetricSegment)
    assert str(number_from(found.rows[0].value)) == str(float(value))


@pytest.mark.parametrize(
    "row",
    [
        ["loss", 1, "NaN", NOW], ["loss", 1, None, NOW], ["loss", 1.5, 0.5, NOW], ["loss", 2**63, 0.5, NOW],
        ["loss", 1, 0.5, "x" * 27], ["loss", 1, 0.5], [1, 1, 0.5, NOW], {"name": "loss"}, ["loss", 1, "0.5", NOW],
    ],
    ids=repr,
)  # fmt: skip
def test_metric_rows_of_other_kinds_are_refused(row: Any) -> None:
    with pytest.raises(CorruptionError):
        read({**ROW, "rows": [row]}, documents.MetricSegment)


@pytest.mark.parametrize(
    "name",
    [
        "e/../x.safetensors", "../e/x.safetensors", "/e/x.safetensors", "e/x.json", "e/x/y.safetensors", "x.safetensors",
        "e/x.safetensors\n", "..e/x.safetensors", ".e/x.safetensors", "e/x\\y.safetensors", "é/x.safetensors", "e /x.safetensors",
        "e/.safetensors", "e/x.safetensors.safetensors", "x" * 400 + "/x.safetensors", "e/x\0.safetensors",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_pack_s_name_leads_nowhere_else(name: str) -> None:
    digest = "A" * 43
    good = documents.PackRecord("a%20b/01ARZ-0-0.safetensors", 5, 5, digest)
    assert msgspec.json.decode(msgspec.json.encode(good), type=documents.PackRecord) == good
    record = {"name": name, "size": 5, "header_size": 5, "header": digest}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(record), type=documents.PackRecord)


@pytest.mark.parametrize(
    "digest",
    ["", "A" * 42, "A" * 44, "A" * 42 + "\n", "A" * 43 + "\n", "A" * 42 + "=", "A" * 42 + "/", "Ä" * 43],
)
def test_a_digest_has_its_form(digest: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode([digest, 0, 0]), type=documents.Chunk)


@given(st.floats())
def test_a_number_comes_back(value: float) -> None:
    stored = msgspec.json.decode(msgspec.json.encode(number_to(value)))
    assert str(number_from(stored)) == str(value)


def test_other_texts_are_no_numbers() -> None:
    with pytest.raises(CorruptionError):
        number_from("1.0")  # type: ignore[arg-type]
