"""The cache: tokens decide, the least used goes first; and what is remembered of catalog and manifests is never stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CacheManager, CheckpointManager, CorruptionError, NotFoundError, clock
from ckpt_core.maintenance import listings
from ckpt_core.perf.figures import Figures
from ckpt_core.pipeline.manifests import Manifests


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Clock:
    ticking = Clock()
    monkeypatch.setattr(clock, "monotonic", ticking)
    return ticking


def test_a_value_is_made_once_for_a_token() -> None:
    cache = CacheManager()
    made: list[int] = []

    def find(key: str, token: int) -> int:
        return cache.find("numbers", key, token, lambda: made.append(token) or len(made), lambda value: 1)

    assert [find("a", 1), find("a", 1), find("b", 1), find("a", 2), find("a", 2), find("a", 1)] == [
        1,
        1,
        2,
        3,
        3,
        4,
    ]
    stats = cache.stats()["numbers"]
    assert (stats.hits, stats.misses, stats.rate) == (2, 4, 1 / 3)
    assert cache.entries == 2
    cache.clear()
    assert (cache.entries, cache.nbytes, find("b", 1)) == (0, 0, 5)


def test_none_is_a_value_like_others_and_errors_are_none() -> None:
    cache = CacheManager()
    assert cache.find("x", 1, 1, lambda: None, lambda value: 1) is None
    assert cache.find("x", 1, 1, lambda: 3, lambda value: 1) is None
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.find("x", 2, 1, lambda: 1 // 0, lambda value: 1)
    assert cache.stats()["x"].misses == 3


def test_bounds_of_entries_and_bytes() -> None:
    cache = CacheManager(entries=3, nbytes=100)
    for key in "abc":
        cache.find("x", key, 1, lambda key=key: key, lambda value: 10)
    cache.find("x", "a", 1, lambda: "again", lambda value: 10)
    cache.find("x", "d", 1, lambda: "d", lambda value: 10)
    assert (cache.entries, cache.nbytes) == (3, 30)
    assert cache.find("x", "a", 1, lambda: "made anew", lambda value: 10) == "a"
    assert cache.find("x", "b", 1, lambda: "made anew", lambda value: 10) == "made anew"
    cache.find("x", "large", 1, lambda: "large", lambda value: 95)
    assert (cache.entries, cache.nbytes) == (1, 95)
    assert cache.find("x", "huge", 1, lambda: "huge", lambda value: 101) == "huge"
    assert cache.find("x", "huge", 1, lambda: "huge 2", lambda value: 101) == "huge 2"
    assert cache.nbytes == 95


def test_a_cache_of_nothing_keeps_nothing() -> None:
    for cache in (CacheManager(entries=0), CacheManager(nbytes=0)):
        assert [cache.find("r", "key", 1, lambda: 7, lambda value: 1) for _ in range(2)] == [7, 7]
        assert (cache.entries, cache.stats()["r"].hits) == (0, 0)


def test_nothing_stays_for_ever(ticking: Clock) -> None:
    cache = CacheManager(seconds=10)
    cache.find("x", 1, 1, lambda: "old", lambda value: 1)
    ticking.now += 9
    assert cache.find("x", 1, 1, lambda: "new", lambda value: 1) == "old"
    ticking.now += 2
    assert cache.find("x", 1, 1, lambda: "new", lambda value: 1) == "new"


def test_percentiles(ticking: Clock) -> None:
    figures = Figures()
    for milliseconds in range(100):
        with figures.timed("save"):
            ticking.now += milliseconds / 1000
    with pytest.raises(ZeroDivisionError), figures.timed("save"):
        _ = 1 // 0
    found = figures.stats()["latencies"]["save"]
    assert found["count"] == 100
    assert found["p50"] == pytest.approx(0.050, abs=2e-3)
    assert found["p99"] == pytest.approx(0.098, abs=2e-3)


# -- what is remembered


def settle(manager: CheckpointManager) -> None:
    """Waits until any further change would be seen: a file system's clock ticks a few times."""
    store = manager.workspace.repository.store
    looked = listings.look(store, "digits")
    assert looked is not None
    while not listings.is_settled(store, looked):
        pass


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointManager]:
    monkeypatch.setattr(listings, "SETTLED", 0.03)
    with CheckpointManager(tmp_path / "store", experiment="digits", metric="loss") as manager:
        for step in (1, 2, 3):
            manager.save({"w": step}, step=step, metrics={"loss": 1 / step}, wait=True)
        settle(manager)
        yield manager


def hits(manager: CheckpointManager, region: str = "catalog") -> int:
    found = manager.stats()["cache"]["regions"].get(region)
    return found["hits"] if found else 0


def ask(manager: CheckpointManager) -> tuple[object, ...]:
    latest, best = manager.latest(), manager.best()
    assert latest is not None and best is not None
    return latest.step, best.step, [c.step for c in manager.checkpoints()], latest.tags, best.pinned


def test_questions_are_answered_from_memory(manager: CheckpointManager) -> None:
    first = ask(manager)
    before = hits(manager)
    assert ask(manager) == first == (3, 3, [1, 2, 3], (), False)
    assert hits(manager) > before


def test_a_list_is_its_callers_to_change(manager: CheckpointManager) -> None:
    ask(manager)
    manager.checkpoints().clear()
    assert len(manager.checkpoints()) == 3


def test_own_changes_are_seen_at_once(manager: CheckpointManager) -> None:
    ask(manager)
    ask(manager)
    manager.save({"w": 4}, step=4, metrics={"loss": 9.0}, wait=True)
    assert ask(manager) == (4, 3, [1, 2, 3, 4], (), False)
    settle(manager)
    ask(manager)
    manager.tag("latest", "x")
    assert ask(manager)[3] == ("x",)
    manager.pin("best")
    assert ask(manager)[4] is True
    settle(manager)
    ask(manager)
    manager.forget("step=4")
    assert ask(manager)[:3] == (3, 3, [1, 2, 3])


def test_changes_by_others_are_seen_at_once(manager: CheckpointManager, tmp_path: Path) -> None:
    for number in range(4):
        settle(manager)
        ask(manager)
        ask(manager)
        with CheckpointManager(tmp_path / "store", experiment="digits") as other:
            if number == 0:
                other.load("latest")
                other.save({"w": 9}, step=9, metrics={"loss": 0.0}, wait=True)
                assert manager.latest().step == 9
            elif number == 1:
                other.tag("latest", "x")
                assert manager.latest().tags == ("x",)
            elif number == 2:
                other.untag("x")
                assert manager.latest().tags == ()
            else:
                other.forget("latest")
                assert manager.latest().step == 3
                assert manager.best().step == 3


def test_manifests_are_kept_while_they_stand(manager: CheckpointManager, ticking: Clock) -> None:
    manifests = Manifests(manager.workspace.repository, manager.workspace.figures.cache)
    latest = manager.latest()
    assert latest is not None
    first = manifests.read(latest.key)
    assert "manifests" not in manager.workspace.figures.cache.stats()
    ticking.now += 5
    assert manifests.read(latest.key) == first
    assert manifests.read(latest.key) is manifests.read(latest.key)
    assert manager.workspace.figures.cache.stats()["manifests"].hits == 2
    manager.forget("latest")
    with pytest.raises(NotFoundError):
        manifests.read(latest.key)


def test_a_manifest_that_is_changed_is_read_again(
    manager: CheckpointManager, ticking: Clock, tmp_path: Path
) -> None:
    manifests = Manifests(manager.workspace.repository, manager.workspace.figures.cache)
    latest = manager.latest()
    assert latest is not None
    for _ in range(3):
        ticking.now += 5
        manifests.read(latest.key)
    path = tmp_path / "store" / latest.key
    path.write_bytes(path.read_bytes().replace(b'"step":3', b'"step":4'))
    with pytest.raises(ValueError, match="SHA-256"):
        manifests.read(latest.key)


def test_a_header_is_looked_at_by_who_checks_and_by_nobody_else(tmp_path: Path) -> None:
    """So that there is none to remember: the manifest says where each chunk is."""
    with CheckpointManager(tmp_path / "store", experiment="digits") as manager:
        manager.save({"w": np.arange(9)}, step=1, wait=True)
        for _ in range(2):
            manager.load("latest")
        (pack,) = (tmp_path / "store" / "packs").rglob("*.safetensors")
        data = bytearray(pack.read_bytes())
        data[100] ^= 1
        pack.write_bytes(data)
        with manager.open("latest") as reader:
            assert np.array_equal(reader["w"][...], np.arange(9))
        assert np.array_equal(manager.load("latest", verify="lazy")["w"], np.arange(9))
        with pytest.raises(CorruptionError) as caught:
            manager.load("latest")
        assert caught.value.kind == "header"


def test_a_forwarding_is_kept_while_it_stands(tmp_path: Path, ticking: Clock) -> None:
    with CheckpointManager(tmp_path / "store", experiment="digits") as manager:
        state = {f"w{number}": np.full(30_000, number) for number in range(10)}
        manager.save(state, step=1, wait=True)
        kept = manager.save(state | {f"w{number}": np.arange(number, 30_000) for number in range(8)}, step=2)
        kept.result()
        manager.forget("step=1", grace=0)
        assert manager.prune(manager.plan_prune(now=True)).rewritten == 1
        (forwarding,) = (tmp_path / "store").rglob("*.forward.json")
        before = forwarding.read_bytes()

        def read() -> bool:
            ticking.now += 5
            with manager.open("latest") as reader:
                return bool((reader["w9"][...] == 9).all())

        assert [read() for _ in range(4)] == [True] * 4
        assert manager.stats()["cache"]["regions"]["forwards"] == {"hits": 2, "misses": 1, "rate": 2 / 3}
        forwarding.write_bytes(before.replace(b"0", b"1", 1))
        for _ in range(2):
            with pytest.raises(CorruptionError, match="SHA-256"):
                read()
        forwarding.unlink()
        with pytest.raises(CorruptionError) as caught:
            read()
        assert caught.value.kind == "missing"
        forwarding.write_bytes(before)
        assert read()


# -- stats


def test_what_a_manager_says_of_itself(manager: CheckpointManager) -> None:
    handle = manager.save({"w": b"x" * 5000}, step=5)
    handle.result()
    manager.load("latest")
    with manager.open("latest"):
        pass
    manager.log({"a": 1.0, "b": 2.0}, step=5)
    found = manager.stats()
    assert {name: each["count"] for name, each in found["latencies"].items()} == {
        "load": 1,
        "open": 1,
        "save": 4,
        "stall": 1,
    }
    assert found["bytes"]["saved"] == found["bytes"]["loaded"] == 5000
    assert found["queues"] == {"saves": 0, "metrics": 2}
    assert all(0 <= each["p50"] <= each["p99"] for each in found["latencies"].values())


def test_its_figures_outlive_it_and_can_be_seen_while_it_lives(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="digits") as manager:
        manager.save({"w": b"x" * 5000}, step=1, wait=True)
        assert manager.tracker.performance() == []
        manager._keeper.sign()
        ((_, view, figures),) = manager.tracker.performance()
        assert (view.status, figures["bytes"]["saved"]) == ("running", 5000)
        manager.load("latest")
    with CheckpointManager(tmp_path, experiment="other") as other:
        ((name, view, figures),) = other.tracker.performance()
        assert (name, view.status, figures["bytes"]["loaded"]) == ("digits", "finished", 5000)
