"""How many packs a checkpoint names, what an unchanged one costs, and what becomes of packs that others take away."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest

from ckpt_core import ids
from ckpt_core.config import provenance
from ckpt_core.errors import ObjectNotFoundError, StoreError
from ckpt_core.format.header import read_header
from ckpt_core.repository import Committed, Draft, Repository, layout
from ckpt_core.repository.writer import Known, write_part
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, draft, keys_of, load, new_repository, same, snapshot_of


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


def packs(repository: Repository) -> list[str]:
    return [info.key for info in repository.store.list("packs")]


def chunks(committed: Committed) -> list[Any]:
    return [chunk for tensor in committed.manifest.tensors for chunk in tensor.shards[0].chunks]


# -- the number of packs


def test_a_checkpoint_names_a_bounded_number_of_packs(repository: Repository) -> None:
    state = {"w": np.zeros(512 * 100)}
    manifest, keys = None, []
    for step in range(150):
        state["w"][512 * (step % 100)] = step + 1
        committed = commit(repository, state, step, base=manifest)
        manifest = committed.manifest
        keys.append((committed.key, state["w"].copy()))
        assert len(manifest.packs) <= 64
        assert step < 2 or manifest.written_bytes < 5 * CHUNK
    assert len(manifest.packs if manifest else ()) == 64
    for key, expected in keys[::10]:
        assert same(load(repository, key), {"w": expected})


def test_an_unchanged_state_over_the_most_packs_is_not_written(repository: Repository) -> None:
    state = {"w": np.zeros(512 * 100)}
    manifest = None
    for step in range(64):
        state["w"][512 * step] = step + 1
        manifest = commit(repository, state, step, base=manifest).manifest
    assert manifest is not None
    assert len(manifest.packs) == 64
    again = commit(repository, state, 64, base=manifest)
    assert again.manifest.written_bytes == 0


def test_what_is_folded_is_a_valid_pack(repository: Repository) -> None:
    state = {"odd": np.zeros(5, np.uint8), **{f"t{n}": np.zeros(600 + n) for n in range(6)}}
    known: dict[str, Any] = {}
    for n in range(6):
        state[f"t{n}"] = state[f"t{n}"] + n + 1
        snapshot = snapshot_of(state)
        part = write_part(repository.store, snapshot, experiment="e", checkpoint=ids.new_ulid(), chunk_bytes=CHUNK,
                          known=known, max_packs=3)  # fmt: skip
        known = {
            c.digest: Known(part.packs[c.pack], c.offset) for t in part.tensors for c in t.shards[0].chunks
        }
        state["odd"] = state["odd"] + 1
        assert len(part.packs) <= 3
        for pack in part.packs:
            with repository.store.open(layout.pack_key(pack.name)) as reader:
                header = read_header(reader.read, reader.size, pack.name)
            assert (reader.size, header.digest) == (pack.size, pack.header)


# -- the price of an unchanged state


def gpt2() -> dict[str, tuple[int, ...]]:
    """The names and shapes of GPT-2's parameters."""
    e, shapes = 768, {"transformer.wte.weight": (50257, 768), "transformer.wpe.weight": (1024, 768)}
    for n in range(12):
        layer = {"ln_1.weight": (e,), "ln_1.bias": (e,), "attn.c_attn.weight": (e, 3 * e), "attn.c_attn.bias": (3 * e,),
                 "attn.c_proj.weight": (e, e), "attn.c_proj.bias": (e,), "ln_2.weight": (e,), "ln_2.bias": (e,),
                 "mlp.c_fc.weight": (e, 4 * e), "mlp.c_fc.bias": (4 * e,), "mlp.c_proj.weight": (4 * e, e), "mlp.c_proj.bias": (e,)}  # fmt: skip
        shapes |= {f"transformer.h.{n}.{name}": shape for name, shape in layer.items()}
    return shapes | {"transformer.ln_f.weight": (e,), "transformer.ln_f.bias": (e,)}


def test_the_manifest_of_an_unchanged_large_state_is_small(repository: Repository) -> None:
    """1.5 GB of GPT-2 with AdamW in 592 tensors, each with as many chunks as it has, in shorter ones."""
    rng = np.random.default_rng(0)

    def like(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(max(math.prod(shape) // 2048, 1)).astype(np.float32)

    shapes = gpt2()
    slots = {
        n: {"step": np.array(1000.0, np.float32), "exp_avg": like(s), "exp_avg_sq": like(s)}
        for n, s in enumerate(shapes.values())
    }
    group = {
        "lr": 6e-4,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "amsgrad": False,
        "params": list(range(148)),
    }
    state = {
        "model": {name: like(shape) for name, shape in shapes.items()},
        "optimizer": {"state": slots, "param_groups": [group]},
    }
    writer = provenance()
    first = repository.commit(snapshot_of(state), draft(1))
    again = repository.commit(
        snapshot_of(state), Draft("gpt2", 2, draft().attempt, {"loss": 3.1}, writer), base=first.manifest
    )
    assert again.manifest.written_bytes == 0
    assert len(again.manifest.tensors) == 592
    assert len(chunks(again)) > 700
    # Offsets and shapes have fewer digits here than they would have: up to six and five, and two of commas.
    wider = 6 * len(chunks(again)) + 7 * len(again.manifest.tensors)
    assert len(repository.store.get(again.key)) + wider < 100_000


# -- when others interfere


class Pruning(MemoryStore):
    """Takes packs away while a save is writing, so many times, as a prune that takes its lease for over."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.victim = ""

    def create(self, key: str) -> Any:
        if key.startswith("packs/") and self.victim and self.times:
            self.times -= 1
            self.end_leases()
            self.delete(self.victim)
        return super().create(key)

    def end_leases(self) -> None:
        for lease in list(self.list("leases")):
            self.delete(lease.key)


def test_a_pack_that_vanishes_during_a_save_is_written_again(caplog: pytest.LogCaptureFixture) -> None:
    store = Pruning(1)
    repository = new_repository(store)
    state = {"w": np.arange(5000.0), "v": np.arange(600.0)}
    first = commit(repository, state, 1)
    store.victim = layout.pack_key(first.packs[0][0])
    state["v"] = state["v"] + 1
    with caplog.at_level(logging.WARNING, "ckpt_core"):
        second = commit(repository, state, 2, base=first.manifest)
    assert "vanished" in caplog.text
    assert same(load(repository, second.key), state)
    assert len(packs(repository)) == 1


def test_a_save_that_is_not_approved_leaves_nothing(repository: Repository) -> None:
    first = commit(repository, {"w": np.arange(600.0)}, 1)
    before = keys_of(repository.store)

    def refuse() -> None:
        assert len(packs(repository)) == 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        repository.commit(snapshot_of({"w": np.arange(700.0)}), draft(2), base=first.manifest, approve=refuse)
    assert keys_of(repository.store) == before


def test_an_interruption_just_after_the_commit_leaves_a_whole_checkpoint() -> None:
    class Interrupted(MemoryStore):
        def put_new(self, key: str, data: Any) -> None:
            super().put_new(key, data)
            if key.startswith("checkpoints/"):
                raise KeyboardInterrupt

    repository = new_repository(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        commit(repository, {"w": np.arange(600.0)}, 1)
    (key,) = repository.manifest_keys()
    assert same(load(repository, key.key), {"w": np.arange(600.0)})


def test_a_store_that_prunes_without_end_is_said_to() -> None:
    class Endless(Pruning):
        def info(self, key: str) -> Any:
            if key == self.victim and not self.asked:
                self.asked = True
                self.end_leases()
                return super().info(key)
            if key == self.victim:
                self.asked = False
                raise ObjectNotFoundError("gone", key=key)
            return super().info(key)

        asked = False

    store = Endless(0)
    repository = new_repository(store)
    first = commit(repository, {"w": np.arange(5000.0)}, 1)
    store.victim = layout.pack_key(first.packs[0][0])
    with pytest.raises(StoreError, match="kept vanishing") as caught:
        commit(repository, {"w": np.arange(5000.0), "v": np.ones(3)}, 2, base=first.manifest)
    assert caught.value.kind == "race"
    assert packs(repository) == [store.victim]
