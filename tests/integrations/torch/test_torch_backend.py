"""The backend `torch` keeps the contract; its files are those of torch.save, and nothing in one is unpickled."""

from __future__ import annotations

import collections
import datetime
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_core import CheckpointManager, CorruptionError, FormatError, StorageBackend
from ckpt_core.stores import MemoryStore
from ckpt_core.testing import BackendContract, same_state
from ckpt_torch import TorchBackend


class TestOfNumpy(BackendContract):
    def make_backend(self) -> StorageBackend:
        return TorchBackend()


class TestOfTensors(BackendContract):
    def make_backend(self) -> StorageBackend:
        return TorchBackend()

    def make_state(self, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        tied = torch.rand(3, generator=generator)
        return {
            "model": collections.OrderedDict(
                weight=torch.rand(64, 64, generator=generator),
                half=torch.rand(5, generator=generator).bfloat16(),
                tied=tied,
            ),
            "again": tied,
            "numpy": np.arange(3.0),
            "strange": np.array(["2026-01-01"], "M8[D]"),
            "$dict": {"$tensor": 3},
            "keys": {1: "one", 2.5: None, None: [1, (2, 3)]},
            "when": datetime.datetime(2026, 1, 1),
            "queue": collections.deque([torch.ones(1)], maxlen=2),
            "epoch": seed,
        }


def test_the_file_is_one_of_torch(tmp_path: Path) -> None:
    state = {"model": {"weight": torch.rand(3, 4)}, "epoch": 3}
    TorchBackend().save_checkpoint(state, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert same_state(found, state)
    torch.save(state, tmp_path / "theirs.pt")
    assert same_state(TorchBackend().load_checkpoint(tmp_path / "theirs.pt"), state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_state(TorchBackend().view_checkpoint(tmp_path / "old.pt"), state)


class Custom:
    """What torch.load refuses."""


def test_objects_are_unpickled_only_where_somebody_says_so(tmp_path: Path) -> None:
    torch.save({"custom": Custom()}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="allow_pickle=True"):
        TorchBackend().load_checkpoint(tmp_path / "x.pt")
    found = TorchBackend(allow_pickle=True).load_checkpoint(tmp_path / "x.pt")
    assert isinstance(found["custom"], Custom)


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    TorchBackend().save_checkpoint({"w": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises((CorruptionError, FormatError)):
        TorchBackend().load_checkpoint(path)


def test_an_archive_that_somebody_compressed_is_not_mapped(tmp_path: Path) -> None:
    state = {"w": torch.arange(10_000.0)}
    torch.save(state, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for info in plain.infolist():
            made.writestr(info.filename, plain.read(info))
    assert same_state(TorchBackend().view_checkpoint(tmp_path / "y.pt"), state)


def test_a_manager_finds_it_by_name() -> None:
    with CheckpointManager(MemoryStore(), experiment="x", backend="torch") as manager:
        model = torch.nn.Linear(3, 2)
        manager.save({"model": model.state_dict()}, step=1).result(60)
        other = torch.nn.Linear(3, 2)
        manager.load(like={"model": other.state_dict()})
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert type(manager.load(framework="numpy")["model"]["weight"]) is np.ndarray
