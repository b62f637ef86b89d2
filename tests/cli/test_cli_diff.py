"""`ckpt diff`, and the comparison under it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.maintenance.difference import ABSENT, Difference, difference
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import ChunkReader
from cli.calls import Call, damage

CHUNK = 8 << 20


def compare(root: Path, old: Any, new: Any, **options: Any) -> Difference:
    with CheckpointManager(root, experiment="x") as manager:
        one = manager.save(old, step=1, wait=True).result()
        two = manager.save(new, step=2, wait=True).result()
    workspace = Workspace.open(root)
    try:
        manifests = [workspace.repository.read(c.key).manifest for c in (one, two)]
        return difference(workspace.repository, *manifests, **options)
    finally:
        workspace.close()


def change(root: Path, old: Any, new: Any) -> Any:
    found = compare(root, {"t": old}, {"t": new})
    assert [c.path for c in found.tensors] == ["t"]
    return found.tensors[0]


def test_equal_states_have_no_difference(store_path: Path) -> None:
    state = {"w": np.arange(5.0), "lr": 0.1, "nan": math.nan, "tuple": (1, None)}
    found = compare(store_path, state, {**state, "w": np.arange(5.0)})
    assert found.same_state
    assert (found.same_tensors, found.same_values) == (1, 4)


def test_measures_are_those_of_numpy(store_path: Path) -> None:
    random = np.random.default_rng(0)
    old = random.standard_normal((300, 7)).astype("f4")
    new = old.copy()
    new[10:20] += random.standard_normal((10, 7)).astype("f4")
    found = change(store_path, old, new)
    gap = np.abs(new.astype("f8") - old.astype("f8"))
    assert found.change == "changed"
    assert found.max_abs == gap.max()
    assert found.relative_l2 == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(old.astype("f8")))
    assert found.changed == np.count_nonzero(gap)
    assert found.share == found.changed / old.size


@pytest.mark.parametrize(
    ("old", "new", "max_abs", "changed"),
    [
        (np.array([1, 2, 3], "i8"), np.array([1, 2, 5], "i8"), 2, 1),
        (np.array([-(2**63), 0], "i8"), np.array([2**63 - 1, 0], "i8"), float(2**64 - 1), 1),
        (np.array([2**53, 7], "i8"), np.array([2**53 + 1, 7], "i8"), 1, 1),
        (np.array([0, 255], "u1"), np.array([255, 0], "u1"), 255, 2),
        (np.array([True, False]), np.array([True, True]), 1, 1),
        (np.array([1 + 1j, 0], "c8"), np.array([1 + 1j, 3 + 4j], "c8"), 5, 1),
        (np.array(1.5, "f8"), np.array(2.5, "f8"), 1, 1),
        (np.array([0.0]), np.array([-0.0]), 0, 1),
        (np.array([1.0, 2.0], ml_dtypes.bfloat16), np.array([1.0, 4.0], ml_dtypes.bfloat16), 2, 1),
        (np.array([1.0, 2.0], ml_dtypes.float8_e4m3fn), np.array([1.0, 4.0], ml_dtypes.float8_e4m3fn), 2, 1),
        (np.array(["2026-01-01"], "M8[D]"), np.array(["2026-01-31"], "M8[D]"), 30, 1),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_every_kind_of_number(old: Any, new: Any, max_abs: float, changed: int, store_path: Path) -> None:
    found = change(store_path, old, new)
    assert (found.max_abs, found.changed) == (max_abs, changed)


def test_text_has_no_measure(store_path: Path) -> None:
    found = change(store_path, np.array(["ab", "cd"]), np.array(["ab", "xx"]))
    assert (found.changed, found.max_abs, found.relative_l2) == (1, None, None)


def test_what_is_not_finite_is_counted_apart(store_path: Path) -> None:
    old = np.array([1.0, math.nan, math.inf, 4.0, math.nan])
    new = np.array([1.0, math.nan, 1.0, 5.0, 2.0])
    found = change(store_path, old, new)
    assert (found.changed, found.not_finite, found.max_abs) == (3, 2, 1.0)
    assert found.relative_l2 == pytest.approx(1 / math.sqrt(17))


def test_from_nothing_the_relative_change_is_infinite(store_path: Path) -> None:
    assert change(store_path, np.zeros(3), np.ones(3)).relative_l2 == math.inf


def test_shapes_and_types(store_path: Path) -> None:
    old = {
        "gone": np.ones(2),
        "shape": np.ones((2, 3)),
        "type": np.ones(4, "f4"),
        "kept": np.ones(1),
        "now": 1,
    }
    new = {"new": np.ones(2), "shape": np.ones((3, 2)), "type": np.full(4, 1.5, "f2"), "kept": np.ones(1),
           "now": np.ones(1)}  # fmt: skip
    found = {c.path: c for c in compare(store_path, old, new).tensors}
    assert {path: c.change for path, c in found.items()} == {
        "gone": "removed", "shape": "reshaped", "type": "retyped", "new": "added", "now": "added",
    }  # fmt: skip
    assert (found["type"].max_abs, found["type"].changed) == (0.5, 4)
    assert found["shape"].max_abs is None


def test_values_and_metrics(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(
            {"lr": 0.1, "int": 1, "gone": None}, step=1, metrics={"loss": 1.0, "old": 1.0}, wait=True
        )
        manager.save({"lr": 0.2, "int": 1.0, "new": "x"}, step=2, metrics={"loss": 0.5}, wait=True)
    workspace = Workspace.open(store_path)
    one, two = (workspace.repository.read(key.key).manifest for key in workspace.repository.manifest_keys())
    found = difference(workspace.repository, one, two)
    workspace.close()
    assert [(v.path, v.old, v.new) for v in found.values] == [
        ("lr", 0.1, 0.2), ("int", 1, 1.0), ("gone", None, ABSENT), ("new", ABSENT, "x"),
    ]  # fmt: skip
    assert [(v.path, v.old, v.new) for v in found.metrics] == [("loss", 1.0, 0.5), ("old", 1.0, ABSENT)]


def test_equal_tensors_are_not_read(store_path: Path) -> None:
    """They may even be damaged: the digests say that they are the same."""
    big = np.arange(3 * CHUNK // 4, dtype="f4")
    same = np.arange(1000.0)
    other = big.copy()
    other[-1] += 8
    found = compare(store_path, {"big": big, "same": same}, {"big": other, "same": same})
    assert [(c.path, c.changed, c.max_abs) for c in found.tensors] == [("big", 1, 8.0)]
    assert found.tensors[0].relative_l2 == pytest.approx(8 / np.linalg.norm(big.astype("f8")))
    damage(store_path, offset=-(big.nbytes + 1))  # of wider elements, `same` stands in front of `big`
    workspace = Workspace.open(store_path)
    one, two = (workspace.repository.read(key.key).manifest for key in workspace.repository.manifest_keys())
    assert workspace.verify().damaged == (one.id, two.id)
    again = difference(workspace.repository, one, two)
    assert again.tensors == found.tensors
    assert difference(workspace.repository, one, two, measure=False).tensors[0].changed is None
    workspace.close()


def test_of_the_new_tensor_only_what_differs_is_read(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    real = ChunkReader.read_range

    def counted(reader: ChunkReader, index: int, begin: int, end: int) -> Any:
        read.append((reader.manifest.step, end - begin))
        return real(reader, index, begin, end)

    monkeypatch.setattr(ChunkReader, "read_range", counted)
    old = np.arange(3 * CHUNK, dtype="u1")
    new = old.copy()
    new[CHUNK] += 1
    assert change(store_path, old, new).changed == 1
    assert sorted(read) == [(1, CHUNK)] * 3 + [(2, CHUNK)]


def test_an_odd_width_that_straddles_chunks(tmp_path: Path) -> None:
    old = np.full(CHUNK // 12 + 5, "abc")
    new = old.copy()
    new[-1] = "xyz"
    assert change(tmp_path / "store", old, new).changed == 1


# -- the command ----------------------------------------------------------------------------------


def test_diff_of_two_checkpoints(ckpt: Call) -> None:
    answer = ckpt("diff", "digits@step=400", "digits@step=500", "--json")
    data = answer.data
    assert answer.code == 0
    assert not data["same"]
    (tensor,) = data["tensors"]
    assert tensor["path"] == "model/fc.bias"
    assert (tensor["share"], tensor["elements"]) == (1.0, 8)
    assert data["same_tensors"] == 3
    assert data["values"] == [{"path": "epoch", "old": 4, "new": 5}]
    assert [m["name"] for m in data["metrics"]] == ["val_loss"]
    text = ckpt("diff", "digits@step=400", "digits@step=500").out
    for word in (
        "- digits step 400",
        "+ digits step 500",
        "model/fc.bias",
        "1 tensor differs, 3 are the same",
        "epoch",
    ):
        assert word in text


def test_diff_with_the_parent(ckpt: Call) -> None:
    data = ckpt("diff", "digits@release-1", "--json").data
    assert (data["old"]["step"], data["new"]["step"]) == (300, 500)
    answer = ckpt("diff", "digits@latest")
    assert (answer.code, "no parent" in answer.err) == (1, True)
    ckpt("forget", data["old"]["id"])
    answer = ckpt("diff", "digits@release-1")
    assert (answer.code, "is gone" in answer.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("digits@step=400", "digits@step=500"), 1),
        (("digits@step=400", "digits@step=400"), 0),
        (("digits@step=400", "digits@step=500", "--include", "config"), 1),
    ],
)
def test_diff_tells_by_its_exit_code(arguments: tuple[str, ...], code: int, ckpt: Call) -> None:
    assert ckpt("diff", *arguments).code == 0
    assert ckpt("diff", *arguments, "--exit-code").code == code
    assert ckpt("diff", *arguments, "--exit-code", "--json").code == code


def test_diff_of_equals(ckpt: Call) -> None:
    text = ckpt("diff", "digits@step=400", "digits@step=400").out
    assert "0 tensors differ, 4 are the same" in text
    assert "8 plain values, all the same" in text


def test_diff_quietly_names_what_changed(ckpt: Call) -> None:
    assert ckpt("diff", "digits@step=400", "digits@step=500", "-q").out.split() == ["model/fc.bias", "epoch"]


def test_diff_of_damage(ckpt: Call, store: Path) -> None:
    damage(store, "mnist", offset=4096 + 64)
    answer = ckpt("diff", "mnist@step=10", "mnist@step=20", "--json")
    assert answer.code == 4
    assert "damaged" in answer.error["message"]
