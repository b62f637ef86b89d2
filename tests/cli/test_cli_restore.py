"""`ckpt restore`: whole or not at all, and readable without this engine."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ckpt_core import CheckpointManager
from ckpt_core.errors import StoreError, UsageError
from ckpt_core.pipeline.placing import new_file, new_folder
from cli.calls import Call, damage, model


def aligned(path: str) -> bool:
    return int.from_bytes(Path(path).read_bytes()[:8], "little") % 8 == 0


def test_a_file_of_tensors(ckpt: Call) -> None:
    answer = ckpt("restore", "mnist@step=20", "out.safetensors", "--json")
    assert answer.code == 0
    assert answer.data["tensors"] == 4
    assert answer.data["bytes"] == os.path.getsize("out.safetensors")
    assert aligned("out.safetensors")
    found = load_file("out.safetensors")
    assert found.keys() == {"model/fc.weight", "model/fc.bias", "optimizer/moments/0", "optimizer/moments/1"}
    np.testing.assert_array_equal(found["model/fc.weight"], model(seed=20)["model"]["fc.weight"])
    with safe_open("out.safetensors", "np") as file:
        assert file.metadata()["ckpt.step"] == "20"
        assert file.metadata()["format"] == "np"
    assert os.listdir() == ["out.safetensors"]


def test_a_folder(ckpt: Call) -> None:
    answer = ckpt("restore", "mnist@step=20", "out")
    assert "4 tensors" in answer.out
    assert sorted(os.listdir("out")) == ["state.json", "tensors.safetensors"]
    document = json.loads(Path("out/state.json").read_text())
    assert document["version"] == 1
    assert document["checkpoint"]["step"] == 20
    assert document["values"]["config/lr"] == 0.1
    assert document["values"]["optimizer/betas/1"] == 0.999
    assert document["state"]["model"] == {"fc.weight": {"$tensor": "model/fc.weight"},
                                          "fc.bias": {"$tensor": "model/fc.bias"}}  # fmt: skip
    assert len(load_file("out/tensors.safetensors")) == 4


def test_a_part(ckpt: Call) -> None:
    assert (
        ckpt("restore", "mnist@step=20", "m.safetensors", "--include", "model", "--strip", "model").code == 0
    )
    assert load_file("m.safetensors").keys() == {"fc.weight", "fc.bias"}
    assert ckpt("restore", "mnist@step=20", "part", "--include", "config/*", "--include", "*bias").code == 0
    document = json.loads(Path("part/state.json").read_text())
    assert document["values"] == {
        "config/lr": 0.1,
        "config/layers/0": 16,
        "config/layers/1": 8,
        "config/name": "digits",
    }
    assert "state" not in document
    assert load_file("part/tensors.safetensors").keys() == {"model/fc.bias"}


@pytest.mark.parametrize(
    "arguments",
    [("--include", "config"), ("--include", "typo"), ("--strip", "typo"), ("--strip", "model/fc.weight")],
)
def test_a_part_that_cannot_be(arguments: tuple[str, ...], ckpt: Call) -> None:
    answer = ckpt("restore", "mnist@step=20", "m.safetensors", *arguments)
    assert answer.code == 2, answer
    assert os.listdir() == []


def test_every_dtype_and_shape(ckpt: Call, tmp_path: Path) -> None:
    tied = np.arange(3.0)
    state: dict[str, Any] = {
        "bf16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "bool": np.array([True, False, True]),
        "scalar": np.array(3, "i8"),
        "empty": np.zeros((0, 4), "f4"),
        "c128": np.array([1 + 2j]),
        "a": tied,
        "b": tied,
        "__metadata__": np.ones(2),
        "日本/x": np.ones(1, "u1"),
    }
    with CheckpointManager(tmp_path / "kinds", experiment="x") as manager:
        manager.save(state, step=1, wait=True)
    assert ckpt("restore", "latest", "out.safetensors", at=tmp_path / "kinds").code == 0
    assert aligned("out.safetensors")
    with safe_open("out.safetensors", "np") as file:
        names = set(file.keys())
        strange = json.loads(file.metadata()["ckpt.dtypes"])
        read = {name: file.get_tensor(name) for name in names - {"bf16"}}
    assert names == {"bf16", "bool", "scalar", "empty", "c128", "a", "b", "__metadata__[0]", "日本~1x"}
    assert strange == {"c128": {"dtype": "C128", "shape": [1]}}
    np.testing.assert_array_equal(read["c128"].view("c16"), state["c128"])
    np.testing.assert_array_equal(read["b"], tied)
    assert read["empty"].shape == (0, 4)
    assert read["scalar"].shape == ()


def test_nothing_is_overwritten_unless_told_to(ckpt: Call) -> None:
    assert ckpt("restore", "mnist@step=10", "out.safetensors").code == 0
    assert ckpt("restore", "mnist@step=10", "out").code == 0
    before = Path("out.safetensors").read_bytes()
    for target in ("out.safetensors", "out"):
        answer = ckpt("restore", "mnist@step=20", target, "--json")
        assert (answer.code, answer.error["kind"]) == (2, "exists")
    assert Path("out.safetensors").read_bytes() == before
    for target in ("out.safetensors", "out"):
        assert ckpt("restore", "mnist@step=20", target, "--force").code == 0
    assert Path("out.safetensors").read_bytes() != before
    assert json.loads(Path("out/state.json").read_text())["checkpoint"]["step"] == 20
    assert sorted(os.listdir()) == ["out", "out.safetensors"]


def test_a_folder_of_somebody_else_is_safe(ckpt: Call) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    answer = ckpt("restore", "mnist@step=20", "mine", "--force")
    assert (answer.code, "thesis.tex" in answer.err) == (2, True)
    assert os.listdir("mine") == ["thesis.tex"]
    Path("file").write_text("x")
    assert ckpt("restore", "mnist@step=20", "file", "--force").code == 2
    Path("folder.safetensors").mkdir()
    assert ckpt("restore", "mnist@step=20", "folder.safetensors", "--force").code == 2
    Path("empty").mkdir()
    assert ckpt("restore", "mnist@step=20", "empty").code == 0
    Path("link").symlink_to("mine")
    assert ckpt("restore", "mnist@step=20", "link", "--force").code == 2
    Path("nothing").mkdir()
    Path("other").symlink_to("nothing")
    assert ckpt("restore", "mnist@step=20", "other").code == 2


def test_what_exists_is_told_before_anything_is_read(ckpt: Call, store: Path) -> None:
    Path("out.safetensors").write_text("mine")
    damage(store, "mnist")
    assert ckpt("restore", "mnist@step=10", "out.safetensors").code == 2


def test_a_stripped_name_is_the_key_that_was_saved(ckpt: Call, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "keys", experiment="x") as manager:
        manager.save({"model": {"a/b~c": np.ones(2), "deep": {"w": np.ones(1)}}}, step=1, wait=True)
    assert ckpt("restore", "latest", "m.safetensors", "--strip", "model/", at=tmp_path / "keys").code == 0
    assert load_file("m.safetensors").keys() == {"a/b~c", "deep/w"}


@pytest.mark.parametrize("target", ["no/such/out.safetensors", "no/such/out"])
def test_a_folder_that_is_not_there(target: str, ckpt: Call) -> None:
    answer = ckpt("restore", "mnist@step=20", target)
    assert (answer.code, "does not exist" in answer.err) == (1, True)


@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_damage_leaves_nothing_behind(target: str, ckpt: Call, store: Path) -> None:
    damage(store, "mnist")
    answer = ckpt("restore", "mnist@step=10", target)
    assert answer.code == 4
    assert os.listdir() == []
    assert ckpt("restore", "mnist@step=20", target).code == 0


@pytest.mark.parametrize("make", [new_file, new_folder])
def test_an_interruption_leaves_the_old_one(make: Any, tmp_path: Path) -> None:
    target = tmp_path / "x" / "target"
    target.parent.mkdir()
    with make(target, force=False) as out:
        (out / "state.json").write_text("old") if isinstance(out, Path) else out.write(b"old")

    def interrupted() -> None:
        with make(target, force=True) as out:
            (out / "state.json").write_text("new") if isinstance(out, Path) else out.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(target.parent) == ["target"]
    assert (target / "state.json" if target.is_dir() else target).read_text() == "old"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "late.safetensors"

    def late() -> None:
        with new_file(target, force=False) as out:
            out.write(b"ours")
            target.write_text("theirs")

    with pytest.raises(UsageError, match="already exists"):
        late()
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.glob("*late*")] == ["late.safetensors"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the disk is full") as found, new_file(tmp_path / "x", force=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert found.value.kind == "full"
