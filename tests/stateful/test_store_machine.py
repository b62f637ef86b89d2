"""A store under every command in any order, compared with a dict: what must hold has a name."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckpt_core import CheckpointManager, KeepBest, KeepLast, NotFoundError
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.stores import LocalStore
from contract.store_case import new_repository

CHUNK = 4096
TAGS = ("good", "best-of", "release 1")
COMPRESSION = st.sampled_from([None, "zstd"])
VALUES = st.lists(st.integers(0, 11), min_size=0, max_size=6)


@dataclass
class Kept:
    """What the model knows of one checkpoint."""

    step: int
    values: tuple[int, ...]
    loss: float | None
    attempt: int
    lineage: str
    tags: set[str] = field(default_factory=set)
    pinned: bool = False


def state_of(values: tuple[int, ...], step: int) -> dict[str, Any]:
    """One chunk for each value, so that states share many of theirs."""
    return {"w": np.repeat(np.array(values, np.int64), CHUNK // 8), "values": list(values), "n": step}


class StoreMachine(RuleBasedStateMachine):
    @initialize(retention=st.booleans(), compression=COMPRESSION)
    def start(self, retention: bool, compression: str | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ckpt-machine-"))
        new_repository(LocalStore(self.folder / "store"), CHUNK)
        self.retention = [KeepLast(3), KeepBest(1)] if retention else []
        self.model: dict[str, Kept] = {}
        self.forgotten: dict[str, Kept] = {}
        """Those that can be brought back."""
        self.step = 0
        self.compression = compression
        self.manager = self.opened()

    def opened(self) -> CheckpointManager:
        return CheckpointManager(
            self.folder / "store", experiment="machine", metric="loss", retention=self.retention,
            compression=self.compression,
        )  # fmt: skip

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.manager.close()
            shutil.rmtree(self.folder)

    # -- commands -----------------------------------------------------------------------------------

    @rule(
        values=VALUES,
        loss=st.one_of(st.none(), st.integers(0, 5)),
        tags=st.sets(st.sampled_from(TAGS), max_size=2),
        wait=st.booleans(),
        ahead=st.integers(0, 2),
    )
    def save(self, values: list[int], loss: int | None, tags: set[str], wait: bool, ahead: int) -> None:
        self.step += ahead
        metrics = {} if loss is None else {"loss": float(loss)}
        handle = self.manager.save(
            state_of(tuple(values), self.step), step=self.step, metrics=metrics, tags=sorted(tags), wait=wait
        )
        saved = handle.result(60)
        self.manager.wait()
        for kept in self.model.values():
            kept.tags -= tags
        attempt = self.manager.attempt
        self.model[saved.id] = Kept(
            self.step,
            tuple(values),
            None if loss is None else float(loss),
            attempt.number,
            attempt.lineage,
            tags,
        )
        if self.retention:
            self.retain(attempt.lineage)

    def retain(self, lineage: str) -> None:
        """The two policies, spelt out anew."""
        mine = [i for i in self.ordered() if self.model[i].lineage == lineage]
        ranked = sorted((i for i in mine if self.model[i].loss is not None), key=lambda i: self.model[i].loss)
        for identity in mine:
            kept = self.model[identity]
            if identity not in mine[-3:] and identity not in ranked[:1] and not kept.pinned:
                del self.model[identity]

    def ordered(self) -> list[str]:
        return sorted(self.model, key=lambda i: (self.model[i].attempt, self.model[i].step, i))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tag=st.sampled_from(TAGS))
    def tag(self, data: st.DataObject, tag: str) -> None:
        identity = self.choose(data)
        self.manager.tag(identity, tag)
        for kept in self.model.values():
            kept.tags.discard(tag)
        self.model[identity].tags.add(tag)

    @rule(tag=st.sampled_from(TAGS))
    def untag(self, tag: str) -> None:
        self.manager.untag(tag)
        for kept in self.model.values():
            kept.tags.discard(tag)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        identity = self.choose(data)
        kept = self.model[identity]
        (self.manager.unpin if kept.pinned else self.manager.pin)(identity)
        kept.pinned = not kept.pinned

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        identity = self.choose(data)
        if data.draw(st.booleans(), label="for good"):
            self.manager.forget(identity, grace=0)
        else:
            self.manager.forget(identity)
            self.forgotten[identity] = self.model[identity]
        del self.model[identity]

    @precondition(lambda self: self.forgotten and not self.retention)
    @rule(data=st.data())
    def undelete(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.forgotten)))
        back = self.manager.undelete(identity)
        kept = self.model[identity] = self.forgotten.pop(identity)
        assert kept.tags >= set(back.tags), "the others were given to others meanwhile, or taken off"
        kept.tags, kept.pinned = set(back.tags), back.pinned

    @rule(orphans=st.booleans())
    def prune(self, orphans: bool) -> None:
        repository = self.manager.workspace.repository
        execute_prune(repository, plan_prune(repository, orphan_seconds=-1 if orphans else 3600))
        assert plan_prune(repository).empty, "a second prune would find more"
        held = [*self.model.values(), *self.forgotten.values()]
        needed = {kept.values for kept in held}
        most = sum(len(values) * CHUNK for values in needed) * 2 + len(held) * 3 * CHUNK + 64 * CHUNK
        assert sum(info.size for info in repository.store.list("packs")) <= most, "garbage is left"

    @rule()
    def new_training(self) -> None:
        self.manager.begin_attempt(None)
        self.step = 0

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        identity = self.choose(data)
        self.manager.load(identity)
        self.manager.begin_attempt(self.manager.loaded)
        self.step = self.model[identity].step

    @rule(resume=st.booleans(), compression=COMPRESSION)
    def reopen(self, resume: bool, compression: str | None) -> None:
        self.manager.close()
        self.compression = compression
        self.manager = self.opened()
        self.step = 0
        if resume and self.model:
            self.manager.load()
            self.step = self.model[self.manager.loaded.id].step

    @rule(names=st.sampled_from([("",), ("", "-wal", "-shm")]))
    def lose_the_catalog(self, names: tuple[str, ...]) -> None:
        if names == ("",):  # deleted alone, while nobody has it open
            self.manager.close()
        for name in names:
            path = self.folder / "store" / f"catalog.db{name}"
            if path.exists():
                os.unlink(path)
        if names == ("",):
            self.reopen(resume=True, compression=self.compression)

    @rule()
    def reindex(self) -> None:
        report = self.manager.workspace.reindex()
        assert report.checkpoints == len(self.model)
        assert report.tags == sum(len(kept.tags) for kept in self.model.values())
        assert report.pins == sum(kept.pinned for kept in self.model.values())

    @precondition(lambda self: self.model)
    @rule(data=st.data(), mode=st.sampled_from(["full", "lazy", "off"]), like=st.booleans())
    def load(self, data: st.DataObject, mode: Any, like: bool) -> None:
        identity = self.choose(data)
        kept = self.model[identity]
        reference = data.draw(st.sampled_from([identity, *sorted(kept.tags)]))
        target = state_of((99,) * len(kept.values), -1) if like else None
        loaded = self.manager.load(reference, verify=mode, like=target)
        expected = state_of(kept.values, kept.step)
        np.testing.assert_array_equal(loaded["w"], expected["w"])
        assert (loaded["values"], loaded["n"]) == (expected["values"], expected["n"])
        if self.manager._attempt is None:  # then the first save goes on from what was loaded
            self.step = max(self.step, kept.step)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read_a_part(self, data: st.DataObject) -> None:
        identity = self.choose(data)
        expected = state_of(self.model[identity].values, 0)["w"]
        begin = data.draw(st.integers(0, len(expected)))
        end = data.draw(st.integers(begin, len(expected)))
        with self.manager.open(identity) as reader:
            np.testing.assert_array_equal(reader["w"][begin:end], expected[begin:end])

    def choose(self, data: st.DataObject) -> str:
        ids = self.ordered()
        return ids[data.draw(st.integers(0, len(ids) - 1), label="which")]

    # -- what must hold -----------------------------------------------------------------------------

    @invariant()
    def listing_agrees_with_the_model(self) -> None:
        if not hasattr(self, "manager"):
            return
        listed = {
            c.id: (c.step, c.metrics.get("loss"), set(c.tags), c.pinned) for c in self.manager.checkpoints()
        }
        assert listed == {i: (k.step, k.loss, k.tags, k.pinned) for i, k in self.model.items()}

    @invariant()
    def latest_and_best_agree_with_the_model(self) -> None:
        if not hasattr(self, "manager") or not self.model:
            return
        checkpoints = self.manager.checkpoints()
        newest = max(checkpoints, key=lambda c: c.order)
        assert self.manager.latest() == newest
        lineage = [i for i in self.ordered() if self.model[i].lineage == newest.attempt.lineage]
        losses = [self.model[i].loss for i in lineage if self.model[i].loss is not None]
        best = self.manager.best()
        assert (best is None) == (not losses)
        assert best is None or best.metrics["loss"] == min(losses)

    @invariant()
    def store_alone_says_the_same_as_the_catalog(self) -> None:
        if hasattr(self, "manager"):
            index = self.manager.workspace.index
            assert sorted(index.standing("machine"), key=lambda c: c.id) == sorted(
                index.checkpoints("machine"), key=lambda c: c.id
            )

    @invariant()
    def nothing_is_damaged(self) -> None:
        if hasattr(self, "manager"):
            report = self.manager.verify()
            assert report.ok, report.problems
            assert report.checkpoints == len(self.model)

    @invariant()
    def nothing_failed(self) -> None:
        if hasattr(self, "manager"):
            assert self.manager.failures == []
            assert self.manager._saver.unfinished == []

    @invariant()
    def what_is_forgotten_is_not_found(self) -> None:
        if hasattr(self, "manager"):
            for found in self.manager.workspace.repository.manifest_keys(trash=True):
                with pytest.raises(NotFoundError):
                    self.manager.resolve(found.id)


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few kilobytes are worth a rewrite."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)


class TestStore(StoreMachine.TestCase):
    settings = settings(
        max_examples=int(os.environ.get("CKPT_TEST_MACHINES", "20")),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
