"""OrbaxHandler under Orbax's version 1: its Checkpointer, and the functions that save to a path."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from orbax_listener import Heard, flip, largest

from ckpt_core import CorruptionError, HookEvent, KeepLast
from ckpt_jax import OrbaxHandler
from ckpt_jax.sidecar import NAME

STAGE = HookEvent.AFTER_STAGE


# Orbax says so of its own loads without a structure to load into.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")


def state(step: int) -> dict[str, Any]:
    noise = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return {"w": jnp.asarray(noise), "b": np.arange(5) + step}


def equal(one: Any, other: Any) -> bool:
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "orbax"


@pytest.fixture
def heard(folder: Path) -> Heard:
    return Heard(lambda: sorted(path.name for path in folder.iterdir()) if folder.exists() else [])


@pytest.fixture
def watch(tmp_path: Path, heard: Heard) -> Iterator[OrbaxHandler]:
    with OrbaxHandler(tmp_path / "ledger", experiment="orbax", metric="loss", hooks=[heard.hook]) as made:
        yield made


def test_events_come_at_their_moments(folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        response = checkpointer.save_async(3, state(3), metrics={"loss": 0.5})
        assert response is not None
        assert response.result()
        watch.wait()
        assert equal(checkpointer.load(3, state(0)), state(3))
    assert heard.names(STAGE) == [
        ("BEFORE_SAVE", 3), ("AFTER_SAVE", 3), ("NEW_BEST", 3), ("BEFORE_LOAD", 3), ("AFTER_LOAD", 3),
    ]  # fmt: skip
    seen = dict(zip([context.event for context in heard.events], heard.seen, strict=True))
    assert "3" not in seen[HookEvent.BEFORE_SAVE]
    assert "3" in seen[HookEvent.AFTER_SAVE]
    best = watch.manager.best()
    assert best is not None
    assert (best.step, best.metrics) == (3, {"loss": 0.5})


def test_a_response_does_not_wait_for_us(
    folder: Path, watch: OrbaxHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_complete` of Orbax is its own affair; the record is made beside it."""
    completed: list[bool] = []
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        response = checkpointer.save_async(1, state(1))
        assert response is not None
        response.on_complete(lambda saved: completed.append(saved))
        response.result()
    watch.wait()
    assert completed == [True]
    assert [c.step for c in watch.manager.checkpoints()] == [1]


@pytest.mark.parametrize("like", [True, False], ids=["like", "bare"])
def test_one_flipped_bit_is_found(folder: Path, watch: OrbaxHandler, heard: Heard, like: bool) -> None:
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state(step), force=True)
        flip(largest(folder / "2" / "state"))
        with pytest.raises(CorruptionError, match="is not what was written"):
            checkpointer.load(2, state(0) if like else None)
        assert equal(checkpointer.load(1, state(0) if like else None), state(1))
    assert ("CORRUPTION_FOUND", 2) in heard.names()


def test_stock_orbax_does_not_find_it(folder: Path) -> None:
    """What the digests are for. If this fails one day, Orbax has learnt it."""
    with ocp.training.Checkpointer(folder) as checkpointer:
        checkpointer.save(1, state(1))
        flip(largest(folder / "1" / "state"))
        assert not equal(checkpointer.load(1, state(0)), state(1))


def test_several_checkpointables(folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
    things = {"state": state(1), "more": {"x": np.arange(3.0)}, "config": {"width": 3}}
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        checkpointer.save_checkpointables(1, things)
        watch.wait()
        loaded = checkpointer.load_checkpointables(1)
    assert equal(loaded["state"], things["state"])
    assert equal(loaded["more"], things["more"])
    assert {context.data["item"] for context in heard.of(STAGE)} == set(things)
    assert heard.names().count(("AFTER_SAVE", 1)) == 1
    assert all((folder / "1" / name / NAME).exists() for name in things)


def test_functions_that_save_to_a_path(folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
    with watch.context():
        ocp.save(folder / "run-12", state(12))
        watch.wait()
        assert equal(ocp.load(folder / "run-12", state(0)), state(12))
        flip(largest(folder / "run-12" / "state"))
        with pytest.raises(CorruptionError):
            ocp.load(folder / "run-12", state(0))
    assert heard.names(STAGE)[:4] == [
        (n, 12) for n in ("BEFORE_SAVE", "AFTER_SAVE", "BEFORE_LOAD", "AFTER_LOAD")
    ]


def test_stock_orbax_reads_the_files(folder: Path, watch: OrbaxHandler) -> None:
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        checkpointer.save(1, state(1))
    names = json.loads((folder / "1" / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
    stock = ocp.handlers.PyTreeHandler
    assert names["state"] == f"{stock.__module__}.{stock.__qualname__}"
    program = (
        "import sys, orbax.checkpoint as v0, orbax.checkpoint.experimental.v1 as v1\n"
        f"print(v1.training.Checkpointer({str(folder)!r}).load(1)['b'][0])\n"
        "args = v0.args.Composite(state=v0.args.StandardRestore())\n"
        f"print(v0.CheckpointManager({str(folder)!r}).restore(1, args=args)['state']['b'][0])\n"
        "assert 'ckpt_jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_what_stock_orbax_wrote_is_restored_unchecked(
    folder: Path, watch: OrbaxHandler, caplog: pytest.LogCaptureFixture
) -> None:
    with ocp.training.Checkpointer(folder) as checkpointer:
        checkpointer.save(1, state(1))
    with ocp.training.Checkpointer(folder, context=watch.context()) as checkpointer:
        assert equal(checkpointer.load(1, state(0)), state(1))
    assert "has no digests" in caplog.text


def test_a_context_of_the_users_own_is_kept(folder: Path, watch: OrbaxHandler) -> None:
    mine = ocp.Context()
    mine.array.saving.use_ocdbt = False
    before = mine.checkpointables.registry
    with ocp.training.Checkpointer(folder, context=watch.context(mine)) as checkpointer:
        checkpointer.save(1, state(1))
    assert not (folder / "1" / "state" / "manifest.ocdbt").exists()
    assert (folder / "1" / "state" / NAME).exists()
    assert mine.checkpointables.registry is before


def test_policies_of_the_engine(folder: Path, watch: OrbaxHandler) -> None:
    keep = watch.preservation(KeepLast(2))
    with ocp.training.Checkpointer(folder, context=watch.context(), preservation_policy=keep) as checkpointer:
        for step in range(4):
            checkpointer.save(step, state(step), force=True)
        watch.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert [c.step for c in watch.manager.checkpoints()] == [2, 3]


def test_a_save_that_fails(
    folder: Path, watch: OrbaxHandler, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckpt_jax import sidecar

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sidecar, "seal", full)
    checkpointer = ocp.training.Checkpointer(folder, context=watch.context())
    response = checkpointer.save_async(1, state(1))
    assert response is not None
    with pytest.raises(OSError, match="No space"):
        response.result()
    with pytest.raises(OSError, match="No space"):  # Orbax tells it again
        checkpointer.close()
    assert heard.names(STAGE) == [("BEFORE_SAVE", 1), ("SAVE_FAILED", 1)]
    assert watch.manager.checkpoints() == []
