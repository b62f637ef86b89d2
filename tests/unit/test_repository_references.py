"""Tags, pins and metric segments: small objects that say one thing, and what becomes of damaged ones."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from ckpt_core import clock, ids
from ckpt_core.errors import CorruptionError, ObjectNotFoundError, StoreError, UsageError
from ckpt_core.format.documents import Reference
from ckpt_core.format.sealed import seal
from ckpt_core.model import Attempt, MetricPoint
from ckpt_core.repository import MetricSegments, References
from ckpt_core.stores import MemoryStore

ONE, OTHER = ids.new_ulid(), ids.new_ulid()
ATTEMPT = Attempt(1, ONE, ONE)


class Broken(MemoryStore):
    """Fails to read every object whose key holds `victim`."""

    victim = "\0"

    def open(self, key: str) -> Any:
        if self.victim in key:
            raise StoreError("input/output error", kind="io", key=key)
        return super().open(key)


@pytest.fixture
def store() -> Broken:
    return Broken()


@pytest.fixture
def references(store: Broken) -> References:
    return References(store)


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("refs")]


# -- tags and pins


def test_a_tag_points_to_one_checkpoint_and_moves(store: Broken, references: References) -> None:
    references.set_tag("digits", "v 1", ONE)
    references.set_tag("other", "v 1", OTHER)
    assert references.of_experiment("digits") == ({"v 1": ONE}, set())
    references.set_tag("digits", "v 1", OTHER)
    assert references.of_experiment("digits") == ({"v 1": OTHER}, set())
    assert keys(store) == ["refs/digits/tags/v%201.json", "refs/other/tags/v%201.json"]
    references.remove_tag("digits", "v 1")
    references.remove_tag("digits", "v 1")
    assert references.of_experiment("digits") == ({}, set())
    assert references.of_experiment("none") == ({}, set())


def test_a_pin_holds_until_it_is_drawn(references: References) -> None:
    references.pin("digits", ONE)
    references.pin("digits", ONE)
    references.pin("digits", OTHER)
    assert references.of_experiment("digits") == ({}, {ONE, OTHER})
    references.unpin("digits", ONE)
    references.unpin("digits", ONE)
    assert references.of_experiment("digits") == ({}, {OTHER})


def test_a_reference_says_when_and_where(references: References) -> None:
    before = clock.now()
    references.set_tag("ä", "v1", ONE)
    ((key, found),) = references.all()
    assert references.read(key) == found
    assert (found.kind, found.name, found.experiment, found.checkpoint) == ("tags", "v1", "ä", ONE)
    assert before <= clock.from_text(found.created_at) <= clock.now()
    assert list(references.keys()) == [key]


@pytest.mark.parametrize("tag", ["", "a/b", "latest", "step=5", "a@b", ".x", "x\n", None, 5])
def test_what_cannot_be_a_tag_is_refused(store: Broken, references: References, tag: Any) -> None:
    with pytest.raises(UsageError):
        references.set_tag("digits", tag, ONE)
    assert keys(store) == []


@pytest.mark.parametrize(
    "hurt", [lambda data: data[:-1], lambda data: data.replace(b"1", b"2"), lambda data: b""]
)
def test_a_damaged_tag_is_left_out_and_a_damaged_pin_holds(
    store: Broken, references: References, caplog: pytest.LogCaptureFixture, hurt: Any
) -> None:
    references.set_tag("a b", "good", ONE)
    references.set_tag("a b", "hurt", ONE)
    references.pin("a b", OTHER)
    for key in ("refs/a%20b/tags/hurt.json", f"refs/a%20b/pins/{OTHER}.json"):
        store.put(key, hurt(store.get(key)))
        with pytest.raises(CorruptionError):
            references.read(key)
    with caplog.at_level(logging.WARNING, "ckpt_core"):
        assert references.of_experiment("a b") == ({"good": ONE}, {OTHER})
        found = {reference.kind: reference for _, reference in references.all()}
    assert "tag left out" in caplog.text
    assert "pin kept" in caplog.text
    assert (found["pins"].experiment, found["pins"].checkpoint) == ("a b", OTHER)


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("refs/digits/tags/other.json", {}), ("refs/other/tags/v1.json", {}), ("refs/digits/pins/v1.json", {}),
        ("refs/digits/v1.json", {}), ("refs/a%1B/tags/v1.json", {"experiment": "a\x1b"}),
        ("refs/digits/tags/x%0A.json", {"name": "x\n"}), ("refs/digits/other/v1.json", {"kind": "other"}),
    ],
)  # fmt: skip
def test_a_reference_that_lies_is_refused(
    store: Broken, references: References, key: str, facts: dict[str, str]
) -> None:
    true = {"kind": "tags", "name": "v1", "experiment": "digits"}
    store.put(
        key, seal(Reference(checkpoint=ONE, created_at=clock.to_text(clock.now()), **{**true, **facts}))
    )  # type: ignore[arg-type]
    with pytest.raises(CorruptionError) as caught:
        references.read(key)
    assert str(caught.value).isprintable()
    assert references.of_experiment("digits") == ({}, set())


def test_a_large_object_is_not_read(store: Broken, references: References) -> None:
    store.put("refs/digits/tags/v1.json", bytes(1 << 20))
    with pytest.raises(CorruptionError) as caught:
        references.read("refs/digits/tags/v1.json")
    assert caught.value.kind == "size"


def test_a_store_that_cannot_be_read_is_not_taken_for_one_without_pins(
    store: Broken, references: References
) -> None:
    references.pin("digits", ONE)
    references.set_tag("digits", "v1", ONE)
    for victim in ("pins", "tags"):
        store.victim = victim
        with pytest.raises(StoreError):
            references.of_experiment("digits")


def test_what_goes_while_it_is_listed_is_not_there(store: Broken, references: References) -> None:
    for tag in ("a", "b", "c"):
        references.set_tag("digits", tag, ONE)
    found = []
    for _, reference in references.all():
        found.append(reference.name)
        references.remove_tag("digits", "b")
    assert found == ["a", "c"]


# -- metric segments


def point(name: str, step: int, value: float, number: int = 1) -> MetricPoint:
    return MetricPoint(name, step, value, clock.now(), number)


def test_metrics_come_back_in_their_order(store: Broken) -> None:
    segments = MetricSegments(store)
    second = Attempt(2, OTHER, ONE, ONE, 7)
    written = [
        (ATTEMPT, [point("loss", 1, 0.5), point("ä", 1, math.inf), point("loss", 2, -0.0)]),
        (second, [point("loss", 8, 0.25, 2)]),
        (ATTEMPT, [point("loss", 3, -math.inf)]),
    ]
    made = [segments.append("a b", attempt, points) for attempt, points in written]
    segments.append("other", ATTEMPT, [point("x", 1, 1.0)])
    assert list(segments.keys("a b")) == [made[0], made[2], made[1]]
    assert len(list(segments.keys())) == 4
    assert list(segments.all("a b")) == [("a b", *written[n]) for n in (0, 2, 1)]
    assert segments.read(made[1]) == ("a b", second, written[1][1])


def test_a_nan_comes_back(store: Broken) -> None:
    segments = MetricSegments(store)
    _, _, points = segments.read(segments.append("e", ATTEMPT, [point("loss", 1, math.nan)]))
    assert math.isnan(points[0].value)


def test_damaged_segments_are_left_out(store: Broken, caplog: pytest.LogCaptureFixture) -> None:
    segments = MetricSegments(store)
    made = [segments.append("e", ATTEMPT, [point("loss", n, 0.5)]) for n in range(3)]
    store.put(made[1], store.get(made[1])[:-1])
    store.put("metrics/e/notes.txt", b"mine")
    with caplog.at_level(logging.WARNING, "ckpt_core"):
        assert [points[0].step for _, _, points in segments.all()] == [0, 2]
    assert caplog.text.count("left out") == 2


def test_a_segment_in_another_s_place_is_refused(store: Broken) -> None:
    segments = MetricSegments(store)
    key = segments.append("e", ATTEMPT, [point("loss", 1, 0.5)])
    moved = key.replace("/e/", "/other/")
    store.put(moved, store.get(key))
    with pytest.raises(CorruptionError, match="moved or copied"):
        segments.read(moved)
    with pytest.raises(ObjectNotFoundError):
        segments.read("metrics/e/none.json")


def test_segments_that_cannot_be_read_are_not_left_out_in_silence(store: Broken) -> None:
    segments = MetricSegments(store)
    segments.append("e", ATTEMPT, [point("loss", 1, 0.5)])
    store.victim = "metrics"
    with pytest.raises(StoreError):
        list(segments.all())
