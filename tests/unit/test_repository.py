"""The repository: what a commit writes and does not write again, what names what, and how it is found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from ckpt_core import clock, ids
from ckpt_core.errors import CorruptionError, FormatError, NotFoundError, ObjectNotFoundError
from ckpt_core.format.documents import StoreDocument
from ckpt_core.format.header import PAGE
from ckpt_core.format.sealed import seal
from ckpt_core.model import Attempt
from ckpt_core.repository import Committed, Draft, Repository, layout
from ckpt_core.stores import LocalStore, MemoryStore, Store
from contract.store_case import CHUNK, commit, keys_of, load, new_repository, same, snapshot_of


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


def packs(repository: Repository) -> list[str]:
    return [info.key for info in repository.store.list("packs")]


def chunks(committed: Committed) -> list[Any]:
    return [chunk for tensor in committed.manifest.tensors for chunk in tensor.shards[0].chunks]


# -- what a commit writes


def test_a_checkpoint_has_what_it_was_given(repository: Repository) -> None:
    attempt = Attempt(3, ids.new_ulid(), ids.new_ulid(), ids.new_ulid(), 7)
    state = {"w": np.arange(5000.0), "b": np.arange(3, dtype=np.int8), "epoch": 3}
    before = clock.now()
    committed = repository.commit(
        snapshot_of(state),
        Draft(
            "a b",
            12,
            attempt,
            {"loss": 0.5, "bad": math.nan, "top": -math.inf},
            {"host": "ä"},
            parent=attempt.id,
        ),
    )
    found = Repository.open(repository.store).read(committed.key)
    assert found == committed
    manifest, checkpoint = found.manifest, found.checkpoint(("t",), True)
    assert committed.key == f"checkpoints/a%20b/000000000012-{manifest.id}.json"
    assert (manifest.writer, manifest.parent, manifest.chunk_bytes) == ({"host": "ä"}, attempt.id, CHUNK)
    assert (checkpoint.experiment, checkpoint.step, checkpoint.attempt) == ("a b", 12, attempt)
    assert before <= checkpoint.created_at <= clock.now()
    assert checkpoint.metrics["loss"] == 0.5
    assert math.isnan(checkpoint.metrics["bad"])
    assert checkpoint.metrics["top"] == -math.inf
    assert (checkpoint.tags, checkpoint.pinned) == (("t",), True)
    assert checkpoint.logical_bytes == 40_003
    assert checkpoint.tensor_count == 2
    assert checkpoint.written_bytes == sum(size for _, size in found.packs) == found.packs[0][1]
    assert isinstance(hash(checkpoint), int)


def test_plain_safetensors_reads_what_was_committed(store_path: Path) -> None:
    repository = new_repository(LocalStore(store_path))
    state = {"model": {"a/b": np.arange(5000.0).reshape(50, 100), "bf16": np.arange(3).astype(ml_dtypes.bfloat16)},
             "odd": np.arange(3, dtype=np.uint8), "0-d": np.array(7), "empty": np.zeros((3, 0)), "T": np.arange(6.0).reshape(2, 3).T,
             "tied": None}  # fmt: skip
    state["tied"] = state["odd"]
    committed = commit(repository, state)
    found = load_file(store_path / "packs" / committed.packs[0][0])
    assert same(found.pop("model/a~1b"), state["model"]["a/b"])
    assert same(found.pop("model/bf16"), state["model"]["bf16"])
    assert same(found.pop("T"), np.ascontiguousarray(state["T"]))
    for name in ("odd", "0-d", "empty"):
        assert same(found.pop(name), state[name])
    assert found == {}


def test_an_unchanged_state_writes_no_pack(repository: Repository) -> None:
    state = {"w": np.arange(50_000.0), "step": 1}
    first = commit(repository, state, 1)
    second = commit(repository, {**state, "step": 2}, 2, base=first.manifest)
    assert second.manifest.written_bytes == 0
    assert second.packs == first.packs
    assert len(packs(repository)) == 1
    assert load(repository, second.key)["step"] == 2


def test_a_changed_chunk_is_all_that_is_written(repository: Repository) -> None:
    state = {"w": np.arange(500_000.0), "b": np.zeros(10)}
    first = commit(repository, state, 1)
    state["w"][1000] = -1
    second = commit(repository, state, 2, base=first.manifest)
    assert second.manifest.written_bytes == PAGE + CHUNK
    assert len(second.packs) == 2
    assert same(load(repository, second.key), state)
    assert load(repository, first.key)["w"][1000] == 1000


def test_chunks_are_known_by_what_they_hold(repository: Repository) -> None:
    first = commit(repository, {"a": np.arange(5000.0)}, 1)
    moved = commit(
        repository, {"renamed": {"x": np.arange(5000.0)}, "y": np.arange(512.0)}, 2, base=first.manifest
    )
    assert moved.manifest.written_bytes == 0
    assert same(load(repository, moved.key), {"renamed": {"x": np.arange(5000.0)}, "y": np.arange(512.0)})


def test_without_a_base_all_is_written(repository: Repository) -> None:
    state = {"w": np.arange(5000.0)}
    first = commit(repository, state, 1)
    assert commit(repository, state, 2).manifest.written_bytes == first.manifest.written_bytes


def test_a_base_of_another_store_is_no_base(repository: Repository) -> None:
    state = {"w": np.arange(5000.0)}
    other = commit(new_repository(MemoryStore()), state).manifest
    committed = commit(repository, state, 1, base=other)
    assert committed.manifest.written_bytes > 40_000
    assert same(load(repository, committed.key), state)


def test_a_base_whose_packs_are_gone_is_written_anew(repository: Repository) -> None:
    state = {"w": np.arange(5000.0), "v": np.arange(600.0)}
    first = commit(repository, state, 1)
    state["v"] = state["v"] + 1
    second = commit(repository, state, 2, base=first.manifest)
    repository.store.delete(layout.pack_key(first.packs[0][0]))
    third = commit(repository, state, 3, base=second.manifest)
    assert first.packs[0] not in third.packs
    assert same(load(repository, third.key), state)


def test_a_base_whose_pack_was_cut_is_written_anew(repository: Repository) -> None:
    state = {"w": np.arange(5000.0)}
    first = commit(repository, state, 1)
    key = layout.pack_key(first.packs[0][0])
    repository.store.put(key, repository.store.get(key)[:-1])
    second = commit(repository, state, 2, base=first.manifest)
    assert same(load(repository, second.key), state)


@pytest.mark.parametrize("state", [{}, 5, {"e": np.zeros((0, 3)), "x": 1}, None])
def test_a_state_without_bytes_has_no_pack(repository: Repository, state: Any) -> None:
    committed = commit(repository, state)
    assert (committed.packs, committed.manifest.written_bytes) == ([], 0)
    assert same(load(repository, committed.key), state)


def test_large_states_go_through_several_threads(repository: Repository) -> None:
    repository = new_repository(MemoryStore(), 1 << 20)
    state = {str(n): np.random.default_rng(n).standard_normal(200_000 + n) for n in range(12)}
    committed = commit(repository, state)
    assert same(load(repository, committed.key), state)


def test_five_thousand_tiny_tensors(repository: Repository) -> None:
    state = {f"layer.{n}": {"w": np.full(n % 7, n, np.float32), "b": np.array(n)} for n in range(2500)}
    committed = commit(repository, state)
    assert committed.manifest.written_bytes < 1_500_000
    assert same(load(repository, committed.key), state)
    like = {key: {name: np.zeros_like(array) for name, array in row.items()} for key, row in state.items()}
    assert same(load(repository, committed.key, like=like), state)


NAMES = [
    "a/b",
    "with space",
    "ä名👩🏽",
    "",
    "__metadata__",
    "~",
    "~1",
    "$",
    "$tensor",
    "x[0:4]",
    "..",
    "../x",
    "\0",
    "\x1b[31m",
    '"',
]


def test_tensors_of_any_name(repository: Repository) -> None:
    state: dict[Any, Any] = {name: {name: np.array([n])} for n, name in enumerate(NAMES)}
    state |= {7: np.array([7]), None: np.array([8]), 0.5: np.array([9]), True: np.array([10])}
    assert same(load(repository, commit(repository, state).key), state)


# -- finding


def test_checkpoints_are_listed_by_experiment_and_step(repository: Repository) -> None:
    for experiment, step in (("b", 5), ("a", 100), ("a", 20), ("a", 20), ("ä", 1)):
        commit(repository, {"x": step}, step, experiment=experiment)
    found = list(repository.manifest_keys())
    assert [(key.folder, key.step) for key in found] == [
        ("%C3%A4", 1),
        ("a", 20),
        ("a", 20),
        ("a", 100),
        ("b", 5),
    ]
    assert [key.step for key in repository.manifest_keys("a")] == [20, 20, 100]
    assert [key.step for key in repository.manifest_keys("ä")] == [1]
    assert list(repository.manifest_keys("c")) == []
    repository.store.put("checkpoints/a/notes.txt", b"mine")
    repository.store.put("checkpoints/a/x/y.json", b"mine")
    assert len(list(repository.manifest_keys())) == 5


def test_a_forgotten_checkpoint_is_in_the_trash(repository: Repository) -> None:
    committed = commit(repository, {"x": np.arange(3)}, 7)
    target = repository.forget(committed.key)
    assert list(repository.manifest_keys()) == []
    assert [key.key for key in repository.manifest_keys(trash=True)] == [target]
    assert repository.read(target).manifest == committed.manifest
    with pytest.raises(NotFoundError) as caught:
        repository.read(committed.key)
    assert caught.value.key == committed.key
    with pytest.raises(ObjectNotFoundError):
        repository.forget(committed.key)


def test_a_manifest_in_another_s_place_is_refused(repository: Repository) -> None:
    one, other = commit(repository, {"x": 1}, 1), commit(repository, {"x": 2}, 2)
    data = repository.store.get(one.key)
    for key in (
        other.key,
        layout.manifest_key("elsewhere", 1, one.manifest.id),
        layout.manifest_key("digits", 3, one.manifest.id),
    ):
        repository.store.put(key, data)
        with pytest.raises(CorruptionError, match="moved or copied"):
            repository.read(key)


# -- opening


def test_a_store_is_made_once(store_path: Path) -> None:
    first = Repository.open(LocalStore(store_path), create=True)
    again = Repository.open(LocalStore(store_path), create=True)
    assert first.document == again.document
    with pytest.raises(NotFoundError, match="CKPT_STORE") as caught:
        Repository.open(MemoryStore())
    assert caught.value.kind == "store"


def test_of_two_that_make_a_store_at_once_one_wins() -> None:
    class Racing(MemoryStore):
        """Somebody else makes the store just before we do."""

        def put_new(self, key: str, data: Any) -> None:
            document = StoreDocument(
                store_id="0" * 26, chunk_bytes=CHUNK, created_at=clock.to_text(clock.now())
            )
            self.put(key, seal(document))
            super().put_new(key, data)

    assert Repository.open(Racing(), create=True).document.store_id == "0" * 26


def test_a_lost_store_document_is_made_again(repository: Repository) -> None:
    state = {"w": np.arange(5000.0), "b": np.arange(3.0)}
    committed = commit(repository, state)
    repository.store.delete("store.json")
    again = Repository.open(repository.store, create=True)
    assert again.document.chunk_bytes == 8 << 20
    assert same(load(again, committed.key), state)
    second = commit(again, state, 2, base=committed.manifest)  # cut into other chunks, but for the short ones
    assert len(second.packs) == 2
    assert same(load(again, second.key), state)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 2}, FormatError), ({"digest": "md5"}, FormatError), ({"chunk_bytes": 0}, CorruptionError),
        ({"chunk_bytes": 4097}, CorruptionError), ({"chunk_bytes": 1 << 40}, CorruptionError), ({"store_id": "x"}, CorruptionError),
    ],
    ids=repr,
)  # fmt: skip
def test_a_store_that_cannot_be_read_is_not_touched(change: dict[str, Any], error: type[Exception]) -> None:
    store = MemoryStore()
    document = {"format": 1, "store_id": ids.new_ulid(), "chunk_bytes": 4096, "created_at": clock.to_text(clock.now()),
                "digest": "sha256"}  # fmt: skip
    data = seal({**document, **change})
    store.put("store.json", data)
    with pytest.raises(error, match=r"upgrade|damaged"):
        Repository.open(store, create=True)
    assert store.get("store.json") == data


def test_store_and_repository_are_the_same_whatever_the_store(store_path: Path) -> None:
    def keys(store: Store) -> list[str]:
        repository = new_repository(store)
        first = commit(repository, {"w": np.arange(5000.0)}, 1)
        commit(repository, {"w": np.arange(5000.0) + 1}, 2, base=first.manifest)
        return [re.sub("[0-9A-Z]{26}", "@", key) for key in keys_of(store)]

    assert keys(LocalStore(store_path)) == keys(MemoryStore())
