"""Leases: what they keep from a prune, when they are over, and that two locks exclude each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest

from ckpt_core import CkptError, StoreError, clock, config
from ckpt_core.format.documents import Lease
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.maintenance.deletion import MAINTENANCE, execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.repository import Leases, Repository, layout
from ckpt_core.repository.leases import LEASE_SECONDS, LOCK_SECONDS
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, draft, load, new_repository, snapshot_of
from crash.interleaving import ActorStore, Schedule
from crash.wrappers import CountingStore, ScriptedStore

ELSEWHERE = "another machine/4026531836/17/123456"
PACK = "digits/01M8A2JW7F9XYP34ZVHWHVBBM5-0-0.safetensors"
OWN = "01M8A2JW7F9XYP34ZVHWHVBBM6"


class Clocks:
    """The store's clock and this process's, each to be moved by hand."""

    def __init__(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.own = 1_000_000.0, 500.0
        monkeypatch.setattr(store, "now", lambda: self.store)
        monkeypatch.setattr(clock, "monotonic", lambda: self.own)

    def go_on(self, seconds: float) -> None:
        self.store += seconds
        self.own += seconds


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clocks(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(store, monkeypatch)


@pytest.fixture
def leases(store: MemoryStore) -> Leases:
    return Leases(store)


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list("leases")]


# -- what a lease is ------------------------------------------------------------------------------


def test_a_lease_is_a_sealed_object_for_as_long_as_the_block_runs(store: MemoryStore, leases: Leases) -> None:
    with leases.take("save", checkpoint=OWN, packs=(PACK,)) as lease:
        (key,) = keys(store)
        document = unseal(store.get(key), Lease, key)
        assert key == layout.lease_key(document.id)
        assert (document.purpose, document.checkpoint, document.packs) == ("save", OWN, (PACK,))
        assert f":{os.getpid()}" in document.holder
        assert lease.stands()
        claims = leases.claims()
        assert PACK in claims
        assert f"digits/{OWN}-3-1.safetensors" in claims
        assert f"digits/{OWN}-0-0-r2.safetensors" in claims
        assert "digits/01M8A2JW7F9XYP34ZVHWHVBBM9-0-0.safetensors" not in claims
    assert keys(store) == []
    assert PACK not in leases.claims()


def test_a_lease_ends_with_an_error_too_and_with_one_of_the_store() -> None:
    store = ScriptedStore(MemoryStore())
    leases = Leases(store)
    with pytest.raises(ZeroDivisionError), leases.take("save"):
        raise ZeroDivisionError
    assert list(store.list("leases")) == []

    def refuse(operation: str, key: str, when: str) -> None:
        if operation == "delete":
            raise StoreError("the disk is gone")

    with leases.take("save", packs=(PACK,), lock="x"):
        store.script = refuse
    store.script = None
    assert len(list(store.list("leases"))) == 1
    assert PACK not in leases.claims(), "its holder has ended it"
    with leases.take("save", lock="x"):
        pass


def test_what_cannot_be_put_is_not_held() -> None:
    store = ScriptedStore(MemoryStore())
    store.once(lambda operation, key, when: when == "after", lambda: 1 / 0)
    leases = Leases(store)
    with pytest.raises(ZeroDivisionError):
        leases.take("save", packs=(PACK,))
    assert len(list(store.list("leases"))) == 1
    assert PACK not in leases.claims()


# -- when one is over -----------------------------------------------------------------------------


def test_a_lease_of_another_machine_is_over_by_the_clock_of_the_store_alone(
    store: MemoryStore, clocks: Clocks, leases: Leases
) -> None:
    Leases(store, ELSEWHERE).take("save", packs=(PACK,))
    clocks.own += 10 * LEASE_SECONDS
    assert PACK in leases.claims()
    clocks.store += LEASE_SECONDS - 1
    leases.end_dead()
    assert PACK in leases.claims()
    clocks.store += 2
    assert PACK not in leases.claims()
    assert len(keys(store)) == 1, "to ask changes nothing"
    leases.end_dead()
    assert keys(store) == []


def test_a_clock_that_was_set_back_does_not_make_a_lease_eternal(
    store: MemoryStore, clocks: Clocks, leases: Leases
) -> None:
    Leases(store, ELSEWHERE).take("save", packs=(PACK,))
    clocks.store -= 86_400
    assert PACK not in leases.claims()


def test_a_lease_is_renewed_while_its_holder_works(
    store: MemoryStore, clocks: Clocks, leases: Leases
) -> None:
    lease = Leases(store, ELSEWHERE).take("save", packs=(PACK,))
    for _ in range(100):
        clocks.go_on(60)
        lease.renew()
        assert PACK in leases.claims()
        assert lease.stands()


def test_a_renewal_costs_nothing_before_it_is_due(clocks: Clocks, store: MemoryStore) -> None:
    counting = CountingStore(store)
    lease = Leases(counting).take("save")
    counting.reset()
    for _ in range(100):
        clocks.own += 1
        lease.renew()
    assert not counting.operations


def test_a_lease_that_others_took_for_over_does_not_stand_and_does_not_come_back(
    store: MemoryStore, clocks: Clocks, leases: Leases
) -> None:
    lease = Leases(store, ELSEWHERE).take("save", packs=(PACK,))
    clocks.store += LEASE_SECONDS + 1  # the store's clock was set forward
    leases.end_dead()
    assert not lease.stands()
    clocks.own += LEASE_SECONDS / 3
    lease.renew()
    assert not lease.stands()
    assert keys(store) == []
    lease.release()


def test_a_holder_that_was_held_up_knows_that_its_lease_may_have_been_over(
    clocks: Clocks, leases: Leases
) -> None:
    lease = leases.take("save", packs=(PACK,))
    clocks.own += LEASE_SECONDS
    assert not lease.stands()
    lease.renew()
    assert not lease.stands()
    lease.release()


def test_a_lease_of_a_process_that_is_gone_is_over_at_once(store: MemoryStore, leases: Leases) -> None:
    code = "from ckpt_core import config; print(config.process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        Leases(store, name).take("save", packs=(PACK,))
        assert not config.has_ended(name)
        assert PACK in leases.claims()
        child.communicate("\n")
    assert config.has_ended(name)
    assert PACK not in leases.claims()


def test_a_number_that_another_process_has_now_is_not_taken_for_the_first() -> None:
    place, _, start = config.process().rpartition("/")
    assert not config.has_ended(config.process())
    assert config.has_ended(f"{place}/{int(start) - 1}")


@pytest.mark.parametrize("name", ["", "x", "a/b/c/d", "unknown/1/2", ELSEWHERE, "/////", "../../etc/passwd"])
def test_of_a_process_elsewhere_it_cannot_be_told(name: str) -> None:
    assert not config.has_ended(name)


def test_a_forked_child_is_another_process() -> None:
    mine = config.process()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, config.process().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1000).decode() not in ("", mine)


# -- leases that cannot be read -------------------------------------------------------------------


def test_what_a_power_cut_left_of_a_lease_counts_for_nothing(store: MemoryStore, leases: Leases) -> None:
    for number, data in enumerate((b"", b"{}", b"\0" * 300)):
        store.put(f"leases/{number}.json", data)
    assert not leases.claims().everything
    assert len(keys(store)) == 3, "to ask changes nothing"
    leases.end_dead()
    assert keys(store) == []


def test_a_lease_of_a_later_version_keeps_everything(
    store: MemoryStore, clocks: Clocks, leases: Leases
) -> None:
    store.put("leases/later.json", seal({"format": 99, "what": "else"}))
    assert "any/pack" in leases.claims()
    assert leases.living() == []
    clocks.store += LEASE_SECONDS + 1
    assert "any/pack" not in leases.claims()


# -- locks ----------------------------------------------------------------------------------------


def test_of_two_that_want_one_lock_the_second_is_refused(store: MemoryStore, leases: Leases) -> None:
    with leases.take("prune", lock="one"):
        for second in (leases, Leases(store, ELSEWHERE)):
            with pytest.raises(StoreError, match=rf"another prune \(.*:{os.getpid()}\)") as caught:
                second.take("prune", lock="one")
            assert caught.value.kind == "locked"
            with second.take("prune", lock="two"), second.take("save"):
                pass
        assert len(keys(store)) == 1
    with leases.take("prune", lock="one"):
        pass


def test_on_a_full_disk_what_makes_room_goes_on_but_beside_nobody(leases: Leases) -> None:
    store = ScriptedStore(MemoryStore())

    def full(operation: str, key: str, when: str) -> None:
        if operation == "put":
            raise StoreError("no room", kind="full")

    store.script = full
    crowded = Leases(store)
    with pytest.raises(StoreError, match="no room"):
        crowded.take("save", lock="one")
    with crowded.take("prune", lock="one", makes_room=True) as lease:
        assert lease.stands()
        lease.renew()
    store.script = None
    with Leases(store, ELSEWHERE).take("prune", lock="one"):
        store.script = full
        with pytest.raises(StoreError, match="another prune") as caught:
            crowded.take("prune", lock="one", makes_room=True)
        assert caught.value.kind == "locked"
        store.script = None


def test_a_lock_that_was_left_behind_falls(store: MemoryStore, clocks: Clocks, leases: Leases) -> None:
    Leases(store, ELSEWHERE).take("prune", lock="one")
    clocks.store += LOCK_SECONDS + 1
    with leases.take("prune", lock="one"):
        leases.end_dead()
        assert len(keys(store)) == 1
    assert keys(store) == []


def test_of_two_that_come_at_once_never_both_get_the_lock() -> None:
    """Each puts its lease and then looks. They may both be refused, and then try again."""
    outcomes: Counter[str] = Counter()
    for seed in range(200):
        inner = MemoryStore()
        schedule = Schedule(seed)
        actors = {}
        for name in ("a", "b"):
            store = ActorStore(inner, name)
            store.schedule = schedule
            actors[name] = partial(gets_the_lock, Leases(store, name))
        got = schedule.run(actors)
        outcomes["both" if all(got.values()) else "one" if any(got.values()) else "none"] += 1
    assert outcomes["both"] == 0
    assert outcomes["one"] > 50
    assert outcomes["none"] > 0


def gets_the_lock(leases: Leases) -> bool:
    try:
        leases.take("prune", lock="one")
    except StoreError:
        return False
    return True


# -- saves and prunes -----------------------------------------------------------------------------


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


def prune(repository: Repository) -> Any:
    return execute_prune(repository, plan_prune(repository, orphan_seconds=-1))


def test_what_a_lease_names_is_neither_deleted_nor_rewritten_nor_left_out_of_circulation() -> None:
    repository = new_repository(MemoryStore())
    first = commit(repository, {"w": rows(1, 2)}, 1)
    second = commit(repository, {"w": rows(3)}, 2)
    repository.forget(first.key)
    names = (first.packs[0][0],)
    with Leases(repository.store, ELSEWHERE).take("save", packs=names):
        plan = plan_prune(repository, orphan_seconds=-1)
        assert (plan.packs, plan.claimed, plan.manifests) == ((), names, ())
        assert plan.empty
        execute_prune(repository, plan)
        repository.store.move(layout.pack_key(names[0]), layout.withdrawn_key(names[0]))
        assert plan_prune(repository).restores == names
        prune(repository)
        assert repository.store.exists(layout.pack_key(names[0]))
    assert prune(repository).packs == 1
    assert list(repository.store.list("trash")) == []
    assert load(repository, second.key)["w"].tolist() == rows(3).tolist()


def test_a_lease_that_comes_after_the_plan_is_seen_and_what_waits_in_the_trash_still_goes_later() -> None:
    repository = new_repository(MemoryStore())
    first = commit(repository, {"w": rows(1, 2)}, 1)
    repository.forget(first.key)
    plan = plan_prune(repository)
    with Leases(repository.store, ELSEWHERE).take("save", packs=(first.packs[0][0],)):
        done = execute_prune(repository, plan)
        assert (done.packs, done.manifests, done.freed) == (0, 0, 0)
        assert repository.store.exists(layout.pack_key(first.packs[0][0]))
    assert prune(repository).packs == 1


def test_a_pack_of_a_save_that_has_not_published_is_kept_however_old() -> None:
    repository = new_repository(MemoryStore())

    def approve() -> None:
        plan = plan_prune(repository, orphan_seconds=-1)
        assert len(plan.claimed) == 1
        assert prune(repository).packs == 0

    saved = repository.commit(snapshot_of({"w": rows(1)}), draft(1), approve=approve)
    assert load(repository, saved.key)["w"].tolist() == rows(1).tolist()
    assert list(repository.store.list("leases")) == []


def test_two_prunes_exclude_each_other() -> None:
    repository = new_repository(MemoryStore())
    first = commit(repository, {"w": rows(1)}, 1)
    repository.forget(first.key)
    plan = plan_prune(repository)
    with Leases(repository.store, ELSEWHERE).take("prune", lock=MAINTENANCE):
        with pytest.raises(StoreError, match="another prune") as caught:
            execute_prune(repository, plan)
        assert caught.value.kind == "locked"
    assert execute_prune(repository, plan).packs == 1


def test_a_prune_that_was_held_up_puts_everything_back() -> None:
    store = ScriptedStore(MemoryStore())
    repository = new_repository(store)
    first = commit(repository, {"w": rows(1)}, 1)
    repository.forget(first.key)
    plan = plan_prune(repository)

    def others_took_over() -> None:
        for info in list(store.inner.list("leases")):
            store.inner.delete(info.key)

    store.once(lambda operation, key, when: operation == "move" and when == "after", others_took_over)
    with pytest.raises(CkptError, match="held up"):
        execute_prune(repository, plan)
    assert store.done
    assert store.exists(layout.pack_key(first.packs[0][0]))
    assert store.exists(layout.trash_key(first.key))
