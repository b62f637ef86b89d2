"""The watchers at work on what they were made for: splats, a voxel grid, a CNN, each fitted to real data here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager

EXAMPLE = Path(__file__).parents[3] / "examples" / "watched_models.py"


@pytest.fixture(scope="module")
def models():
    spec = importlib.util.spec_from_file_location("watched_models", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def loaded(store, experiment, ref="latest"):
    with CheckpointManager(store, experiment=experiment) as manager:
        return manager.load(ref, framework="numpy")


def test_splats_whose_rotations_are_no_longer_normalised(models, store_path):
    loss = models.fit_splats(store_path, steps=80)
    assert loss < 0.02
    series = models.series_of(store_path, "splats")
    violations = series["quaternions/violations/rotation"]
    assert [violations[step] for step in (10, 20, 30, 40, 50, 60)] == [0.0] * 6
    assert violations[70] > 0.2 and violations[80] > violations[70]
    norms = np.linalg.norm(loaded(store_path, "splats")["rotation"].astype(float), axis=1)
    assert violations[80] == np.mean(np.abs(norms - 1) > 1e-3)
    drift = series["quaternions/drift_mean/rotation"]
    assert 10 not in drift and drift[20] > 2 * drift[80] > 0  # it settles
    with CheckpointManager(store_path, experiment="splats") as manager:
        tags = {found.step: found.tags for found in manager.checkpoints() if found.tags}
        assert tags == {70: ("quaternions-step-70",), 80: ("quaternions-step-80",)}


def test_a_grid_that_goes_from_coarse_to_fine(models, store_path):
    loss = models.fit_grid(store_path, steps=90)
    assert loss < 0.002
    series = models.series_of(store_path, "grid")
    assert series["grid/resolution_2/sdf"] == {
        step: 8.0 if step <= 30 else 16.0 if step <= 60 else 32.0 for step in range(10, 100, 10)
    }
    dead = series["grid/dead/sdf"]
    assert 40 not in dead and 70 not in dead  # another resolution: no cell is what it was
    last, before = (loaded(store_path, "grid", f"step={step}")["sdf"] for step in (90, 80))
    assert dead[90] == np.mean(last == before)
    assert 0.5 < dead[90] < 0.9  # far from the surface nothing is learnt
    assert series["grid/occupancy/sdf"][90] == np.mean(np.abs(last) > 0.01)
    with CheckpointManager(store_path, experiment="grid") as manager:
        assert [found.step for found in manager.checkpoints() if found.tags] == [40, 70]


def test_a_cnn_whose_filters_die_and_whose_weights_explode(models, store_path):
    assert "vetoed by TensorHealth: model/5.weight: 0 NaN and" in models.train_digits(store_path, epochs=5)
    series = models.series_of(store_path, "digits")
    weight = loaded(store_path, "digits")["model"]["2.weight"]
    assert weight.shape == (32, 16, 3, 3)
    dead = series["health/dead/model/2.weight"]
    assert dead[5] == np.mean(~weight.any(axis=(1, 2, 3)))
    assert dead[1] < dead[5] < 1
    update = series["health/update/model/0.weight"]
    assert update[2] > 3 * update[5] > 0  # the learning rate goes down
    assert series["health/infinite"][6] > 0  # told, though the save was not made
    with CheckpointManager(store_path, experiment="digits") as manager:
        assert manager.latest().step == 5
