"""`ckpt tag`, `pin` and `unpin`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import CheckpointManager
from cli.calls import Call


def tags(ckpt: Call) -> dict[str, int]:
    return {f"{t['experiment']}@{t['tag']}": t["step"] for t in ckpt("tag", "--json").data["tags"]}


def test_a_tag_is_set_and_moves(ckpt: Call) -> None:
    before = {"digits@release-1": 500, "digits@warm": 100, "mnist@release-1": 20}
    assert tags(ckpt) == before
    answer = ckpt("tag", "mnist@step=30", "release-1", "final")
    assert answer.code == 0
    assert "moved from step 20" in answer.out
    assert tags(ckpt) == before | {"mnist@release-1": 30, "mnist@final": 30}
    assert ckpt("show", "mnist@final", "--json").data["tags"] == ["final", "release-1"]
    data = ckpt("tag", "mnist@step=10", "final", "--json").data
    assert list(data["moved_from"]) == ["final"]


def test_tags_are_known_to_the_store_itself(ckpt: Call, store: Path) -> None:
    ckpt("tag", "mnist@latest", "kept")
    for path in store.glob("catalog.db*"):
        path.unlink()
    assert ckpt("reindex", "--json").data["tags"] == 4
    assert tags(ckpt)["mnist@kept"] == 30


def test_tags_are_listed(ckpt: Call) -> None:
    assert ckpt("tag", "-q").out.split() == ["digits@release-1", "digits@warm", "mnist@release-1"]
    assert ckpt("tag").out.splitlines()[1].split()[:2] == ["digits@release-1", "500"]
    ckpt("tag", "--delete", "digits@release-1", "warm", "mnist@release-1")
    assert "there are no tags" in ckpt("tag").out


def test_tags_are_deleted(ckpt: Call) -> None:
    answer = ckpt("tag", "-d", "warm", "mnist@release-1", "--json")
    assert [(row["experiment"], row["tag"]) for row in answer.data["deleted"]] == [
        ("digits", "warm"),
        ("mnist", "release-1"),
    ]
    assert tags(ckpt) == {"digits@release-1": 500}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("release-1",), 2), (("nothing",), 1), ((), 2), (("warm", "nothing"), 1), (("nowhere@warm",), 1)],
)
def test_a_tag_that_cannot_be_deleted_deletes_none(arguments: tuple[str, ...], code: int, ckpt: Call) -> None:
    assert ckpt("tag", "--delete", *arguments).code == code
    assert len(tags(ckpt)) == 3


@pytest.mark.parametrize("name", ["latest", "best", "step=3", "", " x", "a/b", "a@b", "x\x1b", "-x"])
def test_a_name_that_no_tag_may_have(name: str, ckpt: Call) -> None:
    answer = ckpt("tag", "mnist@latest", "--", name)
    assert (answer.code, len(tags(ckpt))) == (2, 3), answer


def test_a_slip_sets_no_tag(ckpt: Call) -> None:
    assert ckpt("tag", "mnist@latest", "good", "latest").code == 2
    assert len(tags(ckpt)) == 3


def test_a_tag_without_a_name_is_asked_for(ckpt: Call) -> None:
    answer = ckpt("tag", "mnist@latest")
    assert (answer.code, "name the tag" in answer.err) == (2, True)


def test_pins(ckpt: Call) -> None:
    data = ckpt("pin", "digits@warm", "digits@step=300", "digits@warm", "--json").data["checkpoints"]
    assert [(row["step"], row["pinned"], row["changed"]) for row in data] == [
        (100, True, True),
        (300, True, True),
    ]
    assert ckpt("show", "digits@warm", "--json").data["pinned"]
    assert "as it was" in ckpt("pin", "digits@warm").out
    assert ckpt("unpin", "digits@warm").out.startswith("unpinned digits step 100")
    assert not ckpt("show", "digits@warm", "--json").data["pinned"]


def test_a_slip_pins_nothing(ckpt: Call) -> None:
    assert ckpt("pin", "digits@warm", "digits@typo").code == 1
    assert not ckpt("show", "digits@warm", "--json").data["pinned"]


def test_marks_are_written_down(ckpt: Call, store: Path) -> None:
    ckpt("tag", "mnist@latest", "kept")
    ckpt("pin", "mnist@latest")
    with CheckpointManager(store, experiment="mnist") as manager:
        events = [entry.event for entry in manager.workspace.index.catalog().audit_log(limit=2)]
    assert events == ["pin", "tag"]
