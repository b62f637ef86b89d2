"""A signed save, a signature and a prune, with every operation on the store failing once: what stands is signed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ckpt_core import CkptError
from ckpt_core.format.signing import SigningKey, TrustedKeys
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.repository import Draft, Repository, layout
from ckpt_core.stores import MemoryStore
from contract.store_case import ATTEMPT, commit, new_repository, snapshot_of
from crash.wrappers import FaultyStore, When

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
TRUSTED = TrustedKeys({KEY.name: "alice"})


def save(repository: Repository) -> None:
    snapshot = snapshot_of({"w": np.arange(3000.0)})
    repository.commit(snapshot, Draft("digits", 2, ATTEMPT, {}, {}, sign=KEY))


def sign(repository: Repository) -> None:
    (found,) = repository.manifest_keys()
    with repository.leases.take("sign", lock="maintenance"):
        repository.signatures.add(repository.read(found.key), KEY)


def forget_and_prune(repository: Repository) -> None:
    (found,) = repository.manifest_keys()
    repository.forget(found.key)
    execute_prune(repository, plan_prune(repository, orphan_seconds=-1))


def prepared(act: Callable[[Repository], None]) -> MemoryStore:
    store = MemoryStore()
    repository = new_repository(store)
    if act is forget_and_prune:
        save(repository)
    elif act is sign:
        commit(repository, {"w": np.zeros(3)})
    return store


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("act", [save, sign, forget_and_prune])
def test_whatever_fails_what_stands_is_signed_and_no_signature_stays_alone(
    act: Callable[[Repository], None], lasting: bool, when: When
) -> None:
    at, struck = 1, True
    while struck:
        store = prepared(act)
        faulty = FaultyStore(store)
        repository = Repository.open(faulty)
        faulty.arm(at, when, lasting=lasting)
        try:
            act(repository)
        except CkptError:
            assert faulty.struck is not None
        struck = faulty.struck is not None
        after = Repository.open(store)
        live = [after.read(found.key) for found in after.manifest_keys()]
        if act is save:  # what is seen is signed, at every instant
            assert [after.signatures.check(committed, TRUSTED) for committed in live] == [KEY.name] * len(
                live
            )
        elif act is sign:  # a signature is whole or not there, and the next call makes it
            (committed,) = live
            assert len(after.signatures.of(committed)) in (0, 1)
            end_leases(after)
            sign(after)
            assert after.signatures.check(committed, TRUSTED) == KEY.name
        end_leases(after)
        execute_prune(after, plan_prune(after, orphan_seconds=-1))
        kept = {layout.signature_key(found.key) for found in after.manifest_keys()}
        assert {info.key for info in store.list(layout.SIGNATURES)} <= kept
        at += 1
    assert at > 3


def end_leases(repository: Repository) -> None:
    """Their holders are dead: the operation that failed ended them."""
    for info in list(repository.store.list(layout.LEASES)):
        repository.store.delete(info.key)
