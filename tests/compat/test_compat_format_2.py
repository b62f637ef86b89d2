"""A store with compressed chunks that was written when format 2 was made: every value is read back.

The files under `format-2/` are never written again. Where this test fails, the reader is wrong.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors import deserialize

from ckpt_core.format.header import read_header
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import LocalStore
from contract.store_case import commit, load, same

HERE = Path(__file__).parent
FROZEN = HERE / "format-2"
STATES = [(100, "plain"), (200, "compressed"), (300, "changed")]


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "write_compressed_store", HERE / "write_compressed_store.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


writer = _writer()


@pytest.fixture
def repository() -> Repository:
    return Repository.open(LocalStore(FROZEN))


def key_of(repository: Repository, step: int) -> str:
    return next(key.key for key in repository.manifest_keys(writer.EXPERIMENT) if key.step == step)


@pytest.mark.parametrize(("step", "state"), STATES)
@pytest.mark.parametrize("mode", ["full", "lazy", "off"])
def test_every_value_comes_back(repository: Repository, step: int, state: str, mode: str) -> None:
    expected = getattr(writer, f"{state}_state")()
    assert same(load(repository, key_of(repository, step), verify=mode), expected)


def test_chunks_of_both_kinds_are_there_and_whole(repository: Repository) -> None:
    manifests = {step: repository.read(key_of(repository, step)).manifest for step, _ in STATES}
    assert {step: manifest.format for step, manifest in manifests.items()} == {100: 1, 200: 2, 300: 2}
    assert len(manifests[300].packs) == 3
    stored = [length for tensor in manifests[200].tensors for length in tensor.shards[0].stored or ()]
    assert any(stored)
    assert not all(stored)
    assert verify(repository).ok


def test_a_compressed_pack_that_was_rewritten_is_found_by_its_forward(repository: Repository) -> None:
    key = key_of(repository, 400)
    (name,) = (name for name, _ in repository.read(key).packs)
    assert not repository.store.exists(layout.pack_key(name))
    assert same(load(repository, key), {"moved": writer.weights(4000).astype(np.float32)})


def test_every_pack_proves_itself_and_opens_with_plain_safetensors(repository: Repository) -> None:
    found = [info.key for info in repository.store.list("packs") if info.key.endswith(".safetensors")]
    assert len(found) == 4
    for key in found:
        data = (FROZEN / key).read_bytes()
        array = np.frombuffer(data, np.uint8)
        header = read_header(lambda offset, length, a=array: a[offset : offset + length], len(data), key)
        assert deserialize(data)
        for chunk in header.chunks:
            chunk.content(array[chunk.offset : chunk.offset + chunk.length], "sha256")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_new_checkpoint_builds_on_an_old_one(tmp_path: Path, compression: str | None) -> None:
    store = LocalStore(tmp_path / "store")
    for path in FROZEN.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(FROZEN).as_posix(), path.read_bytes())
    repository = Repository.open(store)
    base = repository.read(key_of(repository, 300)).manifest
    state = writer.changed_state()
    committed = commit(
        repository, state, 600, base=base, experiment=writer.EXPERIMENT, compression=compression
    )
    assert committed.manifest.written_bytes == 0
    assert same(load(repository, committed.key), state)


def test_the_script_still_writes_a_store_like_it(tmp_path: Path) -> None:
    writer.write(tmp_path / "store")
    repository = Repository.open(LocalStore(tmp_path / "store"))
    assert same(load(repository, key_of(repository, 200)), writer.compressed_state())
    kinds = [
        [key.parent.relative_to(root) for key in sorted(root.rglob("*.*"))]
        for root in (FROZEN, tmp_path / "store")
    ]
    assert kinds[0] == kinds[1]


def test_the_frozen_store_is_small() -> None:
    files = [path for path in FROZEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 250_000
    assert not [path for path in files if path.name.startswith(".tmp")]
