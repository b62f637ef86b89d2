"""`ckpt cat`: values, tensors, branches, the manifest."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.cli.arrays import statistics
from cli.calls import Call, damage

STATE: dict[str, Any] = {
    "config": {"lr": 0.1, "text": "two\nlines", "none": None, "flag": True, "nan": math.nan, "a/b": 1},
    "raw": b"\x00\xff",
    "tuple": (1, [2, 3]),
    "set": {3, 1},
    "scalar": np.float32(1.5),
    "table": np.arange(24.0).reshape(4, 6),
    "half": np.array([1.0, math.nan, math.inf, 0.0], ml_dtypes.bfloat16),
    "complex": np.array([3 + 4j]),
    "empty": np.zeros((0, 3)),
    "words": np.array(["ab", "c"]),
    "point": np.array(7, "i4"),
}


@pytest.fixture
def cat(ckpt: Call, tmp_path: Path) -> Any:
    root = tmp_path / "values"
    with CheckpointManager(root, experiment="x") as manager:
        manager.save(STATE, step=1, wait=True)
    return lambda *arguments: ckpt("cat", "latest", *arguments, at=root)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("config/lr", "0.1\n", 0.1),
        ("config/text", "two\nlines\n", "two\nlines"),
        ("config/none", "null\n", None),
        ("config/flag", "true\n", True),
        ("config/nan", '"nan"\n', "nan"),
        ("config/a~1b", "1\n", 1),
        ("tuple/1/0", "2\n", 2),
        ("scalar", "1.5\n", 1.5),
    ],
)
def test_a_plain_value(path: str, text: str, value: Any, cat: Any) -> None:
    assert cat(path).out == text
    assert cat(path, "--json").data == {"path": path, "value": value}


def test_a_branch(cat: Any) -> None:
    assert cat("config", "--json").data["value"] == STATE["config"] | {"nan": "nan"}
    assert json.loads(cat("config").out)["text"] == "two\nlines"
    assert cat("tuple", "--json").data["value"] == [1, [2, 3]]
    assert cat("set", "--json").data["value"] == [1, 3]
    whole = cat("--json").data["value"]
    assert whole["table"] == "<tensor F64 [4, 6]>"
    assert whole["raw"] == {"$bytes": "AP8="}


def test_a_tensor_and_its_statistics(cat: Any) -> None:
    data = cat("table", "--json").data
    assert (data["dtype"], data["shape"], data["bytes"]) == ("F64", [4, 6], 192)
    assert data["values"] == STATE["table"].tolist()
    found = data["statistics"]
    assert (found["min"], found["max"], found["mean"], found["zeros"]) == (0, 23, 11.5, 1)
    assert found["std"] == pytest.approx(STATE["table"].std())
    assert found["l2"] == pytest.approx(np.linalg.norm(STATE["table"]))
    text = cat("table").out
    assert text.startswith("table  F64 [4, 6], 192 B\nmin 0, max 23, mean 11.5")
    assert "23." in text
    assert cat("table", "-q").out.startswith("[[")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("0:2", np.s_[0:2]),
        ("1", np.s_[1]),
        ("-1", np.s_[-1]),
        (":,0", np.s_[:, 0]),
        ("1:3, ::2", np.s_[1:3, ::2]),
        ("::-1", np.s_[::-1]),
        ("...,1", np.s_[..., 1]),
        ("[0,0]", np.s_[0, 0]),
    ],
)
def test_a_slice(part: str, expected: Any, cat: Any) -> None:
    data = cat("table", "--slice", part, "--json").data
    assert data["values"] == STATE["table"][expected].tolist()
    assert data["slice_shape"] == list(STATE["table"][expected].shape)


@pytest.mark.parametrize("part", ["x", "0:1:2:3", "1.5", "9", "0,0,0", "", "0:1;"])
def test_a_slice_that_cannot_be(part: str, cat: Any) -> None:
    answer = cat("table", "--slice", part)
    assert (answer.code, answer.err.count("\n")) == (2, 1)


def test_special_tensors(cat: Any) -> None:
    half = cat("half", "--json").data
    assert half["values"] == [1.0, "nan", "inf", 0.0]
    assert (half["statistics"]["nan"], half["statistics"]["inf"], half["statistics"]["max"]) == (1, 1, 1)
    assert cat("complex", "--json").data["values"] == [[3.0, 4.0]]
    assert cat("complex", "--json").data["statistics"]["max"] == 5
    assert cat("empty", "--json").data["values"] == []
    assert cat("words", "--json").data["values"] == ["ab", "c"]
    assert cat("words", "--json").data["statistics"]["mean"] is None
    assert cat("point", "--json").data["values"] == 7
    assert cat("point").out.splitlines()[-1] == "7"


def test_large_tensors_are_shortened(ckpt: Call, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "large", experiment="x") as manager:
        manager.save({"t": np.arange(5000)}, step=1, wait=True)
    at = tmp_path / "large"
    assert ckpt("cat", "latest", "t", "--json", at=at).data["values"] is None
    assert ckpt("cat", "latest", "t", "--json", "--all", at=at).data["values"] == list(range(5000))
    assert "..." in ckpt("cat", "latest", "t", at=at).out
    assert "2500" in ckpt("cat", "latest", "t", "--all", at=at).out


def test_statistics_in_parts_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal(1000) + 100
    whole, parts = statistics([values]), statistics(np.split(values, [1, 10, 500]))
    assert parts.mean == pytest.approx(values.mean())
    assert parts.std == pytest.approx(values.std())
    assert whole.std == pytest.approx(parts.std)
    assert (parts.minimum, parts.maximum) == (values.min(), values.max())


def test_the_manifest(ckpt: Call) -> None:
    document = json.loads(ckpt("cat", "digits@latest", "--manifest").out)
    assert document["experiment"] == "digits"
    assert document == ckpt("cat", "digits@latest", "--manifest", "--json").data["manifest"]
    assert ckpt("cat", "digits@latest", "config", "--manifest").code == 2


def test_a_slice_of_what_is_no_tensor(cat: Any) -> None:
    assert cat("config/lr", "--slice", "0").code == 2
    assert cat("--slice", "0").code == 2


def test_a_path_that_is_not_there(cat: Any) -> None:
    answer = cat("config/l")
    assert answer.code == 1
    assert "no leaf 'config/l'" in answer.err


def test_damage_is_not_shown(ckpt: Call, store: Path) -> None:
    damage(store, "mnist")
    codes = {
        path: ckpt("cat", "mnist@step=10", path).code
        for path in (
            "config/lr",
            "model/fc.weight",
            "model/fc.bias",
            "optimizer/moments/0",
            "optimizer/moments/1",
        )
    }
    assert codes["config/lr"] == 0
    assert sorted(codes.values()) == [0, 0, 0, 0, 4]
