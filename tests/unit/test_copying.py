"""From store to store: the same checkpoints there, with all that belongs to them, and nothing travels twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, NotFoundError, StoreError, UsageError, copy_checkpoints
from ckpt_core.errors import ObjectNotFoundError
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Repository, layout, transfer
from ckpt_core.stores import LocalStore, MemoryStore, Store
from ckpt_core.testing import same_state
from ckpt_core.tracker.experiments import ExperimentTracker
from crash.wrappers import ScriptedStore

NOISE = np.random.default_rng(5).standard_normal(20_000)
CHUNK = 4096


def state(step: int) -> dict[str, Any]:
    changed = NOISE[:600] + step
    return {"model": {"w": NOISE, "b": changed, "tied": changed, "empty": np.zeros((0, 2))}, "step": step}


def filled(store: Store, steps: range = range(1, 4), **options: Any) -> Store:
    with CheckpointManager(store, experiment="digits", chunk_bytes=CHUNK, **options) as manager:
        for step in steps:
            manager.log({"loss": 1 / step}, step=step)
            manager.save(state(step), step=step, metrics={"loss": 1 / step}, tags=[f"t{step}"], wait=True)
        manager.pin(f"step={steps[0]}")
    return store


def check(source: Store, target: Store, steps: range) -> None:
    with (
        CheckpointManager(source, experiment="digits") as one,
        CheckpointManager(target, experiment="digits") as other,
    ):
        for step in steps:
            mine, theirs = one.resolve(f"t{step}"), other.resolve(f"t{step}")
            facts = (
                "id",
                "step",
                "created_at",
                "attempt",
                "parent",
                "metrics",
                "tags",
                "pinned",
                "logical_bytes",
            )
            assert [getattr(mine, fact) for fact in facts] == [getattr(theirs, fact) for fact in facts]
            assert same_state(other.load(f"t{step}"), one.load(f"t{step}"))
        assert other.verify().ok
        assert list(other.workspace.segments.all("digits")) == list(one.workspace.segments.all("digits"))
        ours, copied = (
            each.workspace.index.catalog().metric_series("digits", "loss") for each in (one, other)
        )
        assert ours == copied


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ({}, {}),
        ({"compression": "zstd"}, {"chunk_bytes": CHUNK}),
        ({"backend": "npz"}, {"chunk_bytes": 3 * CHUNK}),
        ({"compression": "zstd"}, {"chunk_bytes": 1 << 20}),
        ({}, {"chunk_bytes": CHUNK, "digest": "blake3"}),
    ],
    ids=str,
)
def test_they_are_the_same_checkpoints_there(source: dict[str, Any], target: dict[str, Any]) -> None:
    here, there = filled(MemoryStore(), **source), MemoryStore()
    if target:
        Repository.open(there, create=True, **target)
    told: list[tuple[int, int]] = []
    done = copy_checkpoints(here, there, progress=lambda *bytes_: told.append(bytes_))
    assert ([each.step for each in done.checkpoints], done.there, done.failed, done.kept) == (
        [1, 2, 3],
        0,
        (),
        (),
    )
    assert told[-1][0] == told[-1][1]
    check(here, there, range(1, 4))
    made = Repository.open(there).document
    assert made.chunk_bytes == target.get("chunk_bytes", CHUNK if not target else made.chunk_bytes)
    again = copy_checkpoints(here, there)
    assert (again.checkpoints, again.there, again.nbytes, again.marks, again.segments) == ((), 3, 0, 0, 0)


def test_what_the_target_has_does_not_travel() -> None:
    here, there = filled(MemoryStore(), range(1, 2)), MemoryStore()
    first = copy_checkpoints(here, there)
    assert first.nbytes > NOISE.nbytes
    with CheckpointManager(here, experiment="digits") as manager:
        manager.load()
        manager.save(state(2), step=2, tags=["t2"], wait=True)
    second = copy_checkpoints(here, there)
    assert 0 < second.nbytes < 16_000
    check(here, there, range(1, 3))


def test_one_checkpoint_or_one_experiment() -> None:
    here, there = filled(MemoryStore()), MemoryStore()
    with CheckpointManager(here, experiment="other") as manager:
        manager.save({"x": NOISE}, step=1, wait=True)
    done = copy_checkpoints(here, there, "digits@t2", "digits@step=2")
    assert [each.step for each in done.checkpoints] == [2]
    done = copy_checkpoints(here, there, experiment="digits")
    assert ([each.step for each in done.checkpoints], done.there) == ([1, 3], 1)
    assert [each.experiment for each in copy_checkpoints(here, there).checkpoints] == ["other"]
    check(here, there, range(1, 4))
    for refs, experiment in ((("digits@step=9",), None), ((), "nothing")):
        with pytest.raises(NotFoundError):
            copy_checkpoints(here, there, *refs, experiment=experiment)


def test_training_goes_on_in_the_copy() -> None:
    here, there = filled(MemoryStore()), MemoryStore()
    copy_checkpoints(here, there)
    with CheckpointManager(there, experiment="digits") as manager:
        manager.load()
        saved = manager.save(state(3), step=4).result()
        assert saved.written_bytes == 0, "it knows the chunks of what it goes on from"
        assert (saved.attempt.number, saved.attempt.resumed_step) == (2, 3)


class Halting(MemoryStore):
    """A store that refuses the manifest of a step, as if the process had been killed just before."""

    refused = ""

    def put_new(self, key: str, data: Any) -> None:
        if self.refused and self.refused in key:
            raise KeyboardInterrupt
        super().put_new(key, data)


def test_what_was_interrupted_goes_on() -> None:
    here, there = filled(MemoryStore()), Halting()
    there.refused = "000000000002-"
    with pytest.raises(KeyboardInterrupt):
        copy_checkpoints(here, there)
    there.refused = ""
    packs = {info.key for info in there.list(layout.PACKS)}
    assert len(packs) == 2
    done = copy_checkpoints(here, there)
    assert ([each.step for each in done.checkpoints], done.there) == ([2, 3], 1)
    assert done.checkpoints[0].written_bytes == 0, "its pack was there already"
    check(here, there, range(1, 4))


def test_damage_does_not_travel(tmp_path: Path) -> None:
    here, there = filled(LocalStore(tmp_path)), MemoryStore()
    packs = sorted(tmp_path.glob("packs/*/*.safetensors"))
    data = bytearray(packs[1].read_bytes())
    data[-1] ^= 1
    packs[1].write_bytes(data)
    done = copy_checkpoints(here, there)
    assert [each.step for each in done.checkpoints] == [1, 3]
    ((name, reason),) = done.failed
    assert "damaged" in reason
    assert verify(Repository.open(there)).ok
    with CheckpointManager(there, experiment="digits") as manager, pytest.raises(NotFoundError):
        manager.resolve(name)


def test_what_cannot_be_read_is_left_out() -> None:
    inner, there = filled(MemoryStore()), MemoryStore()
    with CheckpointManager(inner, experiment="digits") as manager:
        hurt = manager.resolve("t2").id
    here = ScriptedStore(inner)

    def fail(operation: str, key: str, when: str) -> None:
        if operation.startswith("read") and key.startswith(layout.PACKS) and hurt in key:
            raise StoreError("input/output error", kind="io", key=key)

    here.script = fail
    done = copy_checkpoints(here, there)
    assert [each.step for each in done.checkpoints] == [1, 3]
    ((name, reason),) = done.failed
    assert (name, reason) == (hurt, "it cannot be read: input/output error")
    assert verify(Repository.open(there)).ok
    here.script = None
    assert [each.step for each in copy_checkpoints(here, there).checkpoints] == [2]
    check(inner, there, range(1, 4))


@pytest.mark.parametrize("folder", [layout.METRICS, layout.EXPERIMENTS])
@pytest.mark.parametrize(
    "fault", [StoreError("input/output error"), ObjectNotFoundError("removed since")], ids=repr
)
def test_what_cannot_be_read_beside_checkpoints_is_left_out(
    folder: str, fault: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    inner, there = filled(MemoryStore(), config={"lr": 0.1}), MemoryStore()
    documents = [info.key for info in inner.list(folder)]
    here = ScriptedStore(inner)

    begun = False

    def fail(operation: str, key: str, when: str) -> None:
        nonlocal begun
        begun = begun or key.startswith(layout.PACKS)  # before, the catalog is made of them
        if begun and operation == "open" and key == documents[0]:
            raise fault

    here.script = fail
    done = copy_checkpoints(here, there)
    assert [each.step for each in done.checkpoints] == [1, 2, 3]
    missing = {info.key for info in inner.list(folder)} - {info.key for info in there.list(folder)}
    assert documents[0] in missing
    # What is removed meanwhile is nothing that could have been copied.
    told = [(documents[0], "it cannot be read: input/output error")] if type(fault) is StoreError else []
    assert list(done.left) == told
    assert all(f"{key} is not copied: {reason}" in caplog.text for key, reason in told)
    here.script = None
    assert copy_checkpoints(here, there).left == ()
    assert {info.key for info in inner.list(folder)} == {info.key for info in there.list(folder)}


def test_a_source_out_of_reach_ends_the_copy() -> None:
    here, there = ScriptedStore(filled(MemoryStore())), MemoryStore()
    begun = False

    def fail(operation: str, key: str, when: str) -> None:
        nonlocal begun
        begun = begun or (operation.startswith("read") and key.startswith(layout.PACKS))
        if begun:
            raise StoreError(f"the disk is gone: {key}", kind="io", key=key)

    here.script = fail
    with pytest.raises(StoreError, match="gone: store.json"):
        copy_checkpoints(here, there)
    assert list(Repository.open(there).manifest_keys()) == []


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("moment", ["behind the first look", "before the pack", "before the manifest"])
def test_two_copies_at_a_time_do_not_disturb_each_other(moment: str, step: int) -> None:
    """The one is done whole while the other is in the midst of a checkpoint, as its store's operations tell."""
    here, inner = filled(MemoryStore()), MemoryStore()
    there = ScriptedStore(inner)
    with CheckpointManager(here, experiment="digits") as manager:
        own = manager.resolve(f"t{step}").id
    folder = layout.MANIFESTS if moment == "before the manifest" else layout.PACKS
    looks: list[str] = []

    def has_come(operation: str, key: str, when: str) -> bool:
        if not key.startswith(folder) or own not in key:
            return False
        looks.append(operation)
        return len(looks) == 2 if moment == "behind the first look" else operation == "create"

    there.once(has_come, lambda: copy_checkpoints(here, inner))
    told: list[tuple[int, int]] = []
    done = copy_checkpoints(here, there, progress=lambda *bytes_: told.append(bytes_))
    assert there.done
    assert ([each.step for each in done.checkpoints], done.failed) == ([1, 2, 3], ())
    assert told[-1][0] == told[-1][1] == max(bytes_ for bytes_, _ in told)
    check(here, inner, range(1, 4))
    assert len(list(inner.list(layout.PACKS))) == len(list(here.list(layout.PACKS))), (
        "nothing was written twice"
    )


def test_a_tag_of_the_target_stays() -> None:
    here, there = filled(MemoryStore()), filled(MemoryStore(), range(1, 2))
    with CheckpointManager(there, experiment="digits") as manager:
        own = manager.resolve("t1").id
    done = copy_checkpoints(here, there)
    assert done.kept == ("digits@t1",)
    with CheckpointManager(there, experiment="digits") as manager:
        assert manager.resolve("t1").id == own
        assert manager.resolve("t2").step == 2


def test_what_is_known_of_the_experiment_comes_along() -> None:
    source, target = MemoryStore(), MemoryStore()
    filled(source, config={"lr": 0.1})
    filled(source, range(7, 8), config={"lr": 0.2})  # another lineage, of which nothing is copied
    with ExperimentTracker(source) as tracker:
        tracker.tag("digits", "chosen")
    for _ in range(2):
        copy_checkpoints(source, target, "digits@t2")
        with ExperimentTracker(source) as one, ExperimentTracker(target) as other:
            ours, theirs = one.experiment("digits"), other.experiment("digits")
            assert theirs.tags == ours.tags == ("chosen",)
            assert (len(ours.attempts), theirs.attempts) == (2, ours.attempts[:1])
            assert theirs.attempts[0].config == {"lr": 0.1}


def test_the_same_store_is_refused(tmp_path: Path) -> None:
    filled(LocalStore(tmp_path / "a"))
    with pytest.raises(UsageError, match="same store"):
        copy_checkpoints(tmp_path / "a", tmp_path / "a")
    with CheckpointManager(tmp_path / "a", experiment="digits", mirror=tmp_path / "m"):
        pass
    with pytest.raises(UsageError, match="mirror sync"):
        copy_checkpoints(tmp_path / "a", tmp_path / "m")
    with pytest.raises(NotFoundError):
        copy_checkpoints(tmp_path / "nothing", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_checkpoint_there_names_no_more_packs_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_PACKS", 4)
    here, there = MemoryStore(), MemoryStore()
    rows = {f"w{number}": np.full(CHUNK // 8, float(number)) for number in range(8)}
    with CheckpointManager(there, experiment="digits", chunk_bytes=CHUNK) as manager:
        for number, (name, row) in enumerate(rows.items()):
            manager.begin_attempt()
            manager.save({name: row}, step=number, wait=True)
    with CheckpointManager(here, experiment="digits", chunk_bytes=CHUNK) as manager:
        manager.save(rows, step=1, wait=True)
    (made,) = copy_checkpoints(here, there).checkpoints
    manifest = Repository.open(there).read(made.key).manifest
    assert len(manifest.packs) == 4
    assert made.written_bytes < 7 * CHUNK
    assert verify(Repository.open(there)).ok
