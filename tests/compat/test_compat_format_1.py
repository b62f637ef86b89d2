"""A store that was written when format 1 was made: every value in it is read back, to the last bit.

The files under `format-1/` are never written again. Where this test fails, the reader is wrong.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize

from ckpt_core.errors import NotFoundError
from ckpt_core.format.header import read_header
from ckpt_core.repository import MetricSegments, References, Repository, layout
from ckpt_core.stores import LocalStore
from contract.store_case import commit, load, same

HERE = Path(__file__).parent
FROZEN = HERE / "format-1"
EXPERIMENT = "digits 8x8"


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_store", HERE / "write_store.py")
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
    return next(key.key for key in repository.manifest_keys(EXPERIMENT) if key.step == step)


def without_names(state: Any) -> Any:
    """A state as it comes back without `like=`: named tuples as plain ones."""
    if isinstance(state, dict):
        return {key: without_names(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        items = [without_names(value) for value in state]
        return items if isinstance(state, list) else tuple(items)
    return state


@pytest.mark.parametrize(("step", "state"), [(100, "plain"), (200, "changed"), (300, "dtype")])
def test_every_value_comes_back(repository: Repository, step: int, state: str) -> None:
    expected = getattr(writer, f"{state}_state")()
    for verify in ("full", "lazy", "off"):
        found = load(repository, key_of(repository, step), verify=verify)
        assert same(found, without_names(expected))


def test_every_object_comes_back(repository: Repository) -> None:
    expected = writer.object_state()
    found = load(repository, key_of(repository, 400))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.random.Generator):
            assert (found[name].random(5) == value.random(5)).all()
            assert found[name].spawn(1)[0].random() == value.spawn(1)[0].random()
        else:
            assert same(found[name], value)


def test_the_bytes_of_another_framework_come_back(repository: Repository) -> None:
    expected = writer.torch_snapshot()
    manifest = repository.read(key_of(repository, 450)).manifest
    reader = repository.reader(manifest)
    reader.check_headers()
    assert manifest.state == expected.tree
    for index, tensor in enumerate(expected.tensors):
        assert (reader.spec(index), manifest.tensors[index].kind) == (tensor.spec, "torch")
        assert (reader.read_range(index, 0, tensor.data.size) == tensor.data).all()
    reader.close()


def test_tied_tensors_come_back_tied_and_named_tuples_named(repository: Repository) -> None:
    key = key_of(repository, 100)
    found = load(repository, key)
    assert found["model"]["tied"] is found["model"]["head"]
    like = writer.plain_state()
    like["model"]["tied"][:] = 0
    again = load(repository, key, like=like)
    assert type(again["containers"][5]).__name__ == "Point"
    assert again["model"]["tied"] is like["model"]["tied"]
    assert same(again["model"]["tied"], writer.plain_state()["model"]["tied"])


def test_facts_of_the_checkpoints(repository: Repository) -> None:
    found = [repository.read(key.key).checkpoint() for key in repository.manifest_keys()]
    assert [checkpoint.step for checkpoint in found] == [100, 200, 300, 400, 450]
    assert {checkpoint.experiment for checkpoint in found} == {EXPERIMENT}
    assert found[0].attempt == writer.FIRST
    assert found[1].attempt == writer.SECOND
    assert found[1].parent == found[0].id
    assert found[0].metrics == {"loss": 0.5}
    assert math.isnan(found[1].metrics["loss"])
    assert found[1].metrics["accuracy"] == math.inf
    assert len(repository.read(found[1].key).packs) == 2
    assert found[1].written_bytes < found[0].written_bytes


def test_tags_pins_metrics_and_the_trash(repository: Repository) -> None:
    store = repository.store
    ids = {key.step: key.id for key in repository.manifest_keys()}
    assert References(store).of_experiment(EXPERIMENT) == ({"ä": ids[200]}, {ids[100]})
    segments = list(MetricSegments(store).all(EXPERIMENT))
    assert [attempt for _, attempt, _ in segments] == [writer.FIRST, writer.SECOND]
    rows = [(p.name, p.step, str(p.value), p.at, p.attempt) for _, _, points in segments for p in points]
    assert rows == [("loss", 1, "0.5", writer.MOMENT, 1), ("loss", 2, "nan", writer.MOMENT, 1),
                    ("accuracy", 200, "-inf", writer.MOMENT, 2)]  # fmt: skip
    (trash,) = repository.manifest_keys(trash=True)
    assert trash.step == 500
    assert same(load(repository, trash.key), {"gone": np.arange(3)})


def test_the_rewritten_pack_is_found_by_its_forward(repository: Repository) -> None:
    (name,) = (name for name, _ in repository.read(key_of(repository, 300)).packs)
    assert not repository.store.exists(layout.pack_key(name))
    forward = repository.forward(name)
    assert forward is not None
    assert {writer.REWRITTEN in row.pack for row in forward.rows} == {True}


def test_every_pack_proves_itself_and_opens_with_plain_safetensors(repository: Repository) -> None:
    found = [info.key for info in repository.store.list("packs") if info.key.endswith(".safetensors")]
    assert len(found) == 6
    for key in found:
        data = (FROZEN / key).read_bytes()
        array = np.frombuffer(data, np.uint8)
        header = read_header(lambda offset, length, a=array: a[offset : offset + length], len(data), key)
        assert deserialize(data)
        assert header.chunks


def test_a_new_checkpoint_builds_on_an_old_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    for path in FROZEN.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(FROZEN).as_posix(), path.read_bytes())
    repository = Repository.open(store)
    base = repository.read(key_of(repository, 200)).manifest
    committed = commit(repository, writer.changed_state(), 600, base=base, experiment=EXPERIMENT)
    assert committed.manifest.written_bytes == 0
    assert same(load(repository, committed.key), without_names(writer.changed_state()))


def test_the_script_still_writes_a_store_like_it(tmp_path: Path) -> None:
    writer.write(tmp_path / "store")
    repository = Repository.open(LocalStore(tmp_path / "store"))
    assert same(load(repository, key_of(repository, 300)), writer.dtype_state())
    kinds = [
        [key.parent.relative_to(root) for key in sorted(root.rglob("*.*"))]
        for root in (FROZEN, tmp_path / "store")
    ]
    assert kinds[0] == kinds[1]


def test_the_frozen_store_is_small_and_whole() -> None:
    files = [path for path in FROZEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    assert not [path for path in files if path.name.startswith(".tmp")]
    with pytest.raises(NotFoundError):
        Repository.open(LocalStore(HERE))
