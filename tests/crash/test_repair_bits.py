"""One flipped bit, or a burst, anywhere in a small store: found, and healed with parity and with a mirror.

A seeded sample of the bits in CI; `make bits` flips every one of them (CKPT_ALL_BITS=1), and prints the count.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from ckpt_core.maintenance.documents import heal_store_document
from ckpt_core.maintenance.parity import protect_all
from ckpt_core.maintenance.repair import repair
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Committed, References, Repository
from ckpt_core.stores import MemoryStore
from contract.store_case import commit, load, new_repository, same

pytest.importorskip("zfec")
FOLDERS = ("checkpoints", "packs", "refs")
CHUNK = 4096
SAMPLE = 250
SHARDS = 8
ALL = bool(os.environ.get("CKPT_ALL_BITS"))


def state_of(step: int) -> dict[str, Any]:
    noise = np.random.default_rng(step)
    return {
        "a": np.random.default_rng(0).integers(0, 255, CHUNK, np.uint8),
        "b": noise.random(200),
        "step": step,
    }


class Case:
    """Two checkpoints that share a chunk, a tag and a pin; and a copy."""

    def __init__(self, *, parity: bool) -> None:
        self.store = MemoryStore()
        repository = new_repository(self.store, CHUNK)
        first = commit(repository, state_of(1), 1)
        self.made: list[Committed] = [first, commit(repository, state_of(2), 2, first.manifest)]
        references = References(self.store)
        references.set_tag("digits", "good", first.manifest.id)
        references.pin("digits", first.manifest.id)
        if parity:
            protect_all(repository, 10)
        self.whole = self.contents()
        self.mirror = MemoryStore()
        for key, data in self.whole.items():
            self.mirror.put(key, data)

    def contents(self) -> dict[str, bytes]:
        found = {"store.json": self.store.get("store.json")}
        found |= {
            info.key: self.store.get(info.key) for folder in FOLDERS for info in self.store.list(folder)
        }
        return found

    def hurt(self, key: str, begin: int, data: bytes) -> None:
        before = self.whole[key]
        self.store.put(key, before[:begin] + data + before[begin + len(data) :])

    def heal(self, *, mirror: bool) -> None:
        """Finds the damage, heals it, and looks whether all is as it was."""
        there = Repository.open(self.mirror) if mirror else None
        if heal_store_document(self.store, self.mirror if mirror else None) is None:
            assert not verify(Repository.open(self.store)).ok
            assert repair(Repository.open(self.store), there).ok
        assert self.contents() == self.whole
        assert next(iter(self.store.list("quarantine")), None) is None


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("source", ["parity", "mirror"])
def test_every_bit_heals(source: str, shard: int) -> None:
    case = Case(parity=source == "parity")
    bits = [(key, bit) for key, data in sorted(case.whole.items()) for bit in range(8 * len(data))]
    chosen = bits[shard::SHARDS]
    if not ALL:
        seed = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
        print(f"seed={seed}")
        chosen = random.Random(f"{seed} {source} {shard}").sample(chosen, SAMPLE // SHARDS)
    for key, bit in chosen:
        case.hurt(key, bit // 8, bytes([case.whole[key][bit // 8] ^ 1 << bit % 8]))
        case.heal(mirror=source == "mirror")
    print(f"{source}: {len(chosen)} of {len(bits)} bits flipped, all found, all healed")


@pytest.mark.parametrize("length", [1, 100, 700, 1300])
def test_bursts_anywhere_heal_up_to_the_share_of_parity(length: int) -> None:
    case = Case(parity=True)
    chance = random.Random(length)
    packs = [key for key in case.whole if key.endswith(".safetensors")]
    for _ in range(20):
        key = chance.choice(packs)
        size = len(case.whole[key])
        burst = min(length, size // 10)
        begin = chance.randrange(size - burst)
        case.hurt(key, begin, bytes(255 - byte for byte in case.whole[key][begin : begin + burst]))
        case.heal(mirror=False)


@pytest.mark.parametrize("seed", range(12))
def test_beyond_what_can_be_healed_nothing_wrong_is_returned(seed: int) -> None:
    """Damage of any size, anywhere and several times over: what loads is what was saved, and the rest is named."""
    chance = random.Random(seed)
    for _ in range(4):
        case = Case(parity=True)
        for _ in range(chance.randrange(1, 4)):
            key = chance.choice([key for key in sorted(case.whole) if key != "store.json"])
            size = len(case.whole[key])
            burst = chance.randrange(1, size)
            begin = chance.randrange(size - burst + 1)
            case.hurt(key, begin, chance.randbytes(burst))
        repository = Repository.open(case.store)
        report = repair(repository)
        assert verify(repository).ok
        standing = {found.id for found in repository.manifest_keys()}
        for step, made in enumerate(case.made, 1):
            if made.manifest.id in standing:
                assert same(load(repository, made.key, verify="lazy"), state_of(step))
            else:
                assert made.manifest.id in report.lost
        again = repair(repository)
        assert again.lost == report.lost
        healed = repair(repository, Repository.open(case.mirror), restore=sorted(case.whole))
        assert healed.ok, (seed, healed)
        for step, made in enumerate(case.made, 1):
            assert same(load(repository, made.key), state_of(step))
