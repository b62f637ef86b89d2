"""`ckpt export` and `ckpt import`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from cli.calls import Call, model


def test_there_and_back_again(ckpt: Call, tmp_path: Path) -> None:
    answer = ckpt("export", "mnist@step=20", "out.npz", "--json")
    assert answer.code == 0, answer
    assert {key: answer.data[key] for key in ("format", "tensors", "verified")} == {
        "format": "npz", "tensors": 4, "verified": True,
    }  # fmt: skip
    with np.load("out.npz") as archive:
        np.testing.assert_array_equal(archive["model/fc.weight"], model(seed=20)["model"]["fc.weight"])
    place = tmp_path / "other"
    answer = ckpt(
        "import", "out.npz", "back", "--step", "3", "--tag", "t", "--with-metric", "loss=0.5", at=place
    )
    assert answer.code == 0, answer
    assert "back step 3" in answer.out
    with CheckpointManager(place, experiment="back") as manager:
        assert manager.resolve("t").metrics == {"loss": 0.5}
        np.testing.assert_array_equal(manager.load()["model"]["fc.bias"], model(seed=20)["model"]["fc.bias"])


def test_a_part_and_where_it_stands(ckpt: Call) -> None:
    assert (
        ckpt(
            "export", "mnist@step=20", "m", "--format", "safetensors", "--select", "model", "--no-verify"
        ).code
        == 0
    )
    assert os.listdir("m") == ["model.safetensors"]
    assert ckpt("import", "m", "parts", "--under", "weights/deep", "-q", "--no-verify").code == 0
    assert "fc.bias" in ckpt("cat", "parts@latest").out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("export", "mnist@step=20", "out.unknown"), 2),
        (("export", "mnist@step=20", "out", "--format", "zip"), 2),
        (("export", "mnist@step=20", "out.npz", "--select", "nothing"), 1),
        (("import", "absent.npz", "x"), 1),
        (("import", "there.npz", "x"), 4),
        (("import", "there.npz", "x", "--with-metric", "loss"), 2),
        (("import", "there.npz", "../x"), 2),
    ],
)
def test_what_cannot_be_is_told(ckpt: Call, arguments: tuple[str, ...], code: int) -> None:
    Path("there.npz").write_bytes(b"hello")
    answer = ckpt(*arguments)
    assert answer.code == code, answer
    assert answer.err.startswith("error: ")
    assert os.listdir() == ["there.npz"]


def test_what_is_there_stays_unless_told_otherwise(ckpt: Call) -> None:
    Path("out.npz").write_bytes(b"hello")
    assert ckpt("export", "mnist@step=20", "out.npz").code == 2
    assert Path("out.npz").read_bytes() == b"hello"
    assert ckpt("export", "mnist@step=20", "out.npz", "--force").code == 0


def test_a_checkpoint_by_a_backend_is_shown_and_exported(ckpt: Call, tmp_path: Path) -> None:
    place = tmp_path / "files"
    with CheckpointManager(place, experiment="x", backend="safetensors") as manager:
        for seed in (1, 2):
            manager.save(model(seed=seed), step=seed, wait=True)
    assert "checkpoint.safetensors" in ckpt("show", "latest", "--leaves", at=place).out
    assert "fc.weight" in ckpt("cat", "latest", at=place).out
    assert ckpt("diff", "step=1", "step=2", at=place).code == 0
    assert ckpt("verify", at=place).code == 0
    answer = ckpt("restore", "latest", "out", at=place)
    assert (answer.code, "ckpt export" in answer.err) == (2, True)
    assert ckpt("export", "latest", "out.npz", at=place).code == 0


def test_from_store_to_store(ckpt: Call, store: Path, tmp_path: Path) -> None:
    target = tmp_path / "copied"
    answer = ckpt(
        "copy", store, target, "mnist@best", "--metric", "accuracy", "--mode", "max", "--json", at=None
    )
    assert (answer.code, len(answer.data["checkpoints"])) == (0, 1)
    answer = ckpt("copy", store, target, "--experiment", "mnist", at=None)
    assert answer.code == 0
    assert answer.out.startswith("copied 2 checkpoints (1 were there)")
    assert ckpt("copy", store, target, at=None).code == 0
    assert ckpt("ls", "-q", at=target).out == ckpt("ls", "-q").out
    assert ckpt("log", "--json", at=target).data == ckpt("log", "--json").data
    assert ckpt("verify", at=target).code == 0
    assert ckpt("copy", store, target).code == 2, "--store has no place here"
    assert ckpt("copy", store, store, at=None).code == 2
    assert ckpt("copy", "nowhere", target, at=None).code == 10


def test_pieces_of_series_that_cannot_be_read_are_told(ckpt: Call, store: Path, tmp_path: Path) -> None:
    with CheckpointManager(store, experiment="mnist") as manager:
        manager.begin_attempt(manager.resolve("step=20"))
        manager.log({"loss": 0.5}, step=21)
    [piece] = (store / "metrics" / "mnist").iterdir()
    piece.write_bytes(b"{}")
    other = tmp_path / "other"
    answer = ckpt("copy", str(store), str(other), "mnist@step=20", at=None)
    assert answer.code == 3
    assert f"not copied: metrics/mnist/{piece.name}: " in answer.out
    answer = ckpt("copy", str(store), str(other), "mnist@step=20", "--json", at=None)
    assert answer.code == 3
    assert [each["key"] for each in answer.data["left"]] == [f"metrics/mnist/{piece.name}"]
