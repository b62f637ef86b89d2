"""Checkpoints with compressed chunks, from the save to the prune: all that holds without compression holds."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core import CheckpointManager, CorruptionError, FormatError, KeepLast, MissingExtraError
from ckpt_core.format import compression, documents
from ckpt_core.format.header import read_header
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.difference import difference
from ckpt_core.maintenance.doctor import examine
from ckpt_core.maintenance.rewriting import rebased
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, load, new_repository, same

RANDOM = np.random.default_rng(3)
NOISE = np.frombuffer(RANDOM.bytes(3 * CHUNK + 5), np.uint8)
NORMAL = (RANDOM.standard_normal(20_000) * 0.02).astype(np.float32)


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


def state(shift: float = 0.0) -> dict[str, Any]:
    """Tensors that compress, tensors that do not, and such as are too short."""
    return {
        "w": (NORMAL + np.float32(shift)).reshape(100, 200), "half": NORMAL.astype(ml_dtypes.bfloat16),
        "noise": NOISE.tobytes(), "steps": np.arange(2000), "n": 3,
        "tiny": np.float64(1.5), "none": np.zeros((0, 3)), "mask": NORMAL > 0.02, "z": NORMAL[:600].astype(np.complex64),
        "big": NORMAL.astype(">f4"), "when": np.arange(3000).astype("<M8[s]"), "words": np.array(["ä", "bcd"] * 900),
    }  # fmt: skip


def packs(repository: Repository) -> dict[str, Any]:
    """The header of every pack."""
    found = {}
    for info in repository.store.list("packs"):
        if info.key.endswith(".safetensors"):
            with repository.store.open(info.key) as reader:
                found[info.key] = read_header(reader.read, reader.size, info.key)
    return found


# -- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "lazy", "off"])
def test_every_value_comes_back(repository: Repository, mode: Any) -> None:
    plain, smaller = commit(repository, state(), 1), commit(repository, state(), 2, compression="zstd")
    assert smaller.manifest.written_bytes < 0.75 * plain.manifest.written_bytes
    assert smaller.manifest.logical_bytes == plain.manifest.logical_bytes
    assert (plain.manifest.format, smaller.manifest.format) == (1, 2)
    assert same(load(repository, smaller.key, verify=mode), state())
    like = state(1.0)
    assert same(load(repository, smaller.key, verify=mode, like=like), state())
    assert verify(repository).ok


@pytest.mark.parametrize("mode", ["full", "lazy", "off"])
def test_any_range_of_bytes_is_read(repository: Repository, mode: Any) -> None:
    committed = commit(repository, {"w": NORMAL}, compression="zstd")
    reader = repository.reader(committed.manifest, mode)
    data = NORMAL.tobytes()
    for begin, end in [
        (0, 80_000),
        (5, 6),
        (CHUNK - 1, CHUNK + 1),
        (4096, 8192),
        (79_990, 80_000),
        (3, 70_001),
        (9, 9),
    ]:
        assert reader.read_range(0, begin, end).tobytes() == data[begin:end]
    reader.close()


@pytest.mark.parametrize("wait", [True, False])
def test_a_manager_compresses_what_it_writes(store_path: Path, wait: bool) -> None:
    with CheckpointManager(store_path, experiment="x", compression="zstd", chunk_bytes=1 << 16) as manager:
        saved = manager.save(state(), step=1, wait=wait).result(60)
        assert saved.written_bytes < 0.75 * saved.logical_bytes
        assert same(manager.load(), state())
        with manager.open("latest") as reader:
            assert (reader["w"][10:20] == state()["w"][10:20]).all()
            assert (reader["half"][3] == state()["half"][3]).all()
        assert manager.verify().ok
        assert manager.save(state(), step=2, wait=True).result().written_bytes == 0


leaves = st.tuples(
    st.sampled_from(
        ["<f4", "<f8", "<f2", "bfloat16", "<i8", "<u2", "|b1", "float8_e5m2", "<c8", ">f8", "<U3", "S7"]
    ),
    st.integers(0, 9000),
    st.sampled_from(["normal", "count", "same", "bytes"]),
)


def made(dtype: str, count: int, values: str) -> np.ndarray[Any, Any]:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if values == "bytes" and kind.kind not in "bU":
        return np.frombuffer(np.random.default_rng(count).bytes(count * kind.itemsize), kind)
    source = {"normal": np.resize(NORMAL, count), "same": np.ones(count)}.get(values, np.arange(count) % 120)
    return source.astype(kind)


@given(st.lists(leaves, max_size=6), st.sampled_from([4096, 8192, 1 << 16]), st.sampled_from(["zstd", None]))
@settings(max_examples=settings.default.max_examples // 2)
def test_whatever_is_saved_comes_back(rows: list[Any], chunk_bytes: int, second: str | None) -> None:
    repository = new_repository(MemoryStore(), chunk_bytes)
    tensors = {str(n): made(*row) for n, row in enumerate(rows)}
    first = commit(repository, tensors, 1, compression="zstd")
    again = commit(repository, tensors, 2, base=first.manifest, compression=second)
    assert again.manifest.written_bytes == 0
    anew = commit(repository, tensors, 3, compression=second)
    for committed in (first, again, anew):
        found = load(repository, committed.key)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in tensors.items()
        }
    assert verify(repository).ok


# -- what others see ----------------------------------------------------------------------------------


def test_without_it_nothing_is_any_larger(repository: Repository) -> None:
    plain = commit(repository, state(), 1)
    raw = repository.store.get(plain.key)
    assert b"stored" not in raw
    assert json.loads(raw)["format"] == 1
    (header,) = packs(repository).values()
    assert all(chunk.expanded is None for chunk in header.chunks)


def test_what_does_not_pay_is_as_it_would_be_without(repository: Repository) -> None:
    noise = {"noise": np.frombuffer(RANDOM.bytes(5 * CHUNK), np.uint8)}
    first, second = commit(repository, noise, 1), commit(repository, noise, 2, compression="zstd")
    assert second.manifest.format == 1
    assert first.manifest.written_bytes == second.manifest.written_bytes
    assert second.manifest.tensors[0].shards[0].stored is None


def test_a_reader_of_format_1_asks_for_an_upgrade(repository: Repository) -> None:
    committed = commit(repository, state(), compression="zstd")
    with pytest.raises(FormatError, match="upgrade"):
        unseal(repository.store.get(committed.key), documents.Manifest, "it")


def test_differences_and_stored_bytes_are_told(repository: Repository) -> None:
    old = commit(repository, {"w": NORMAL, "v": NORMAL}, 1, compression="zstd").manifest
    changed = NORMAL.copy()
    changed[7] += 1
    new = commit(repository, {"w": changed, "v": NORMAL}, 2, compression="zstd").manifest
    found = difference(repository, old, new)
    assert [(change.path, change.changed) for change in found.tensors] == [("w", 1)]
    assert found.tensors[0].max_abs == pytest.approx(1.0)


# -- deduplication ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(None, "zstd"), ("zstd", None), ("zstd", "zstd")])
def test_what_the_parent_has_is_not_written_again_in_either_form(
    repository: Repository, first: Any, second: Any
) -> None:
    one = commit(repository, {"w": NORMAL}, 1, compression=first)
    same_again = commit(repository, {"w": NORMAL}, 2, base=one.manifest, compression=second)
    assert same_again.manifest.written_bytes == 0
    changed = NORMAL.copy()
    changed[0] = 1
    three = commit(repository, {"w": changed}, 3, base=same_again.manifest, compression=second)
    stored = three.manifest.tensors[0].shards[0].stored or (0,) * 20
    assert [bool(length) for length in stored[:3]] == [
        second is not None,
        first is not None,
        first is not None,
    ]
    assert three.manifest.format == 2
    assert same(load(repository, three.key), {"w": changed})
    assert verify(repository).ok


def test_too_many_packs_are_folded_in_the_form_that_is_asked_for(repository: Repository) -> None:
    base = None
    values = {f"t{n}": NORMAL[:2000] + n for n in range(70)}
    for step in range(70):
        values[f"t{step}"] = NORMAL[:2000] - step
        mode = "zstd" if step % 3 else None
        committed = commit(repository, values, step, base=base, compression=mode)
        base = committed.manifest
        assert len(base.packs) <= 64
    assert same(load(repository, committed.key), values)
    assert verify(repository).ok


# -- prune --------------------------------------------------------------------------------------------


def test_packs_are_rewritten_as_they_are(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    whole = {
        "keep": NORMAL,
        "noise": np.frombuffer(RANDOM.bytes(3 * CHUNK), np.uint8),
        "go": np.tile(NORMAL, 3) + 1,
    }
    first = commit(repository, whole, 1, compression="zstd")
    rest = {"keep": NORMAL, "noise": whole["noise"]}
    second = commit(repository, rest, 2, base=first.manifest, compression="zstd")
    repository.forget(first.key)
    plan = prune_module.plan_prune(repository)
    ((name, live, _),) = plan.rewrites
    lengths = [c.length for c in packs(repository)[layout.pack_key(name)].chunks if c.path != "go"]
    assert live == sum(lengths), "what counts are the bytes on disk"
    execute_prune(repository, plan)
    ((key, header),) = packs(repository).items()
    assert key.endswith("-r1.safetensors")
    assert [c.length for c in header.chunks] == lengths
    assert same(load(repository, second.key), rest)
    assert verify(repository).ok
    third = commit(repository, rest, 3, base=rebased(repository, second.manifest))
    assert third.manifest.written_bytes == 0
    assert same(load(repository, third.key), rest)


def test_a_forwarding_leads_to_a_chunk_in_the_same_form(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bytes of two types have one digest and are compressed to two lengths: a manifest names one of them."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    texts = np.frombuffer(b'{"loss": 0.25}\n\0' * 256, np.uint8)
    both = {"as floats": texts.view(np.float32), "as bytes": texts, "go": NORMAL}
    first = commit(repository, both, 1, compression="zstd")
    name = first.manifest.packs[0].name
    before = {c.offset: c for c in packs(repository)[layout.pack_key(name)].chunks if c.path != "go"}
    assert len({c.digest for c in before.values()}) == 1
    assert len({c.length for c in before.values()}) == 2
    del both["go"]
    kept = commit(repository, both, 2, base=first.manifest, compression="zstd")
    repository.forget(first.key)
    execute_prune(repository, prune_module.plan_prune(repository))
    ((_, header),) = packs(repository).items()
    after = {c.offset: c.length for c in header.chunks}
    forward = repository.forward(name)
    assert forward is not None
    assert [before[row.offset].length for row in forward.rows] == [
        after[row.new_offset] for row in forward.rows
    ]
    assert same(load(repository, kept.key), both)
    assert verify(repository).ok


def test_retention_goes_on_beside_compressed_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    store = MemoryStore()
    new_repository(store)
    table = np.resize(NORMAL, (40, 1024))
    with CheckpointManager(store, experiment="x", retention=[KeepLast(2)], compression="zstd") as manager:
        for step in range(30):
            table[step] += 1
            manager.save({"table": table, "step": step}, step=step, wait=True)
        assert (manager.load()["table"] == table).all()
        assert manager.verify().ok
        assert manager._saver.unfinished == []
        assert manager.workspace.reindex().checkpoints == 2


# -- damage, lies, and what is not installed ----------------------------------------------------------


def manifest_with(repository: Repository, key: str, change: Any) -> str:
    document = json.loads(repository.store.get(key))
    del document["sha256"]
    change(document)
    repository.store.put(key, seal(document))
    return key


@pytest.mark.parametrize(
    "stored",
    [[64], [64, 64, 64], [1 << 40, 64], [64, -1], [64, 64], [1, 64], "64", [0, 0, 0], [64.5, 1]],
    ids=str,
)
def test_a_manifest_that_lies_of_what_is_stored_is_refused(repository: Repository, stored: Any) -> None:
    key = commit(repository, {"w": NORMAL[:2048]}, compression="zstd").key
    manifest_with(repository, key, lambda d: d["tensors"][0][2][0].update(stored=stored))
    with pytest.raises(CorruptionError):
        load(repository, key)


def test_compressed_chunks_in_a_manifest_of_format_1_are_refused(repository: Repository) -> None:
    key = commit(repository, {"w": NORMAL}, compression="zstd").key
    manifest_with(repository, key, lambda d: d.update(format=1))
    with pytest.raises(CorruptionError, match="format 1"):
        repository.read(key)


def test_a_manifest_cannot_claim_more_than_its_chunks_can_hold(repository: Repository) -> None:
    key = commit(repository, {"w": np.zeros(2048, np.float32)}, compression="zstd").key

    def larger(document: dict[str, Any]) -> None:
        document["chunk_bytes"] = 1 << 30
        document["tensors"][0][1] = [1 << 28]
        document["tensors"][0][2][0] = {"chunks": document["tensors"][0][2][0]["chunks"][:1], "stored": [64]}

    manifest_with(repository, key, larger)
    with pytest.raises(CorruptionError, match="too short"):
        repository.read(key)


def test_a_length_other_than_the_packs_is_found_by_verify(repository: Repository) -> None:
    key = commit(repository, {"w": NORMAL}, compression="zstd").key

    def shorter(document: dict[str, Any]) -> None:
        document["tensors"][0][2][0]["stored"][3] -= 64

    manifest_with(repository, key, shorter)
    assert [problem.kind for problem in verify(repository).problems] == ["missing"]
    with pytest.raises(CorruptionError) as caught:
        load(repository, key)
    assert caught.value.kind == "compressed"
    assert "ckpt verify" in str(caught.value)


def uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    """`zstandard` cannot be imported, and no thread has anything of it left."""
    monkeypatch.setattr(compression, "_own", threading.local())
    monkeypatch.setitem(sys.modules, "zstandard", None)


def test_without_the_library_neither_saves_nor_loads_go_wrong_silently(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointManager(store_path, experiment="x", compression="zstd") as manager:
        manager.save({"w": NORMAL}, step=1, wait=True)
    uninstall(monkeypatch)
    hint = r"pip install 'ckpt-core\[zstd\]'"
    with pytest.raises(MissingExtraError, match=hint):
        CheckpointManager(store_path.with_name("other"), experiment="x", compression="zstd")
    assert not store_path.with_name("other").exists()
    with CheckpointManager(store_path, experiment="x") as manager:
        for attempt in (manager.load, manager.verify, lambda: manager.open("latest")):
            with pytest.raises(MissingExtraError, match=hint):
                attempt()
        assert [c.step for c in manager.checkpoints()] == [1], "it can be listed all the same"
        manager.save({"w": NORMAL + 1}, step=2, wait=True)
        assert (manager.load()["w"] == NORMAL + 1).all()


def test_without_the_library_what_is_not_compressed_is_as_ever(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch)
    key = commit(repository, {"w": NORMAL}).key
    assert same(load(repository, key), {"w": NORMAL})
    assert verify(repository).ok


def test_the_doctor_tells_what_cannot_be_read_here(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(manager: CheckpointManager) -> list[tuple[str, str]]:
        workspace = manager.workspace
        findings = examine(workspace.repository, workspace.references, workspace.index.catalog)
        return [(each.level, each.message) for each in findings if each.check == "compression"]

    with CheckpointManager(store_path, experiment="x", compression="zstd") as manager:
        assert found(manager) == []
        manager.save({"w": NORMAL}, step=1, wait=True)
        assert found(manager) == [("ok", "1 checkpoint with compressed chunks")]
        uninstall(monkeypatch)
        ((level, message),) = found(manager)
        assert level == "error"
        assert "pip install 'ckpt-core[zstd]'" in message


def test_parity_covers_what_is_stored(store_path: Path) -> None:
    pytest.importorskip("zfec")
    with CheckpointManager(store_path, experiment="x", compression="zstd", parity=20) as manager:
        manager.save({"w": NORMAL}, step=1, wait=True)
        manager.wait()
        assert list(store_path.glob("packs/*/*.parity"))
        assert manager.verify().ok
