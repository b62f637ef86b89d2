"""Writers, readers and prunes on several machines, stopped between any two operations on the store, killed there,
with a clock that goes on or jumps: whatever the history, nothing acknowledged is lost and nothing leaks.

`make histories` runs ten thousand. A failure prints the shortest history that shows it; `CKPT_TEST_SEED` gives
another ten thousand.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ckpt_core import CorruptionError, NotFoundError, StoreError, clock
from ckpt_core.format.documents import Manifest
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.rewriting import rebased
from ckpt_core.maintenance.undelete import bring_back
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Leases, Repository, layout
from ckpt_core.repository.leases import LEASE_SECONDS
from contract.store_case import commit, load, new_repository
from stateful.actors import Actor, ClockedStore, Crash

CHUNK = 4096
HISTORIES = int(os.environ.get("CKPT_TEST_HISTORIES", "300"))
SEED = int(os.environ.get("CKPT_TEST_SEED", "20261125"))
STEPS = 25
NAMES = ("writer a", "writer b", "reader", "pruner a", "pruner b")

seen: Counter[str] = Counter()
"""What happened in all the histories: a history in which nothing meets shows nothing."""


def rows(values: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


class Histories(RuleBasedStateMachine):
    """What was acknowledged is kept in a dict. `jumps`: whether the store's clock may be set, too."""

    jumps = False

    @initialize(values=st.sampled_from([(0, 1, 2, 3, 4, 5), (0, 1, 2, 3), (7,)]), half_dead=st.booleans())
    def start(self, values: tuple[int, ...], half_dead: bool) -> None:
        """`half_dead`: the next prune has a pack to rewrite, if nobody names more of it before."""
        self.inner = ClockedStore()
        new_repository(self.inner, CHUNK)
        self.monotonic, self.real_monotonic = 0.0, clock.monotonic
        clock.monotonic = lambda: self.monotonic
        self.count = 0
        self.acknowledged: dict[str, tuple[int, ...]] = {}
        """Key of each checkpoint whose save returned and that nobody has begun to forget -> what it holds."""
        self.granted: dict[str, tuple[int, ...]] = {}
        """The same of what was forgotten and can be brought back."""
        self.set_clock = False
        """Whether the clock jumped: then what nobody acknowledged may be torn."""
        self.bases: dict[str, Manifest | None] = dict.fromkeys(NAMES)
        self.actors = {name: self.actor(name) for name in NAMES}
        repository = Repository.open(self.inner)
        first = commit(repository, {"w": rows(values)}, 0)
        if half_dead:
            last = commit(repository, {"w": rows(values[:1])}, 0, first.manifest)
            self.acknowledged[last.key] = values[:1]
            repository.forget(first.key)
        else:
            self.acknowledged[first.key] = values
        self.bases = dict.fromkeys(NAMES, first.manifest)

    def actor(self, name: str) -> Actor:
        self.count += 1
        actor = Actor(f"{name} {self.count}", self.inner, self.told)
        actor.repository = Repository.open(actor.store)  # type: ignore[attr-defined]
        actor.repository.leases = Leases(actor.store, f"another machine/{self.count}")  # type: ignore[attr-defined]
        return actor

    def told(self, step: str) -> None:
        if self.steps_shown:
            print(f"  {step}")

    steps_shown = bool(os.environ.get("CKPT_TEST_TRACE"))

    def teardown(self) -> None:
        if not hasattr(self, "actors"):
            return
        try:
            for actor in self.actors.values():
                actor.finish()
            for name in NAMES:
                self.look_at(name)
            self.check_the_end()
        finally:
            clock.monotonic = self.real_monotonic

    # -- what actors do -------------------------------------------------------------------------------

    def operation(self, name: str, kind: int, values: tuple[int, ...]) -> Any:
        repository: Repository = self.actors[name].repository  # type: ignore[attr-defined]
        if name.startswith("writer"):
            return lambda: self.save(name, repository, values)
        if name == "reader":
            return lambda: self.read(repository, kind)
        return lambda: self.prune(repository, kind)

    def save(self, name: str, repository: Repository, values: tuple[int, ...]) -> None:
        self.count += 1
        base = self.bases[name]
        if base is not None:
            base = rebased(repository, base)
        committed = commit(repository, {"w": rows(values)}, self.count, base)
        self.bases[name] = committed.manifest
        self.acknowledged[committed.key] = values
        seen["saved"] += 1
        seen["deduplicated"] += len(committed.manifest.packs) > 1

    def read(self, repository: Repository, kind: int) -> None:
        found = [key.key for key in repository.manifest_keys()]
        if not found:
            return
        key = found[kind % len(found)]
        values = self.acknowledged.get(key)
        try:
            state = load(repository, key)
        except NotFoundError:
            assert key not in self.acknowledged, f"{key} is lost"
            seen["forgotten while it was read"] += 1
            return
        except CorruptionError:
            # A clock that was set may let a prune take a save for dead that then publishes, and checks, and
            # makes its commit again. What it acknowledges is whole.
            assert self.set_clock, f"{key} is torn"
            assert key not in self.acknowledged, f"{key} is lost"
            seen["read what was never acknowledged"] += 1
            return
        assert values is None or state["w"].tolist() == rows(values).tolist()
        seen["read"] += 1

    def prune(self, repository: Repository, kind: int) -> None:
        if kind % 5 == 4 and self.granted:
            self.undelete(repository, sorted(self.granted)[kind % len(self.granted)])
            return
        keys = sorted(self.acknowledged, key=lambda key: key.rpartition("-")[2])
        if kind % 3 and len(keys) > 1:  # forgets first, one of the oldest
            key = keys[(kind // 3) % min(len(keys), 2)]
            values = self.acknowledged.pop(key)
            repository.forget(key, grace=1e9 if kind % 6 == 1 else 0)
            if kind % 6 == 1:
                self.granted[key] = values
            seen["forgot"] += 1
        try:
            done = execute_prune(repository, plan_prune(repository, orphan_seconds=-1))
        except StoreError as error:
            assert error.kind == "locked", error
            seen["another prune was at work"] += 1
            return
        seen["pruned"] += 1
        seen["deleted a pack"] += done.packs
        seen["rewrote a pack"] += done.rewritten

    def undelete(self, repository: Repository, key: str) -> None:
        values = self.granted.pop(key)
        try:
            bring_back(repository, layout.trash_key(key))
        except StoreError as error:
            assert error.kind == "locked", error
            self.granted[key] = values
            return
        self.acknowledged[key] = values
        seen["brought one back"] += 1

    # -- what happens to them -------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        kind=st.integers(0, 20),
        values=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(tuple),
        steps=st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34, 55, 89]),
    )
    def go_on(self, name: str, kind: int, values: tuple[int, ...], steps: int) -> None:
        actor = self.actors[name]
        if not actor.busy:
            actor.begin(self.operation(name, kind, values))
        actor.step(steps)
        self.look_at(name)

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        actor = self.actors[name]
        if actor.busy:
            actor.die()
            assert isinstance(actor.error, Crash), actor.error
            seen[f"{name.partition(' ')[0]} died"] += 1
        self.actors[name] = self.actor(name)

    @rule(seconds=st.sampled_from([1, 30, 3 * LEASE_SECONDS, -3 * LEASE_SECONDS]))
    def time_passes(self, seconds: int) -> None:
        if abs(seconds) < LEASE_SECONDS:
            self.monotonic += seconds
            self.inner.time += seconds
        elif self.jumps:
            self.set_clock = True
            self.inner.time += seconds
            seen["the clock was set"] += 1

    # -- what must hold -------------------------------------------------------------------------------

    def look_at(self, name: str) -> None:
        error = self.actors[name].error
        if error is not None:
            raise error

    def check_the_end(self) -> None:
        """Everybody has ended; what the dead left behind is over. One prune clears away what nobody needs."""
        repository = Repository.open(self.inner)
        self.check_what_is_there(repository)
        self.inner.time = 2_000_000.0
        execute_prune(repository, plan_prune(repository, orphan_seconds=-1))
        for key in sorted(self.granted):
            self.undelete(repository, key)
        self.check_what_is_there(repository)
        for _ in range(3):  # a pack that was rewritten, its forwarding, and what is dead with it
            execute_prune(repository, plan_prune(repository, orphan_seconds=-1, now=True))
        self.check_what_is_there(repository)
        assert self.set_clock or verify(repository).ok
        assert plan_prune(repository, orphan_seconds=-1).empty
        for folder in ("leases", "trash"):
            assert list(self.inner.list(folder)) == [], f"something is left in {folder}"
        named = {pack for key in self.readable(repository) for pack in self.needs(repository, key)}
        kept = {info.key for info in self.inner.list("packs") if info.key.endswith(".safetensors")}
        assert kept <= {layout.pack_key(name) for name in named}, "a pack is left that nothing names"

    def check_what_is_there(self, repository: Repository) -> None:
        for key, values in self.acknowledged.items():
            assert load(repository, key)["w"].tolist() == rows(values).tolist()
        if not self.set_clock:
            assert verify(repository).problems == ()

    def readable(self, repository: Repository) -> list[str]:
        return [found.key for found in repository.manifest_keys()]

    def needs(self, repository: Repository, key: str) -> set[str]:
        manifest = repository.read(key).manifest
        names = {pack.name for pack in manifest.packs}
        for name in list(names):
            document = repository.forward(name)
            while document is not None and document.rows:
                found = {row.pack for row in document.rows}
                names |= found
                document = repository.forward(next(iter(found)))
        return names


class HistoriesWithJumps(Histories):
    jumps = True


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few kilobytes are worth a rewrite."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [Histories, HistoriesWithJumps])
def test_whatever_the_history(machine: type[Histories]) -> None:
    seen.clear()
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=settings(
            max_examples=HISTORIES // 2,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(
        f"{HISTORIES // 2} histories:",
        ", ".join(f"{count} times {what}" for what, count in sorted(seen.items())),
    )
    expected = ["brought one back", "saved", "deduplicated", "read", "forgot", "pruned", "deleted a pack", "rewrote a pack", "writer died",
                "pruner died", "another prune was at work"]  # fmt: skip
    assert [what for what in expected if not seen[what]] == [], "the histories show nothing"
