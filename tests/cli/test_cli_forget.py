"""`ckpt forget` and `ckpt prune`: a plan that is shown, then done; nothing more than it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from cli.calls import Call, ids, model


def decisions(ckpt: Call, *arguments: str) -> dict[str, tuple[bool, str]]:
    """What is decided of each checkpoint: `digits/1/100` is that of attempt 1, step 100."""
    rows = ckpt("forget", *arguments, "--dry-run", "--json").data["decisions"]
    return {
        f"{c['experiment']}/{c['attempt']['number']}/{c['step']}": (row["keep"], ", ".join(row["reasons"]))
        for row in rows
        for c in [row["checkpoint"]]
    }


def kept(ckpt: Call, *arguments: str) -> list[str]:
    return [name for name, (keep, _) in decisions(ckpt, *arguments).items() if keep]


def test_policies_work_on_each_lineage(ckpt: Call) -> None:
    found = decisions(ckpt, "--keep-last", "2")
    assert len(found) == 10
    assert kept(ckpt, "--keep-last", "2") == [
        "digits/1/300", "digits/2/300", "digits/2/500", "digits/3/100", "mnist/1/20", "mnist/1/30",
    ]  # fmt: skip
    assert found["digits/1/300"] == (True, "pinned")
    assert found["digits/2/500"] == (True, "last 2, newest")
    assert found["digits/1/400"] == (False, "kept by none of: last 2")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--keep-best", "1", "--metric", "val_loss", "--mode", "min", "-e", "mnist"), ["30"]),
        (("--keep-best", "1", "--metric", "val_loss", "--mode", "max", "-e", "mnist"), ["10", "30"]),
        (("--keep-every-steps", "20", "-e", "mnist"), ["20", "30"]),
        (("--keep-every-minutes", "0.000001", "-e", "mnist"), ["10", "20", "30"]),
        (("--keep-tagged", "-e", "mnist"), ["20", "30"]),
        (("--keep-tagged", "nothing*", "-e", "mnist"), ["30"]),
        (("--keep-tagged=release-?", "-e", "mnist"), ["20", "30"]),
        (("--keep-within", "1 B", "-e", "mnist"), ["30"]),
        (("--keep-within", "1 GiB", "-e", "mnist"), ["10", "20", "30"]),
        (("--keep-tagged", "--keep-every-steps", "10", "-e", "mnist"), ["10", "20", "30"]),
    ],
)
def test_each_policy(options: tuple[str, ...], expected: list[str], ckpt: Call) -> None:
    assert [name.rpartition("/")[2] for name in kept(ckpt, *options)] == expected


@pytest.mark.parametrize("option", ["--keep-hourly", "--keep-daily", "--keep-weekly"])
def test_spaced_policies(option: str, ckpt: Call) -> None:
    found = decisions(ckpt, option, "1", "-e", "mnist")
    assert found["mnist/1/30"][0]
    assert option.removeprefix("--keep-") in found["mnist/1/30"][1]


def test_a_dry_run_changes_nothing(ckpt: Call, store: Path) -> None:
    before = sorted(
        (path.relative_to(store), path.stat().st_size)
        for path in store.rglob("*")
        if "catalog" not in path.name
    )
    answer = ckpt("forget", "--keep-last", "1", "--dry-run")
    assert answer.code == 0
    assert "would forget 6 of 10 checkpoints" in answer.out
    after = sorted(
        (path.relative_to(store), path.stat().st_size)
        for path in store.rglob("*")
        if "catalog" not in path.name
    )
    assert before == after
    assert len(ids(ckpt)) == 10


def test_what_is_decided_is_done(ckpt: Call, store: Path) -> None:
    doomed = ckpt("forget", "--keep-last", "1", "--dry-run", "-q").out.split()
    answer = ckpt("forget", "--keep-last", "1", "--json")
    assert answer.code == 0
    assert sorted(answer.data["forgotten"]) == sorted(doomed)
    assert set(ids(ckpt)).isdisjoint(doomed)
    assert len(ids(ckpt)) == 10 - len(doomed) == 4
    assert len(list(store.glob("trash/*/*[0-9A-Z].json"))) == len(doomed)
    assert ckpt("forget", "--keep-last", "1").out.endswith("nothing to forget\n")


@pytest.mark.parametrize("together", [True, False])
def test_the_bytes_that_are_told_are_the_bytes_that_come_free(
    together: bool, ckpt: Call, store: Path
) -> None:
    def stored() -> int:
        return sum(path.stat().st_size for path in store.glob("packs/*/*"))

    before = stored()
    plan = ckpt("forget", "--keep-last", "1", "--dry-run", "--json").data
    assert plan["frees"] == sum(row["frees"] for row in plan["decisions"]) > 0
    assert all(row["frees"] == 0 for row in plan["decisions"] if row["keep"])
    if together:
        freed = ckpt("forget", "--keep-last", "1", "--prune", "--json").data["freed"]
    else:
        ckpt("forget", "--keep-last", "1")
        assert stored() == before
        assert ckpt("prune", "--now", "--dry-run", "--json").data["plan"]["frees"] == plan["frees"]
        freed = ckpt("prune", "--now", "--json").data["done"]["freed"]
    assert freed == plan["frees"] == before - stored()
    assert ckpt("verify").code == 0


def test_shared_bytes_are_counted_once_and_only_if_they_go(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "shared"
    state = {"big": np.random.default_rng(0).standard_normal(300_000), "small": np.zeros(4)}
    with CheckpointManager(root, experiment="x") as manager:
        for step in (1, 2, 3):
            state["small"] = state["small"] + 1
            manager.save(state, step=step, wait=True)
    rows = ckpt("forget", "step=1", "--dry-run", "--json", at=root).data
    assert rows["frees"] == 0  # the others stand on its pack
    rows = ckpt("forget", "step=2", "--dry-run", "--json", at=root).data
    assert 0 < rows["frees"] < 10_000
    rows = ckpt("forget", "--all-of", "x", "--dry-run", "--json", at=root).data
    parts = {row["checkpoint"]["step"]: row["frees"] for row in rows["decisions"]}
    assert parts[1] == 0
    assert parts[3] > 2_400_000
    assert rows["frees"] == sum(path.stat().st_size for path in root.glob("packs/*/*"))


def test_bytes_that_are_free_to_go_already_are_not_counted_again(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "half"
    random = np.random.default_rng(0)
    with CheckpointManager(root, experiment="x") as manager:
        state = {name: random.standard_normal(300_000) for name in "abcd"}
        manager.save(state, step=1, wait=True)
        state |= {name: random.standard_normal(300_000) for name in "abc"}
        manager.save(state, step=2, wait=True)
        manager.save({"e": random.standard_normal(10)}, step=3, wait=True)
        manager.forget("step=1", grace=0)
    before = ckpt("prune", "--now", "--dry-run", "--json", at=root).data["plan"]
    assert [row["dead_bytes"] for row in before["rewrites"]] == [3 * 2_400_000]
    found = ckpt("forget", "step=2", "--json", at=root).data["frees"]
    after = ckpt("prune", "--now", "--dry-run", "--json", at=root).data["plan"]["frees"]
    assert found == after - before["frees"] > 4 * 2_400_000


def test_checkpoints_by_name(ckpt: Call) -> None:
    before = ids(ckpt, "mnist")
    answer = ckpt("forget", "mnist@step=10", before[1][:20])
    assert answer.code == 0
    assert "forgot 2 checkpoints" in answer.out
    assert ids(ckpt, "mnist") == before[2:]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((), "usage"),
        (("mnist@latest", "--keep-last", "1"), "usage"),
        (("--all-of", "mnist", "--keep-last", "1"), "usage"),
        (("-e", "mnist"), "usage"),
        (("mnist@latest", "-e", "mnist"), "usage"),
        (("--keep-best", "1"), "metric"),
        (("--keep-best", "1", "--metric", "val_loss"), "metric"),
        (("--keep-last", "0"), "usage"),
        (("--keep-within", "many"), "size"),
        (("mnist@step=10", "mnist@step=20", "mnist@step=30"), "everything"),
        (("digits@step=300", "digits@step=400"), None),
        (("--all-of", "digits"), "pinned"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(
    arguments: tuple[str, ...], kind: str | None, ckpt: Call
) -> None:
    answer = ckpt("forget", *arguments, "--json")
    if kind is None:
        assert answer.code == 0
        return
    assert (answer.code, answer.error["kind"]) == (2, kind)
    assert len(ids(ckpt)) == 10


def test_a_metric_that_nothing_carries_forgets_nothing(ckpt: Call) -> None:
    answer = ckpt("forget", "--keep-best", "1", "--metric", "accuracy", "--mode", "max")
    assert (answer.code, "digits" in answer.err) == (1, True)
    assert len(ids(ckpt)) == 10


def test_an_unknown_experiment(ckpt: Call) -> None:
    assert ckpt("forget", "-e", "nothing", "--keep-last", "1").code == 1
    assert ckpt("forget", "--all-of", "nothing").code == 1


def test_a_pin_keeps_a_checkpoint_from_being_forgotten(ckpt: Call) -> None:
    pinned = next(row["id"] for row in ckpt("ls", "--json").data["checkpoints"] if row["pinned"])
    answer = ckpt("forget", pinned)
    assert (answer.code, "ckpt unpin" in answer.err) == (2, True)
    ckpt("unpin", pinned)
    assert ckpt("forget", pinned).code == 0


def test_a_whole_experiment_by_its_name(ckpt: Call) -> None:
    answer = ckpt("forget", "--all-of", "mnist")
    assert answer.code == 0
    assert ckpt("ls", "mnist").code == 1
    assert len(ids(ckpt)) == 7


def test_a_damaged_checkpoint_can_be_forgotten(ckpt: Call, store: Path) -> None:
    ckpt("ls")
    manifest = sorted(store.glob("checkpoints/mnist/*.json"))[0]
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert ckpt("prune", "--now").code == 4
    answer = ckpt("forget", "mnist@step=10", "--json")
    assert answer.code == 0
    assert len(ids(ckpt, "mnist")) == 2
    other = sorted(store.glob("checkpoints/mnist/*.json"))[0]
    other.write_bytes(other.read_bytes()[:-40])
    answer = ckpt("forget", "digits@step=400")
    assert (answer.code, "cannot be told" in answer.err) == (0, True)


def test_a_damaged_checkpoint_that_the_catalog_lost_can_be_forgotten_by_its_id(
    ckpt: Call, store: Path
) -> None:
    first = ids(ckpt, "mnist")[0]
    manifest = sorted(store.glob("checkpoints/mnist/*.json"))[0]
    manifest.write_bytes(manifest.read_bytes()[:-40])
    ckpt("reindex")
    assert ckpt("show", first).code == 1
    answer = ckpt("forget", first[:20], "--json")
    assert (answer.code, answer.data["forgotten"]) == (0, [first])
    assert ckpt("prune", "--now").code == 0
    assert ckpt("doctor").code == 0
    assert len(ids(ckpt, "mnist")) == 2


def test_one_that_is_gone_already_is_told(ckpt: Call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process forgets it between the plan and the deed: when the plan is confirmed."""
    from ckpt_core.cli.call import Call as CommandCall

    def meanwhile(call: CommandCall, question: str) -> None:
        with CheckpointManager(store, experiment="mnist") as manager:
            manager.forget("step=10")

    monkeypatch.setattr(CommandCall, "confirm", meanwhile)
    answer = ckpt("forget", "mnist@step=10", "mnist@step=20", "--json")
    assert answer.code == 3
    assert len(answer.data["forgotten"]) == 1
    assert "another process" in answer.err


# -- prune ----------------------------------------------------------------------------------------


def test_prune_shows_its_plan_and_does_it(ckpt: Call, store: Path) -> None:
    assert "nothing to prune" in ckpt("prune", "--now").out
    ckpt("forget", "--keep-last", "1")
    answer = ckpt("prune", "--now", "--dry-run")
    assert "would be reclaimed" in answer.out
    assert "6 forgotten checkpoints, 2 dangling tags and pins would go for good" in answer.out
    assert len(list(store.glob("trash/*/*[0-9A-Z].json"))) == 6
    assert ckpt("prune", "--now", "--dry-run", "-q").out.strip().isdecimal()
    answer = ckpt("prune", "--now")
    assert "reclaimed" in answer.out
    assert list(store.glob("trash/*/*.json")) == []
    assert ckpt("verify").code == 0


def test_prune_rewrites_half_dead_packs(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "half"
    random = np.random.default_rng(0)
    state: dict[str, Any] = {name: random.standard_normal(300_000) for name in "abcd"}
    with CheckpointManager(root, experiment="x") as manager:
        manager.save(state, step=1, wait=True)
        state |= {name: random.standard_normal(300_000) for name in "abc"}
        manager.save(state, step=2, wait=True)
    plan = ckpt("forget", "step=1", "--dry-run", "--json", at=root).data
    assert plan["frees"] >= 3 * 2_400_000
    ckpt("forget", "step=1", at=root)
    assert "rewrite" in ckpt("prune", "--now", "--dry-run", at=root).out
    done = ckpt("prune", "--now", "--json", at=root).data["done"]
    assert done["rewritten"] == 1
    assert done["freed"] == plan["frees"]
    assert ckpt("verify", at=root).code == 0
    assert (
        ckpt("cat", "latest", "d", "--slice", "0:3", "--json", at=root).data["values"]
        == state["d"][:3].tolist()
    )


def test_prune_leaves_young_orphans_alone(ckpt: Call, store: Path) -> None:
    pack = next(store.glob("packs/mnist/*.safetensors"))
    orphan = pack.with_name("01ARZ3NDEKTSV4RRFFQ69G5FAV-0-0.safetensors")
    orphan.write_bytes(pack.read_bytes())
    answer = ckpt("prune", "--now")
    assert (answer.code, orphan.exists()) == (0, True)
    assert "left alone" in answer.err


def test_prune_of_damage_says_so(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "half"
    random = np.random.default_rng(0)
    state: dict[str, Any] = {name: random.standard_normal(300_000) for name in "abcd"}
    with CheckpointManager(root, experiment="x") as manager:
        manager.save(state | model(), step=1, wait=True)
        state |= {name: random.standard_normal(300_000) for name in "abc"}
        manager.save(state | model(), step=2, wait=True)
    ckpt("forget", "step=1", at=root)
    pack = sorted(root.glob("packs/*/*.safetensors"))[0]
    data = bytearray(pack.read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    pack.write_bytes(data)
    answer = ckpt("prune", "--now", "--json", at=root)
    assert (answer.code, answer.error["class"]) == (4, "CorruptionError")
