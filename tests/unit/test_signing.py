"""Signed checkpoints: what is loaded with trusted keys, and every way to bring in what they did not sign."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ckpt_core import (
    CheckpointManager,
    CorruptionError,
    HookEvent,
    KeepLast,
    MissingExtraError,
    SignatureError,
    StoreError,
    UsageError,
)
from ckpt_core.format.sealed import seal
from ckpt_core.format.signing import SigningKey, TrustedKeys, fits, message, new_key
from ckpt_core.maintenance.stats import gather
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import LocalStore, MemoryStore
from crash.wrappers import ScriptedStore

ALICE, MALLORY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED = [ALICE.public_key()]


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(2000, step, np.float32), "step": step}


def manager(root: Any, experiment: str = "x", **options: Any) -> CheckpointManager:
    options = {"signing_key": ALICE, "trusted_keys": TRUSTED} | options
    return CheckpointManager(root, experiment=experiment, metric="loss", **options)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("signed") / "store"
    with manager(root) as saving:
        for step in (1, 2):
            saving.save(state(step), step=step, metrics={"loss": 1 / step}, wait=True)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A store of two checkpoints that Alice signed: step 1, and step 2, which is better."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture
def reading(root: Path) -> Iterator[CheckpointManager]:
    with manager(root) as found:
        yield found


def manifests(root: Path) -> list[Path]:
    return sorted(root.glob("checkpoints/*/*.json"))


def signatures(root: Path) -> list[Path]:
    return sorted(root.glob("signatures/*/*.json"))


def altered(path: Path, **members: Any) -> None:
    """What somebody writes who knows the format: another manifest, sealed as it must be."""
    document = json.loads(path.read_bytes())
    del document["sha256"]
    path.write_bytes(seal(document | members))


# -- what is signed is loaded ------------------------------------------------------------------------


def test_what_is_signed_is_loaded(reading: CheckpointManager) -> None:
    for reference, step in (("latest", 2), ("best", 2), ("step=1", 1)):
        assert reading.load(reference)["step"] == step
        with reading.open(reference) as reader:
            assert reader["step"] == step
    assert (reading.latest() or 0) == reading.best()
    assert reading.verify().ok


def test_a_checkpoint_is_never_seen_unsigned() -> None:
    store = MemoryStore()
    seen = []

    class Watched(ScriptedStore):
        def put_new(self, key: str, data: Any) -> None:
            if key.startswith("checkpoints/"):
                seen.append(store.exists(layout.signature_key(key)))
            super().put_new(key, data)

    with manager(Watched(store)) as saving:
        saving.save(state(1), step=1, wait=True)
    assert seen == [True]


def test_what_is_signed_is_what_the_page_on_the_format_says(root: Path) -> None:
    (manifest, _), (signature, _) = manifests(root), signatures(root)
    document = json.loads(signature.read_bytes())
    ((key, text),) = document["signatures"]
    digest, checkpoint = json.loads(manifest.read_bytes())["sha256"], document["checkpoint"]
    store = json.loads((root / "store.json").read_bytes())["store_id"]
    signed = (
        f"ckpt-core signed checkpoint 1\nstore {store}\ncheckpoint {checkpoint}\nmanifest {digest}\n".encode()
    )
    assert signed == message(store, checkpoint, digest)
    assert key == SigningKey(ALICE).name
    assert fits(text, key, signed)
    assert not fits(text, key, signed + b"\n")


# -- what is not signed is not ------------------------------------------------------------------------


def unsigned(root: Path) -> None:
    signatures(root)[1].unlink()


def by_another(root: Path) -> None:
    signatures(root)[1].unlink()
    with CheckpointManager(root, experiment="x", signing_key=MALLORY) as other:
        other.sign("step=2")


def tampered(root: Path) -> None:
    altered(manifests(root)[1], metrics={"loss": -1.0})


def of_another_checkpoint(root: Path) -> None:
    one, two = signatures(root)
    rows = json.loads(one.read_bytes())["signatures"]
    altered(two, signatures=rows)


def under_the_name_of_another(root: Path) -> None:
    one, two = signatures(root)
    two.write_bytes(one.read_bytes())


def of_another_store(root: Path) -> None:
    other = root.with_name("other")
    with manager(other) as saving:
        saving.save(state(3), step=3, metrics={"loss": 0.1}, wait=True)
    for folder in ("packs", "checkpoints", "signatures"):
        shutil.copytree(other / folder, root / folder, dirs_exist_ok=True)


def flipped(root: Path) -> None:
    path = signatures(root)[1]
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def with_the_name_of_a_key(root: Path) -> None:
    """Somebody signs with a key of their own, and writes that it was Alice's."""
    by_another(root)
    path = signatures(root)[1]
    ((_, text),) = json.loads(path.read_bytes())["signatures"]
    altered(path, signatures=[[SigningKey(ALICE).name, text]])


ATTACKS: dict[Callable[[Path], None], str] = {
    unsigned: "unsigned", by_another: "untrusted", tampered: "forged", of_another_checkpoint: "forged",
    under_the_name_of_another: "unsigned", of_another_store: "forged", flipped: "unsigned",
    with_the_name_of_a_key: "forged",
}  # fmt: skip


@pytest.mark.parametrize(
    ("attack", "kind"), ATTACKS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_what_nobody_trusted_signed_is_not_loaded(
    root: Path, attack: Callable[[Path], None], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    attack(root)
    shutil.rmtree(root / "catalog.db", ignore_errors=True)
    for catalog in root.glob("catalog.db*"):
        catalog.unlink()
    newest = 3 if attack is of_another_store else 2
    found: list[Any] = []
    with manager(root) as reading:
        reading.hooks.register_hook(found.append, [HookEvent.CORRUPTION_FOUND])
        with pytest.raises(SignatureError, match=f"step {newest} of 'x'") as caught:
            reading.load("latest", fallback=False)
        assert caught.value.kind == kind
        assert caught.value.step == newest
        assert {type(context.error) for context in found} == {SignatureError}
        for read in (reading.load, reading.open, reading.resolve):
            with pytest.raises(SignatureError):
                read(f"step={newest}")
        report = reading.verify()
        assert {problem.kind for problem in report.problems} >= {"signature"}
        # The newest that is signed comes in its place, as of one that is damaged; loudly.
        assert reading.load()["step"] == newest - 1
        assert reading.loaded is not None
        assert {each.step for each in (reading.loaded, reading.latest(), reading.best()) if each} == {
            newest - 1
        }
        assert f"the checkpoint of step {newest}" in caplog.text
    with CheckpointManager(root, experiment="x") as careless:
        assert careless.load()["step"] == newest, "without trusted keys a signature is nobody's business"


def test_where_nothing_is_signed_nothing_begins_anew(root: Path) -> None:
    for path in signatures(root):
        path.unlink()
    with manager(root) as reading:
        for ask in (reading.latest, reading.best, reading.load):
            with pytest.raises(SignatureError, match="is not signed"):
                ask()


def test_into_another_experiment_or_step(root: Path) -> None:
    manifest, signature = manifests(root)[1], signatures(root)[1]
    for folder, name in (("y", manifest.name), ("x", manifest.name.replace("2-", "7-", 1))):
        for file, kind in ((manifest, "checkpoints"), (signature, "signatures")):
            target = root / kind / folder / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    with manager(root) as reading:
        assert [c.step for c in reading.checkpoints()] == [1, 2], "a manifest says itself where it belongs"
        assert reading.load()["step"] == 2
    with (
        manager(root, "y", signing_key=None) as reading,
        pytest.raises(CorruptionError, match="moved or copied"),
    ):
        reading.load()


def test_the_data_is_what_was_signed(root: Path) -> None:
    packs = sorted(root.glob("packs/*/*.safetensors"))
    packs[1].write_bytes(packs[0].read_bytes())
    with manager(root) as reading:
        assert reading.load()["step"] == 1
        with pytest.raises(UsageError, match="checks no byte"):
            reading.load(verify="off")
        with pytest.raises(UsageError, match="checks no byte"):
            reading.open(verify="off")


def test_the_catalog_cannot_make_another_one_the_best(root: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(root / "catalog.db")
    with connection:
        connection.execute("UPDATE checkpoint_metrics SET value = -value")
    connection.close()
    with CheckpointManager(root, experiment="x", metric="loss") as careless:
        assert careless.load("best")["step"] == 1
    with manager(root) as reading:
        best = reading.best()
        assert best is not None
        assert best.step == 2
        assert reading.load("best")["step"] == 2


def test_a_training_that_nobody_signed_takes_no_name(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(root, experiment="x", metric="loss") as mallory:
        mallory.begin_attempt(None)
        mallory.save(state(9), step=2, metrics={"loss": -9.0}, wait=True)
    with manager(root) as reading:
        for reference in ("latest", "best", "step=2"):
            caplog.clear()
            assert reading.load(reference)["step"] == 2
            assert "is not signed" in caplog.text
            with pytest.raises(SignatureError, match="is not signed"):
                reading.load(reference, fallback=False)
        assert (
            reading.forget("latest").attempt.lineage
            != (reading.latest() or reading.resolve()).attempt.lineage
        )


def test_an_id_that_nobody_signed_makes_no_reference_ambiguous(root: Path) -> None:
    with CheckpointManager(root, experiment="x", metric="loss") as mallory:
        other = mallory.save(state(9), step=9, metrics={"loss": 9.0}, wait=True).result()
    with manager(root) as reading:
        reading.forget("step=1", grace=0)
        signed = reading.resolve("latest")
        reference = signed.id[:4]
        assert other.id.startswith(reference)
        assert reading.resolve(reference) == signed
        assert reading.load(reference, fallback=False)["step"] == 2


# -- what becomes of signatures -----------------------------------------------------------------------


def test_they_outlive_forget_and_undelete_and_go_with_the_prune(root: Path) -> None:
    with manager(root) as reading:
        reading.forget("step=1")
        reading.prune()
        assert len(signatures(root)) == 2
        (forgotten,) = root.glob("trash/*/*[A-Z0-9].json")
        shutil.copyfile(forgotten, root / "checkpoints" / "x" / forgotten.name)  # an undelete that was killed
        reading.prune(reading.plan_prune(now=True))
        assert (len(manifests(root)), len(signatures(root))) == (2, 2)
        reading.forget("step=1")
        reading.undelete("step=1")
        assert reading.load("step=1")["step"] == 1
        reading.forget("step=1", grace=0)
        reading.prune()
        assert [path.name for path in signatures(root)] == [manifests(root)[0].name]
        assert reading.load()["step"] == 2


def test_they_go_with_retention(tmp_path: Path) -> None:
    with manager(tmp_path, retention=[KeepLast(1)]) as saving:
        for step in (1, 2, 3):
            saving.save(state(step), step=step, wait=True)
        saving.wait()
        assert [path.name for path in signatures(tmp_path)] == [path.name for path in manifests(tmp_path)]
        assert len(manifests(tmp_path)) == 1


def test_they_outlive_a_prune_that_rewrites(tmp_path: Path) -> None:
    big, small = np.random.default_rng(1).random(1 << 18), np.random.default_rng(2).random(1 << 16)
    with manager(tmp_path, chunk_bytes=4096) as saving:
        saving.save({"big": big, "small": small}, step=1, wait=True)
        saving.save({"big": big + 1, "small": small}, step=2, wait=True)
        saving.forget("step=1", grace=0)
        assert saving.prune().rewritten == 1
        assert (saving.load()["small"] == small).all()
        assert saving.verify().ok


def test_what_an_interrupted_save_leaves_goes_with_a_later_prune(root: Path) -> None:
    orphan = signatures(root)[0].with_name("000000000009-01JZZZZZZZZZZZZZZZZZZZZZZZ.json")
    orphan.write_bytes(signatures(root)[0].read_bytes())
    with manager(root) as reading:
        assert reading.plan_prune().signatures == (), "it may be of a save that is running"
        store = reading.workspace.repository.store
        later = store.now() + 7200
        store.now = lambda: later  # type: ignore[method-assign]
        plan = reading.plan_prune()
        assert plan.signatures == (f"signatures/x/{orphan.name}",)
        reading.prune(plan)
    assert len(signatures(root)) == 2


def test_a_save_that_was_held_up_signs_again() -> None:
    """Between its signature and its manifest a prune took its lease for over, and the signature for nobody's."""
    inner = MemoryStore()

    class HeldUp(ScriptedStore):
        def put_new(self, key: str, data: Any) -> None:
            if key.startswith("checkpoints/"):
                for folder in ("leases", "signatures"):
                    for info in list(inner.list(folder)):
                        inner.delete(info.key)
            super().put_new(key, data)

    with manager(HeldUp(inner)) as saving:
        saving.save(state(1), step=1, wait=True)
        assert saving.load()["step"] == 1


def test_a_save_that_fails_leaves_none(tmp_path: Path) -> None:
    class Failing(ScriptedStore):
        def put_new(self, key: str, data: Any) -> None:
            if key.startswith("checkpoints/"):
                raise StoreError("the disk is full", kind="full")
            super().put_new(key, data)

    inner = MemoryStore()
    with manager(Failing(inner)) as saving, pytest.raises(StoreError):
        saving.save(state(1), step=1, wait=True)
    assert [*inner.list("signatures"), *inner.list("packs")] == []


def test_they_are_mirrored_before_what_they_sign_and_read_from_there(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "mirror"
    with manager(root, mirror=there) as saving:
        saving.load()
        saving.save(state(3), step=3, metrics={"loss": 0.1}, wait=True)
        saving.wait()
        saving.save(state(4), step=4, metrics={"loss": 0.2}, wait=True)
        saving.wait()
        assert len(signatures(there)) == 4, "it follows each save, and not only when it catches up"
        saving.forget("step=4", grace=0)
        saving.prune()
    assert [path.name for path in signatures(there)] == [path.name for path in manifests(there)]
    with manager(there) as reading:
        assert reading.load()["step"] == 3, "a mirror is the same store"
    signatures(root)[2].unlink()
    flipped(root)
    with manager(root) as reading:
        assert reading.load()["step"] == 3
        assert reading.load("step=2")["step"] == 2
        assert reading.repair().ok
        assert reading.load("step=3")["step"] == 3
    assert len(signatures(root)) == 3
    shutil.rmtree(root)
    with manager(root, mirror=there) as reading:
        assert reading.load()["step"] == 3, "a store that is begun from its mirror has them"


def test_a_signature_that_is_added_travels(root: Path, tmp_path: Path) -> None:
    with manager(root, mirror=tmp_path / "mirror") as saving:
        saving.load()
        saving.save(state(3), step=3, wait=True)
    with CheckpointManager(root, experiment="x", signing_key=MALLORY) as other:
        other.sign("step=1")
    rows = json.loads(signatures(tmp_path / "mirror")[0].read_bytes())["signatures"]
    assert len(rows) == 2


def test_repair_mends_a_flipped_bit_and_puts_aside_what_it_cannot(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flipped(root)
    damaged = signatures(root)[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with manager(root) as reading:
        assert {problem.kind for problem in reading.verify().problems} == {"signature", "signatures"}
        report = reading.repair()
        assert [mended.key.partition("/")[0] for mended in report.mended] == ["signatures"]
        assert report.quarantined == (f"quarantine/signatures/x/{damaged.name}",)
        assert reading.load("step=2")["step"] == 2
        with pytest.raises(SignatureError, match="not signed"):
            reading.load("step=1")
        reading.sign("step=1")
        assert reading.load("step=1")["step"] == 1


def test_quarantine_and_reindex_leave_them(root: Path) -> None:
    pack = sorted(root.glob("packs/*/*.safetensors"))[0]
    whole = pack.read_bytes()
    pack.write_bytes(whole[:5000])
    with manager(root) as reading:
        assert not reading.repair().ok
        reading.prune()
        assert len(signatures(root)) == 2
        pack.write_bytes(whole)
        assert len(reading.repair().returned) == 1
        reading.workspace.reindex()
        assert reading.load("step=1")["step"] == 1


def test_signing_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(tmp_path, experiment="x") as saving:
        for step in (1, 2):
            saving.save(state(step), step=step, wait=True)
    with manager(tmp_path) as reading:
        with pytest.raises(SignatureError):
            reading.load("step=1")
        assert reading.sign("step=1").step == 1
        with caplog.at_level(logging.ERROR):
            assert reading.load()["step"] == 1
        reading.sign("latest")
        assert reading.load()["step"] == 2, "what is to be signed need not be signed"
        reading.sign("latest")
        records = [
            record for record in reading.workspace.index.catalog().audit_log() if record.event == "sign"
        ]
        assert [record.outcome for record in records] == ["done"] * 3
        assert SigningKey(ALICE).name in str(records[0])
    assert len(json.loads(signatures(tmp_path)[1].read_bytes())["signatures"]) == 1


def test_who_signs_waits_for_nobody_but_says_who_is_at_work(root: Path) -> None:
    repository = Repository.open(LocalStore(root))
    with (
        repository.leases.take("prune", lock="maintenance"),
        manager(root) as reading,
        pytest.raises(StoreError) as caught,
    ):
        reading.sign("latest")
    assert caught.value.kind == "locked"


def test_training_goes_on_from_what_is_signed(root: Path) -> None:
    with manager(root) as training:
        training.load()
        assert training.attempt.resumed_step == 2
        training.save(state(3), step=3, metrics={"loss": 0.1}, wait=True)
        assert training.load("best")["step"] == 3


def test_a_team_in_one_file(root: Path, tmp_path: Path) -> None:
    names = [new_key(tmp_path / who) for who in ("alice", "bob")]
    team = tmp_path / "team.pem"
    team.write_bytes(
        b"# the team\n" + b"".join((tmp_path / f"{who}.pub").read_bytes() for who in ("alice", "bob"))
    )
    assert list(TrustedKeys.load(team).keys) == names
    assert set(TrustedKeys.load([team, ALICE.public_key()]).keys.values()) == {str(team), "an object"}
    with CheckpointManager(root, experiment="x", signing_key=tmp_path / "bob") as bob:
        bob.sign("step=1")
    with manager(root, signing_key=None, trusted_keys=str(team)) as reading:
        assert reading.load("step=1")["step"] == 1, "who signs a second time takes nothing away"
        with pytest.raises(SignatureError, match=SigningKey(ALICE).name):
            reading.load("step=2")
    with manager(root) as reading:
        assert reading.load("step=1")["step"] == 1


def test_who_trusts_and_cannot_sign_saves_nothing(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="x", trusted_keys=TRUSTED) as reading:
        with pytest.raises(UsageError, match="give signing_key=, too"):
            reading.save(state(1), step=1)
        with pytest.raises(UsageError, match="no key to sign with"):
            reading.sign("latest")


def test_without_the_library_it_is_said_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    for option in ({"signing_key": "k"}, {"trusted_keys": "k"}):
        with pytest.raises(MissingExtraError, match=r"ckpt-core\[sign\]"):
            CheckpointManager(root, experiment="x", **option)  # type: ignore[arg-type]
    with CheckpointManager(root, experiment="x") as reading:
        assert reading.load()["step"] == 2, "who trusts nobody needs no library"


def test_signatures_are_among_what_a_store_costs(root: Path, reading: CheckpointManager) -> None:
    places = ("checkpoints", "refs", "metrics", "signatures", "experiments")
    documents = [path for place in places for path in (root / place).rglob("*.json")]
    assert signatures(root)[0] in documents
    found = gather(reading.workspace.repository, reading.checkpoints())
    assert found.other_bytes == sum(path.stat().st_size for path in documents)


def test_signatures_of_a_later_format_are_no_damage_of_the_manifest(
    root: Path, reading: CheckpointManager
) -> None:
    signatures(root)[0].write_bytes(seal({"format": 9, "all": "new"}))
    problems = reading.verify().problems
    assert {problem.kind for problem in problems} == {"signature", "signatures"}
    assert all("upgrade" in problem.detail for problem in problems)
