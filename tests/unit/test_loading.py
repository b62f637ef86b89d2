"""Loading a state: whole, in part, into a structure; what is checked, and what damage leads to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    CorruptionError,
    FormatError,
    HookContext,
    HookError,
    HookEvent,
    MissingExtraError,
    NotFoundError,
    StateMismatchError,
    StoreError,
    UsageError,
    hook,
)
from ckpt_core.stores import MemoryStore
from contract.catalog_case import lose
from contract.store_case import new_repository
from crash.wrappers import CountingStore, ScriptedStore


class Pair(NamedTuple):
    left: Any
    right: Any


def state(step: int = 1) -> dict[str, Any]:
    return {
        "model": {"w": np.full((32, 64), step, np.float32), "b": np.arange(4.0)},
        "optim": [np.full(3, step), {"lr": 0.1 * step}],
        "pair": Pair(step, None),
    }


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore(MemoryStore())
    new_repository(store)
    return store


@pytest.fixture
def manager(store: CountingStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(store, experiment="x", metric="loss") as manager:
        for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2)):
            manager.save(state(step), step=step, metrics={"loss": loss}, wait=True)
        yield manager


def pack_of(manager: CheckpointManager, reference: str) -> str:
    """The key of the pack that the checkpoint's own save wrote."""
    checkpoint = manager.resolve(reference)
    return f"packs/x/{checkpoint.id}-0-0.safetensors"


def damage(manager: CheckpointManager, key: str, at: int = -1) -> None:
    store = manager.workspace.repository.store
    data = bytearray(store.get(key))
    data[at] ^= 0x10
    store.put(key, bytes(data))


class Events:
    """What hooks were told, in order."""

    def __init__(self, manager: CheckpointManager, *events: HookEvent) -> None:
        self.seen: list[HookContext] = []
        manager.hooks.register_hook(lambda context: self.seen.append(context), events)

    @property
    def names(self) -> list[str]:
        return [f"{context.event.name} {context.step}" for context in self.seen]


# -- what comes back ------------------------------------------------------------------------------


def test_a_whole_state_comes_back_as_plain_containers(manager: CheckpointManager) -> None:
    loaded = manager.load()
    np.testing.assert_array_equal(loaded["model"]["w"], state(3)["model"]["w"])
    assert loaded["optim"][1] == {"lr": pytest.approx(0.3)}
    assert loaded["pair"] == (3, None)
    assert type(loaded["pair"]) is tuple
    assert manager.loaded.step == 3


def test_into_a_structure_in_place(manager: CheckpointManager) -> None:
    like = state(0)
    weights = like["model"]["w"]
    loaded = manager.load("best", like=like)
    assert loaded["model"]["w"] is weights
    assert (weights == 2).all()
    assert loaded["pair"] == Pair(2, None)
    assert isinstance(loaded["pair"], Pair)
    assert manager.loaded.step == 2


def test_into_other_dtypes_and_layouts(manager: CheckpointManager) -> None:
    like = state(0)
    like["model"]["w"] = np.zeros((64, 32), np.float64).T
    like["model"]["b"] = np.zeros(4, np.float16)
    loaded = manager.load(like=like)
    assert loaded["model"]["w"] is like["model"]["w"]
    assert loaded["model"]["w"].dtype == np.float64
    assert (loaded["model"]["w"] == 3).all()
    assert loaded["model"]["b"].tolist() == [0, 1, 2, 3]


def test_a_part_is_loaded_and_the_rest_is_not_read(manager: CheckpointManager, store: CountingStore) -> None:
    store.reset()
    loaded = manager.load(include="optim", verify="lazy")
    assert loaded.keys() == {"optim"}
    assert loaded["optim"][0].tolist() == [3, 3, 3]
    assert sum(length for key, _, length in store.reads if key.startswith("packs/")) == 24


@pytest.mark.parametrize("include", ["model/*", ["model/w", "model/b"], "model"])
def test_parts_by_pattern_path_and_subtree(manager: CheckpointManager, include: Any) -> None:
    loaded = manager.load(include=include)
    assert loaded.keys() == {"model"}
    assert loaded["model"].keys() == {"w", "b"}


def test_a_part_into_a_structure_leaves_the_rest_alone(manager: CheckpointManager) -> None:
    like = state(0)
    loaded = manager.load(like=like, include="model/w")
    assert (loaded["model"]["w"] == 3).all()
    assert loaded["optim"][0].tolist() == [0, 0, 0]
    assert loaded["pair"] == Pair(0, None)


def test_a_structure_of_a_part(manager: CheckpointManager) -> None:
    """`like` need not have what `include` leaves out."""
    like = {"model": {"w": np.zeros((32, 64), np.float32)}}
    loaded = manager.load(like=like, include="model/w")
    assert (loaded["model"]["w"] == 3).all()


def test_an_include_that_matches_nothing_is_a_slip(manager: CheckpointManager) -> None:
    with pytest.raises(StateMismatchError, match="nothing in the checkpoint matches 'modle'"):
        manager.load(include="modle")


def test_of_another_experiment(manager: CheckpointManager, store: CountingStore) -> None:
    with CheckpointManager(store, experiment="y") as other:
        assert (other.load("x@latest")["model"]["w"] == 3).all()
        assert other.loaded.experiment == "x"


def test_framework_names_the_kind_of_tensors(manager: CheckpointManager) -> None:
    assert type(manager.load(framework="numpy")["model"]["w"]) is np.ndarray
    with pytest.raises(MissingExtraError, match="no-such-framework") as caught:
        manager.load(framework="no-such-framework")
    assert caught.value.framework == "no-such-framework"


def test_verify_must_be_a_word_it_knows(manager: CheckpointManager) -> None:
    with pytest.raises(UsageError, match="verify='maybe'"):
        manager.load(verify="maybe")  # type: ignore[arg-type]


# -- what does not fit ----------------------------------------------------------------------------


def test_every_path_that_does_not_fit_is_named_and_nothing_is_overwritten(manager: CheckpointManager) -> None:
    like = state(0)
    like["model"]["w"] = np.zeros((32, 65), np.float32)
    like["model"]["b"] = np.zeros(5)
    with pytest.raises(StateMismatchError) as caught:
        manager.load(like=like)
    assert set(caught.value.paths) == {"model/w", "model/b"}
    assert "model/w: saved with shape [32, 64], like= has [32, 65]" in str(caught.value)
    assert like["optim"][0].tolist() == [0, 0, 0]


def test_missing_and_surplus_leaves_are_named(manager: CheckpointManager) -> None:
    like = state(0)
    del like["model"]["b"]
    like["model"]["extra"] = np.zeros(1)
    like["optim"][1]["lr"] = np.zeros(1)
    with pytest.raises(StateMismatchError) as caught:
        manager.load(like=like)
    assert set(caught.value.paths) == {"model/b", "model/extra", "optim/1/lr"}


def test_a_mismatch_is_not_fallen_back_from(manager: CheckpointManager) -> None:
    with pytest.raises(StateMismatchError):
        manager.load("latest", like={"model": 1})
    assert manager.loaded is None


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["latest", "best"])
def test_the_next_one_that_verifies_is_loaded_and_that_is_said(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture, reference: str
) -> None:
    asked = manager.resolve(reference)
    damage(manager, pack_of(manager, reference))
    events = Events(
        manager,
        HookEvent.BEFORE_LOAD, HookEvent.LOAD_FAILED, HookEvent.CORRUPTION_FOUND, HookEvent.AFTER_LOAD,
    )  # fmt: skip
    loaded = manager.load(reference)
    expected = 2 if reference == "latest" else 3
    assert (loaded["model"]["w"] == expected).all()
    assert manager.loaded.step == expected
    assert events.names == [
        f"BEFORE_LOAD {asked.step}", f"LOAD_FAILED {asked.step}", f"CORRUPTION_FOUND {asked.step}",
        f"BEFORE_LOAD {expected}", f"AFTER_LOAD {expected}",
    ]  # fmt: skip
    assert isinstance(events.seen[2].error, CorruptionError)
    assert events.seen[-1].data["fallback"] is True
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert any(asked.id in message and "cannot be loaded" in message for message in errors)
    assert any("FALLING BACK to step" in message for message in errors)
    checks = manager.workspace.index.catalog().checks(asked.id)
    assert [(check.kind, check.outcome) for check in checks] == [("load", "damaged")]


def test_without_fallback_damage_is_raised(manager: CheckpointManager) -> None:
    damage(manager, pack_of(manager, "latest"))
    with pytest.raises(CorruptionError) as caught:
        manager.load(fallback=False)
    assert caught.value.step == 3
    assert manager.loaded is None


@pytest.mark.parametrize("reference", ["step=3", "tagged", "id"])
def test_what_was_named_exactly_is_not_replaced_by_another(
    manager: CheckpointManager, reference: str
) -> None:
    manager.tag("latest", "tagged")
    reference = manager.latest().id if reference == "id" else reference
    damage(manager, pack_of(manager, "latest"))
    with pytest.raises(CorruptionError):
        manager.load(reference)


def test_where_none_verifies_the_error_is_that_of_the_first(manager: CheckpointManager) -> None:
    for step in (1, 2, 3):
        damage(manager, pack_of(manager, f"step={step}"))
    with pytest.raises(CorruptionError) as caught:
        manager.load()
    assert caught.value.step == 3
    assert "none of the 2 checkpoints to fall back to" in caught.value.__notes__[0]


def test_another_training_is_not_fallen_back_to(manager: CheckpointManager) -> None:
    manager.begin_attempt(None)
    manager.save(state(9), step=9, wait=True)
    damage(manager, pack_of(manager, "latest"))
    with pytest.raises(CorruptionError):
        manager.load()


def test_a_damaged_header_counts_unless_verification_is_lazy(manager: CheckpointManager) -> None:
    damage(manager, pack_of(manager, "latest"), at=4090)  # the padding of the header
    assert (manager.load(verify="lazy")["model"]["w"] == 3).all()
    assert manager.loaded.step == 3
    assert (manager.load(verify="full")["model"]["w"] == 2).all()


def test_verification_can_be_off(manager: CheckpointManager) -> None:
    damage(manager, pack_of(manager, "latest"))
    manager.load(verify="off")
    assert manager.loaded.step == 3


def test_a_missing_pack_is_damage(manager: CheckpointManager) -> None:
    manager.workspace.repository.store.delete(pack_of(manager, "latest"))
    events = Events(manager, HookEvent.CORRUPTION_FOUND)
    assert (manager.load()["model"]["w"] == 2).all()
    assert events.seen[0].error.kind == "missing"


@pytest.mark.parametrize("catalog", ["there", "lost"])
def test_a_manifest_cut_in_half(
    manager: CheckpointManager, catalog: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = manager.latest()
    store = manager.workspace.repository.store
    store.put(newest.key, store.get(newest.key)[: len(store.get(newest.key)) // 2])
    if catalog == "lost":
        known = manager.workspace.index.catalog()
        lose(known, known.ids())
    events = Events(manager, HookEvent.CORRUPTION_FOUND)
    with pytest.raises(CorruptionError, match=newest.key):
        manager.load(fallback=False)
    assert (manager.load()["model"]["w"] == 2).all()
    assert events.names[-1] == "CORRUPTION_FOUND 3"
    assert "cannot be loaded" in caplog.text


def test_forgotten_meanwhile_is_no_damage(manager: CheckpointManager, store: CountingStore) -> None:
    events = Events(manager, HookEvent.CORRUPTION_FOUND)
    newest = manager.latest()

    @hook(HookEvent.BEFORE_LOAD)
    def forget(context: HookContext) -> None:
        if context.step == 3:
            manager.workspace.forget([newest])

    manager.hooks.register_hook(forget)
    assert (manager.load()["model"]["w"] == 2).all()
    assert events.seen == []


def test_forgotten_and_pruned_in_the_midst_of_a_load_is_no_damage(manager: CheckpointManager) -> None:
    events = Events(manager, HookEvent.CORRUPTION_FOUND)
    newest = manager.latest()

    @hook(HookEvent.LOAD_FAILED)
    def forget(context: HookContext) -> None:
        manager.workspace.forget([newest])

    manager.hooks.register_hook(forget)
    manager.workspace.repository.store.delete(pack_of(manager, "latest"))
    assert (manager.load()["model"]["w"] == 2).all()
    assert events.seen == []


@pytest.mark.parametrize("kind", ["io", "permission"])
def test_a_disk_that_cannot_read_is_damage_and_one_that_refuses_is_not(kind: str) -> None:
    store = ScriptedStore(MemoryStore())
    with CheckpointManager(store, experiment="x") as manager:
        for step in (1, 2):
            manager.save(state(step), step=step, wait=True)
        key = pack_of(manager, "latest")
        events = Events(manager, HookEvent.CORRUPTION_FOUND)

        def script(operation: str, at: str, when: str) -> None:
            if at == key and operation.startswith("read"):
                raise StoreError("cannot read", kind=kind, key=at)

        store.script = script
        if kind == "io":
            assert (manager.load()["model"]["w"] == 1).all()
            assert events.names == ["CORRUPTION_FOUND 2"]
        else:
            with pytest.raises(StoreError, match="cannot read"):
                manager.load()
            assert events.names == []


def test_a_newer_format_is_not_damage(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = manager.latest()

    def read(key: str) -> Any:
        if key == newest.key:
            raise FormatError("upgrade", key=key)
        return original(key)

    original = manager.workspace.repository.read
    monkeypatch.setattr(manager.workspace.repository, "read", read)
    with pytest.raises(FormatError):
        manager.load()


def test_nothing_to_load(store: CountingStore) -> None:
    with CheckpointManager(store, experiment="z") as manager, pytest.raises(NotFoundError):
        manager.load()


# -- hooks ----------------------------------------------------------------------------------------


def test_a_hook_may_veto_a_load(manager: CheckpointManager) -> None:
    manager.hooks.register_hook(hook(HookEvent.BEFORE_LOAD, name="guard")(lambda context: context.veto("no")))
    with pytest.raises(UsageError, match="guard: no") as caught:
        manager.load()
    assert caught.value.kind == "vetoed"


def test_a_hook_that_raises_reaches_the_caller(manager: CheckpointManager) -> None:
    def bad(context: HookContext) -> None:
        raise RuntimeError("boom")

    manager.hooks.register_hook(hook(HookEvent.AFTER_LOAD, on_error="raise")(bad))
    with pytest.raises(HookError, match="boom"):
        manager.load()
