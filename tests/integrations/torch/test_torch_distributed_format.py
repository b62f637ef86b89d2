"""Folders of torch.distributed.checkpoint in and out, read by torch itself; their pickles are not believed."""

from __future__ import annotations

import os
import pickle
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_core import CheckpointManager, CorruptionError, FormatError, export_checkpoint, import_checkpoint
from ckpt_core.backends import guess_backend, room
from ckpt_core.stores import MemoryStore
from ckpt_core.testing import same_state
from ckpt_torch.distributed import DistributedBackend
from contract.anonymous import taken_by_import

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state() -> dict[str, Any]:
    tied = torch.arange(5.0)
    return {
        "model": {
            "w": torch.rand(3, 4),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "a": tied,
            "b": tied + 1,
        },
        "optimizer": [{"lr": 0.1, "betas": (0.9, 0.999)}, torch.rand(2)],
        "epoch": 3,
        "name": "x",
    }


def test_there_and_back(tmp_path: Path) -> None:
    saved = state() | {"numpy": np.arange(3)}
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save(saved, step=1, wait=True)
        done = export_checkpoint(manager, "latest", tmp_path / "ours", format="dcp")
        assert done.tensors == 6
        import_checkpoint(manager, tmp_path / "ours")
        expected = {**saved, "numpy": torch.arange(3)}
        assert same_state(manager.load("latest"), expected)
    live = {"model": {name: torch.zeros_like(tensor) for name, tensor in saved["model"].items()}}
    dcp.load(live, storage_reader=dcp.FileSystemReader(tmp_path / "ours"), no_dist=True)
    assert same_state(live["model"], saved["model"])


def test_folders_of_torch_are_read(tmp_path: Path) -> None:
    dcp.save(state() | {"epoch": 3}, storage_writer=dcp.FileSystemWriter(tmp_path / "x"), no_dist=True)
    assert guess_backend(tmp_path / "x").name == "dcp"
    found = DistributedBackend().load_checkpoint(tmp_path / "x")
    assert (found["epoch"], found["optimizer"][0]["betas"]) == (3, (0.9, 0.999))


@pytest.mark.skipif(sys.platform != "linux", reason="what memory is of no file, only Linux tells")
def test_an_import_takes_no_memory_for_the_whole(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for place, values in ((small, 10), (large, 1 << 20)):
        tensors = {f"w{n}": torch.arange(values) + n * values for n in range(12)}
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(place), no_dist=True)
    assert taken_by_import("dcp", small, large, tmp_path / "store") < 48 << 20  # of 96


def test_what_is_mapped_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    saved = state() | {
        "none": torch.empty(0, 3),
        "one": torch.tensor(True),
        "deep": {"c": torch.ones(2, 3, dtype=torch.complex64)},
    }
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path / "x"), no_dist=True)
    backend = DistributedBackend()
    viewed = backend.view_checkpoint(tmp_path / "x")
    assert same_state(viewed, backend.load_checkpoint(tmp_path / "x"))
    assert viewed["deep"]["c"].dtype == torch.complex64
    viewed["model"]["w"] += 1  # it is the caller's own
    assert not same_state(viewed, backend.view_checkpoint(tmp_path / "x"))


class Touch:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return open, (str(self._path), "w")


def test_its_pickles_are_not_believed(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"x": Touch(done), "w": torch.ones(3)},
            storage_writer=dcp.FileSystemWriter(tmp_path / "x"),
            no_dist=True,
        )
    with pytest.raises((FormatError, CorruptionError)):
        DistributedBackend().load_checkpoint(tmp_path / "x")
    assert not done.exists()
    (tmp_path / "x" / ".metadata").write_bytes(pickle.dumps(Touch(done)))
    with pytest.raises(FormatError, match="metadata asks for"):
        DistributedBackend().load_checkpoint(tmp_path / "x")
    assert not done.exists()


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (b"\x80\x02cpathlib\nPosixPath\nN}X\x04\x00\x00\x00markK\x01s\x86b.", "would change"),
        (
            b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n}X\x04\x00\x00\x00markK\x01sb.",
            "would",
        ),
        (b"\x80\x02Nr\xff\xff\xff\x0f.", "no metadata"),  # a memo of 268 million places
        (b"\x80\x05\x96\x00\x00\x00\x00\x20\x00\x00\x00.", "damaged"),  # 137 GB for a bytearray
    ],
    ids=["class", "state", "memo", "bytearray"],
)
def test_its_pickles_change_nothing_and_take_no_memory(tmp_path: Path, hostile: bytes, said: str) -> None:
    dcp.save({"w": torch.ones(3)}, storage_writer=dcp.FileSystemWriter(tmp_path / "x"), no_dist=True)
    (tmp_path / "x" / ".metadata").write_bytes(hostile)
    tracemalloc.start()
    try:
        with pytest.raises((FormatError, CorruptionError), match=said):
            DistributedBackend().load_checkpoint(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert not hasattr(type(tmp_path), "mark")


@pytest.mark.parametrize("fault", ["path", "size", "overflow", "negative", "length", "list"])
def test_its_metadata_is_held_against_its_files(tmp_path: Path, fault: str) -> None:
    dcp.save({"w": torch.ones(3), "l": [torch.ones(1)]}, checkpoint_id=tmp_path / "x", no_dist=True)
    place = tmp_path / "x" / ".metadata"
    metadata = pickle.loads(place.read_bytes())  # noqa: S301 - our own
    info = next(iter(metadata.storage_data.values()))
    tensor = metadata.state_dict_metadata["w"]
    if fault == "path":
        info.relative_path = "../../secret"
    elif fault == "length":
        info.length = 1 << 40
    elif fault == "list":
        metadata.planner_data["l.0"] = ("l", 900_000)
    else:
        shapes = {"size": [1 << 40], "overflow": [1 << 32, 1 << 32], "negative": [-5]}
        tensor.size = torch.Size(shapes[fault])
    place.write_bytes(pickle.dumps(metadata))
    said = {"path": "no file", "length": "behind", "list": "list", "negative": "shape"}.get(fault, "claims")
    with pytest.raises(CorruptionError, match=said):
        DistributedBackend().load_checkpoint(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x"]
