"""`ckpt undelete`: what can be brought back, by which names, and what a prune leaves for it."""

from __future__ import annotations

from pathlib import Path

from ckpt_core.repository.leases import Leases
from ckpt_core.stores import LocalStore
from cli.calls import Call


def test_what_was_forgotten_comes_back(ckpt: Call, store: Path) -> None:
    before = ckpt("ls", "--all", "-q").out.split()
    answer = ckpt("forget", "mnist@step=10")
    assert "for a day `ckpt undelete` brings it back" in answer.out
    (gone,) = set(before) - set(ckpt("ls", "--all", "-q").out.split())
    listed = ckpt("undelete")
    assert "mnist" in listed.out
    assert "23 h" in listed.out
    assert ckpt("undelete", "-q").out.split() == [gone]
    answer = ckpt("prune")
    assert "`ckpt undelete` can still bring" in answer.err
    answer = ckpt("undelete", "mnist@step=10")
    assert answer.code == 0
    assert f"brought back mnist step 10 ({gone})" in answer.out
    assert "ckpt pin" in answer.err
    assert ckpt("ls", "--all", "-q").out.split() == before
    assert "nothing can be brought back" in ckpt("undelete").out
    assert ckpt("verify", "mnist@step=10").code == 0


def test_as_json(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10", "mnist@step=20")
    found = ckpt("undelete", "--json").data["can_be_brought_back"]
    assert [record["step"] for record in found] == [10, 20]
    assert all(80_000 < record["seconds_left"] <= 86_400 for record in found)
    back = ckpt("undelete", found[0]["id"][:20].lower(), "step=20", "--json").data["back"]
    assert [record["step"] for record in back] == [10, 20]


def test_a_slip_changes_nothing(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10")
    answer = ckpt("undelete", "mnist@step=10", "step=11")
    assert answer.code == 1
    assert "no forgotten checkpoint" in answer.err
    assert len(ckpt("undelete", "-q").out.split()) == 1
    assert ckpt("undelete", "x").code == 2


def test_what_was_pruned_at_once_does_not_come_back(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10", "--prune")
    assert ckpt("undelete", "mnist@step=10").code == 1
    ckpt("forget", "mnist@step=20")
    assert ckpt("prune", "--now", "--json").data["done"]["manifests"] == 1
    assert ckpt("undelete", "mnist@step=20").code == 1


def test_while_somebody_prunes_it_says_so(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10")
    with Leases(LocalStore(store), "another machine/1/2/3").take("prune", lock="maintenance"):
        for command in (("undelete", "step=10"), ("prune",)):
            answer = ckpt(*command)
            assert answer.code == 11
            assert "another prune" in answer.err
    assert ckpt("undelete", "step=10").code == 0
