"""Exact resume of a plain JAX loop: killed anywhere, run again, equal bit for bit to a run that was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from contract.adapter import AdapterContract, NativeMeasurement
from contract.training import Training, assert_same_training

KILLS = {
    "first step": {"step": 1},
    "middle of an epoch": {"step": 13},
    "evaluation due": {"evaluate": 14},
    "last step of an epoch": {"step": 18},
    "boundary of epochs": {"boundary": 1},
    "inside a save": {"fsync": 27},
}


class _Loop:
    script = Path(__file__).with_name("loop_digits.py")
    preload = (
        "jax",
        "jax.numpy",
        "optax",
        "ckpt_jax",
        "orbax.checkpoint",
        "grain.python",
        "grain.checkpoint",
    )
    environment: ClassVar[dict[str, str]] = {"XLA_FLAGS": ""}


class TestContract(_Loop, AdapterContract):
    adapter = "JAX loop (JaxCheckpointer)"
    kills = KILLS
    raises: ClassVar[dict[str, Any]] = {"raise": 15}
    good_step = 14
    terminates: ClassVar[dict[str, Any]] = {"term": 13}
    terminated_step = 13
    spoils = ("rng", "data", "extras", "optimizer", "key", "params")
    full = 150_000


class TestNative(_Loop, NativeMeasurement):
    adapter = "JAX loop (Orbax CheckpointManager)"
    kills = KILLS | {"inside a save": {"rename": 7}}
    expected: ClassVar[dict[str, str]] = dict.fromkeys(KILLS, "other data from there on")


class TestNativeGrain(_Loop, NativeMeasurement):
    """With data that Orbax can save."""

    adapter = "JAX loop with grain (Orbax CheckpointManager)"
    kills = TestNative.kills
    expected: ClassVar[dict[str, str]] = {
        **dict.fromkeys(KILLS, "same weights, other rng"),
        # An evaluation was made before the step that it goes on from.
        **dict.fromkeys(["middle of an epoch", "evaluation due", "last step of an epoch"], "same weights, other rng, stopping"),
    }  # fmt: skip

    @classmethod
    def training(cls, folder: Path, **options: Any) -> Training:
        return super().training(folder, loader="grain", workers=0, **options)


def test_grain_with_workers(tmp_path: Path) -> None:
    """Its iterator keeps its own position, that of its workers included."""
    reference = TestContract.training(tmp_path / "reference", loader="grain").complete()
    job = TestContract.training(tmp_path / "killed", loader="grain")
    assert_same_training(reference, [job.killed(step=14), job.complete()])
