"""OrbaxHandler under `ocp.CheckpointManager` and Orbax's checkpointers, with users' calls as they are."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import grain.checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath
from orbax_listener import Heard, flip, largest

from ckpt_core import CorruptionError, HookContext, HookEvent, KeepBest, KeepEvery, KeepLast, UsageError, hook
from ckpt_jax import OrbaxHandler
from ckpt_jax.sidecar import NAME

STAGE = HookEvent.AFTER_STAGE


# Orbax says so of its own bare restores.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring:UserWarning")


def state(step: int) -> dict[str, Any]:
    noise = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return {"w": jnp.asarray(noise), "b": np.arange(5) + step, "n": step}


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
    """With the names of the steps that everybody sees."""
    return Heard(lambda: sorted(path.name for path in folder.iterdir()) if folder.exists() else [])


@pytest.fixture
def watch(tmp_path: Path, heard: Heard) -> Iterator[OrbaxHandler]:
    with OrbaxHandler(tmp_path / "ledger", experiment="orbax", metric="loss", hooks=[heard.hook]) as made:
        yield made


def manager(folder: Path, watch: OrbaxHandler | None, **options: Any) -> ocp.CheckpointManager:
    registry = None if watch is None else watch.registry()
    return ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(**options), handler_registry=registry
    )


def save(folder: Path, watch: OrbaxHandler | None, *steps: int, **options: Any) -> None:
    with manager(folder, watch, **options) as orbax:
        for step in steps:
            orbax.save(step, args=ocp.args.StandardSave(state(step)), metrics={"loss": 1.0 / (1 + step)})


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
class TestBothWays:
    def test_events_come_at_their_moments(
        self, folder: Path, watch: OrbaxHandler, heard: Heard, asynchronous: bool
    ) -> None:
        with manager(folder, watch, enable_async_checkpointing=asynchronous) as orbax:
            orbax.save(3, args=ocp.args.StandardSave(state(3)))
            orbax.wait_until_finished()
            watch.wait()
            restored = orbax.restore(3, args=ocp.args.StandardRestore(state(0)))

        assert equal(restored, state(3))
        assert heard.names() == [
            ("BEFORE_SAVE", 3), ("AFTER_STAGE", 3), ("AFTER_SAVE", 3), ("BEFORE_LOAD", 3), ("AFTER_LOAD", 3),
        ]  # fmt: skip
        seen = dict(zip([context.event for context in heard.events], heard.seen, strict=True))
        assert "3" not in seen[HookEvent.BEFORE_SAVE]
        assert seen[HookEvent.AFTER_SAVE] == ["3"], "saved means: it has its final name"
        saved = heard.of(HookEvent.AFTER_SAVE)[0]
        assert saved.checkpoint is not None
        assert saved.checkpoint.id == heard.of(HookEvent.AFTER_LOAD)[0].checkpoint.id  # type: ignore[union-attr]
        assert saved.data["path"] == str(folder / "3")

    def test_nobody_need_ask_for_them(self, folder: Path, watch: OrbaxHandler, asynchronous: bool) -> None:
        """They come when Orbax has committed, not only when it is next spoken to."""
        came = threading.Event()
        watch.hooks.register_hook(hook(HookEvent.AFTER_SAVE, name="came")(lambda context: came.set()))
        with manager(folder, watch, enable_async_checkpointing=asynchronous) as orbax:
            orbax.save(3, args=ocp.args.StandardSave(state(3)))
            assert came.wait(60)

    def test_it_is_listed_with_its_metrics(
        self, folder: Path, watch: OrbaxHandler, heard: Heard, asynchronous: bool
    ) -> None:
        save(folder, watch, 1, 2, 3, enable_async_checkpointing=asynchronous, best_fn=lambda m: m["loss"])
        found = watch.manager.checkpoints()
        assert [(c.step, c.metrics["loss"]) for c in found] == [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]
        assert {c.attempt.number for c in found} == {1}
        best = watch.manager.best()
        assert best is not None
        assert best.step == 3
        assert [context.step for context in heard.of(HookEvent.NEW_BEST)] == [1, 2, 3]

    def test_one_flipped_bit_is_found(
        self, folder: Path, watch: OrbaxHandler, heard: Heard, asynchronous: bool
    ) -> None:
        save(folder, watch, 1, 2, enable_async_checkpointing=asynchronous)
        flip(largest(folder / "2" / "default"))
        with manager(folder, watch) as orbax:
            with pytest.raises(CorruptionError, match="is not what was written") as caught:
                orbax.restore(2, args=ocp.args.StandardRestore(state(0)))
            assert equal(orbax.restore(1, args=ocp.args.StandardRestore(state(0))), state(1))
        assert caught.value.step == 2
        assert heard.names()[-5:] == [
            ("BEFORE_LOAD", 2), ("CORRUPTION_FOUND", 2), ("LOAD_FAILED", 2), ("BEFORE_LOAD", 1), ("AFTER_LOAD", 1),
        ]  # fmt: skip


def test_stock_orbax_does_not_find_it(folder: Path) -> None:
    """What the digests are for. If this fails one day, Orbax has learnt it."""
    save(folder, None, 1)
    flip(largest(folder / "1" / "default"))
    with manager(folder, None) as orbax:
        assert not equal(orbax.restore(1, args=ocp.args.StandardRestore(state(0))), state(1))


@pytest.mark.parametrize("where", [0.0, 0.3, 0.999])
def test_a_flip_in_any_file_is_found(folder: Path, watch: OrbaxHandler, where: float) -> None:
    save(folder, watch, 1)
    files = [path for path in sorted((folder / "1").rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) >= 6
    for path in files:
        before = path.read_bytes()
        flip(path, where)
        # Orbax itself fails over some of its own documents, before anybody asks us.
        with manager(folder, watch) as orbax, pytest.raises((CorruptionError, ValueError)) as caught:
            orbax.restore(1, args=ocp.args.StandardRestore(state(0)))
        if "_CHECKPOINT_METADATA" not in path.name:
            assert isinstance(caught.value, CorruptionError), path
        path.write_bytes(before)


@pytest.mark.parametrize("hurt", ["missing", "shorter", "no sidecar"])
def test_files_that_are_gone(folder: Path, watch: OrbaxHandler, hurt: str) -> None:
    save(folder, watch, 1)
    path = folder / "1" / "default" / NAME if hurt == "no sidecar" else largest(folder / "1" / "default")
    if hurt == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with manager(folder, watch) as orbax, pytest.raises(CorruptionError) as caught:
        orbax.restore(1, args=ocp.args.StandardRestore(state(0)))
    assert caught.value.kind == ("truncated" if hurt == "shorter" else "missing")


class TestStayingWithOrbax:
    def test_stock_orbax_reads_the_files(self, folder: Path, watch: OrbaxHandler) -> None:
        save(folder, watch, 1)
        metadata = json.loads((folder / "1" / "_CHECKPOINT_METADATA").read_text())
        assert metadata["item_handlers"]["default"] == ocp.StandardCheckpointHandler.typestr()
        program = (
            "import sys, orbax.checkpoint as ocp\n"
            f"with ocp.CheckpointManager({str(folder)!r}) as manager:\n"
            "    print(manager.restore(1)['n'])\n"
            "assert 'ckpt_jax' not in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["1"], done.stderr

    def test_what_stock_orbax_wrote_is_restored_unchecked(
        self, folder: Path, watch: OrbaxHandler, caplog: pytest.LogCaptureFixture
    ) -> None:
        save(folder, None, 1)
        with manager(folder, watch) as orbax:
            assert equal(orbax.restore(1, args=ocp.args.StandardRestore(state(0))), state(1))
        assert "has no digests" in caplog.text

    @pytest.mark.parametrize("before", [True, False], ids=["after a save", "in a new process"])
    def test_a_bare_restore(self, folder: Path, watch: OrbaxHandler, heard: Heard, before: bool) -> None:
        save(folder, watch, 1)
        with manager(folder, watch) as orbax:
            if before:
                orbax.save(2, args=ocp.args.StandardSave(state(2)))
                orbax.wait_until_finished()
            assert int(orbax.restore(1)["n"]) == 1
        assert heard.names()[-2:] == [("BEFORE_LOAD", 1), ("AFTER_LOAD", 1)]

    def test_several_items(self, folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
        items = {
            "params": ocp.args.StandardSave(state(1)), "rest": ocp.args.PyTreeSave({"x": np.arange(3)}),
            "config": ocp.args.JsonSave({"width": 3}), "one": ocp.args.ArraySave(jnp.arange(4)),
            "key": ocp.args.JaxRandomKeySave(jax.random.key(3)),
        }  # fmt: skip
        with manager(folder, watch) as orbax:
            orbax.save(1, args=ocp.args.Composite(**items))
            orbax.wait_until_finished()
            restored = orbax.restore(
                1,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(state(0)), config=ocp.args.JsonRestore(),
                    one=ocp.args.ArrayRestore(), key=ocp.args.JaxRandomKeyRestore(),
                ),
            )  # fmt: skip
        assert equal(restored.params, state(1))
        assert restored.config == {"width": 3}
        assert (jax.random.key_data(restored.key) == jax.random.key_data(jax.random.key(3))).all()
        assert heard.names().count(("BEFORE_SAVE", 1)) == heard.names().count(("AFTER_SAVE", 1)) == 1
        assert {context.data["item"] for context in heard.of(STAGE)} == set(items)
        assert all((folder / "1" / item / NAME).exists() for item in items)

    @pytest.mark.parametrize("renamed", [True, False], ids=["renamed", "marked as on object storage"])
    def test_items_whose_names_end_with_numbers(
        self, folder: Path, watch: OrbaxHandler, heard: Heard, renamed: bool
    ) -> None:
        options = {} if renamed else {"temporary_path_class": CommitFileTemporaryPath}
        names = ("layer2", "layer10")
        with manager(folder, watch, **options) as orbax:
            for step in (3, 4):
                orbax.save(
                    step, args=ocp.args.Composite(**{n: ocp.args.StandardSave(state(step)) for n in names})
                )
            orbax.wait_until_finished()
            restored = orbax.restore(3, args=ocp.args.Composite(layer2=ocp.args.StandardRestore(state(0))))
            assert equal(restored.layer2, state(3))
        assert [step for name, step in heard.names() if name == "AFTER_SAVE"] == [3, 4]
        loaded = heard.of(HookEvent.AFTER_LOAD)
        assert [context.checkpoint and context.checkpoint.step for context in loaded] == [3]
        assert watch.failures == []

    def test_an_item_that_somebody_elses_handler_writes(self, folder: Path, watch: OrbaxHandler) -> None:
        """Data of grain, say: it has no digests of its own, and is checked with any item that is restored."""
        numbers = iter(grain.MapDataset.range(20).seed(1).shuffle().to_iter_dataset())
        items = {"state": ocp.args.StandardSave(state(1)), "data": grain.checkpoint.CheckpointSave(numbers)}
        with manager(folder, watch) as orbax:
            orbax.save(1, args=ocp.args.Composite(**items))
            orbax.wait_until_finished()
            first = next(numbers)
            back = ocp.args.Composite(
                state=ocp.args.StandardRestore(state(0)), data=grain.checkpoint.CheckpointRestore(numbers)
            )
            orbax.restore(1, args=back)
            assert next(numbers) == first
            flip(largest(folder / "1" / "data"))
            with pytest.raises(CorruptionError, match="data"):
                orbax.restore(1, args=back)

    def test_a_checkpointer_without_a_manager(self, folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
        with ocp.AsyncCheckpointer(watch.handler(ocp.StandardCheckpointHandler)) as checkpointer:
            checkpointer.save(folder, args=ocp.args.StandardSave(state(4)))
            checkpointer.wait_until_finished()
            assert equal(checkpointer.restore(folder, args=ocp.args.StandardRestore(state(0))), state(4))
            assert heard.names(STAGE) == [
                (name, 0) for name in ("BEFORE_SAVE", "AFTER_SAVE", "BEFORE_LOAD", "AFTER_LOAD")
            ]
            flip(largest(folder))
            with pytest.raises(CorruptionError):
                checkpointer.restore(folder, args=ocp.args.StandardRestore(state(0)))

    def test_one_mesh_to_another(
        self, folder: Path, watch: OrbaxHandler, mesh_4x2: Mesh, mesh_2x4: Mesh
    ) -> None:
        host = np.arange(64.0, dtype=np.float32).reshape(8, 8)
        with manager(folder, watch) as orbax:
            orbax.save(
                1, args=ocp.args.StandardSave({"w": jax.device_put(host, NamedSharding(mesh_4x2, P("rows")))})
            )
            orbax.wait_until_finished()
            like = jax.ShapeDtypeStruct(
                (8, 8), jnp.float32, sharding=NamedSharding(mesh_2x4, P(None, "columns"))
            )
            restored = orbax.restore(1, args=ocp.args.StandardRestore({"w": like}))["w"]
        assert restored.sharding == like.sharding
        assert (np.asarray(restored) == host).all()

    def test_a_handler_that_cannot_be_watched(self, watch: OrbaxHandler) -> None:
        with pytest.raises(UsageError, match="StandardCheckpointHandler"):
            watch.handler(ocp.CompositeCheckpointHandler)


class TestRetention:
    def test_policies_of_the_engine(self, folder: Path, watch: OrbaxHandler, heard: Heard) -> None:
        keep = watch.preservation(KeepLast(2), KeepBest(1), KeepEvery(steps=4))
        with manager(folder, watch, preservation_policy=keep, best_fn=lambda m: m["loss"]) as orbax:
            for step, loss in enumerate([9.0, 1.0, 5.0, 6.0, 7.0, 8.0, 8.5]):
                orbax.save(step, args=ocp.args.StandardSave(state(step)), metrics={"loss": loss})
        kept = ["0", "1", "4", "5", "6"]
        assert sorted(path.name for path in folder.iterdir()) == kept
        assert [str(c.step) for c in watch.manager.checkpoints()] == kept
        assert [context.step for context in heard.of(HookEvent.AFTER_DELETE)] == [2, 3]

    def test_by_metrics_that_orbax_does_not_write(self, folder: Path, watch: OrbaxHandler) -> None:
        with manager(
            folder, watch, preservation_policy=watch.preservation(KeepLast(1), KeepBest(1))
        ) as orbax:
            for step, loss in enumerate([9.0, 1.0, 5.0, 6.0]):
                orbax.save(step, args=ocp.args.StandardSave(state(step)), metrics={"loss": loss})
        assert sorted(path.name for path in folder.iterdir()) == ["1", "3"]

    def test_pins_and_vetoes_are_heard(self, folder: Path, watch: OrbaxHandler) -> None:
        @hook(HookEvent.BEFORE_DELETE)
        def keep_two(context: HookContext) -> bool | None:
            return context.veto("two is dear to us") if context.step == 2 else None

        watch.hooks.register_hook(keep_two)
        with manager(folder, watch, preservation_policy=watch.preservation(KeepLast(1))) as orbax:
            for step in range(1, 6):
                orbax.save(step, args=ocp.args.StandardSave(state(step)))
                orbax.wait_until_finished()
                watch.wait()
                if step == 1:
                    watch.manager.pin("step=1")
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "5"]

    def test_what_somebody_deletes_is_forgotten(self, folder: Path, watch: OrbaxHandler) -> None:
        with manager(folder, watch) as orbax:
            for step in (1, 2):
                orbax.save(step, args=ocp.args.StandardSave(state(step)))
            orbax.wait_until_finished()
            watch.wait()
            orbax.delete(1)
        assert [c.step for c in watch.manager.checkpoints()] == [2]

    def test_a_folder_out_of_reach_is_not_a_deletion(self, folder: Path, watch: OrbaxHandler) -> None:
        save(folder, watch, 1, 2)
        folder.rename(folder.with_name("elsewhere"))
        watch.wait()
        assert [c.step for c in watch.manager.checkpoints()] == [1, 2]

    def test_a_policy_that_cannot_work_is_told_at_once(self, tmp_path: Path) -> None:
        with OrbaxHandler(tmp_path, experiment="e") as watch, pytest.raises(UsageError):
            watch.preservation(KeepBest(1))


class TestFailures:
    def test_a_save_that_fails_in_the_background(
        self, folder: Path, watch: OrbaxHandler, heard: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ckpt_jax import sidecar

        def full(*_: Any, **__: Any) -> Any:
            raise OSError(28, "No space left on device")

        orbax = manager(folder, watch)
        with monkeypatch.context() as patch:
            patch.setattr(sidecar, "seal", full)
            orbax.save(1, args=ocp.args.StandardSave(state(1)))
            with pytest.raises(OSError, match="No space"):
                orbax.wait_until_finished()
        orbax.close()
        assert heard.names(STAGE) == [("BEFORE_SAVE", 1), ("SAVE_FAILED", 1)]
        assert watch.manager.checkpoints() == []
        assert [step for step, _ in watch.failures] == [1]

    def test_one_that_never_gets_its_name(
        self, folder: Path, tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from orbax.checkpoint._src.path import atomicity

        async def lost(*_: Any, **__: Any) -> None: ...

        monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", lost)
        with OrbaxHandler(tmp_path / "ledger", experiment="e", hooks=[heard.hook]) as watch:
            save(folder, watch, 1)
        assert heard.names(STAGE) == [("BEFORE_SAVE", 1), ("SAVE_FAILED", 1)]
        assert "never committed" in str(heard.of(HookEvent.SAVE_FAILED)[0].error)

    def test_a_veto_does_not_reach_orbax(
        self, folder: Path, watch: OrbaxHandler, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch.hooks.register_hook(hook(HookEvent.BEFORE_SAVE, name="no")(lambda c: c.veto("not today")))
        save(folder, watch, 1)
        assert "step 1 is saved although no: not today" in caplog.text
        assert [c.step for c in watch.manager.checkpoints()] == [1]

    def test_a_veto_of_a_restore(self, folder: Path, watch: OrbaxHandler) -> None:
        save(folder, watch, 1)
        watch.hooks.register_hook(hook(HookEvent.BEFORE_LOAD, name="no")(lambda c: c.veto("not today")))
        with manager(folder, watch) as orbax, pytest.raises(UsageError, match="no: not today"):
            orbax.restore(1, args=ocp.args.StandardRestore(state(0)))

    def test_a_record_that_cannot_be_written_leaves_the_checkpoint(
        self,
        folder: Path,
        watch: OrbaxHandler,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError("the catalog's disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(watch._watch._ledger, "write", refuse)
            save(folder, watch, 1)
            watch.wait()
        assert "step 1 is committed, but could not be recorded" in caplog.text
        with manager(folder, watch) as orbax:
            assert equal(orbax.restore(1, args=ocp.args.StandardRestore(state(0))), state(1))

    def test_the_watch_is_closed_first(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = OrbaxHandler(tmp_path / "ledger", experiment="e")
        with manager(folder, watch) as orbax:
            with monkeypatch.context() as patch:
                patch.setattr(watch._watch._commits, "give_up", list)  # as if it came a moment later
                watch.close()
            orbax.save(1, args=ocp.args.StandardSave(state(1)))
        assert "close the watch last" in caplog.text
        with manager(folder, None) as orbax:
            assert equal(orbax.restore(1, args=ocp.args.StandardRestore(state(0))), state(1))


class TestLineage:
    def test_a_run_that_restores_continues_the_lineage(self, folder: Path, tmp_path: Path) -> None:
        for number in range(2):
            with OrbaxHandler(tmp_path / "ledger", experiment="e") as watch, manager(folder, watch) as orbax:
                step = orbax.latest_step()
                if step is not None:
                    orbax.restore(step, args=ocp.args.StandardRestore(state(0)))
                for each in range(number * 2, number * 2 + 2):
                    orbax.save(each, args=ocp.args.StandardSave(state(each)))
        with OrbaxHandler(tmp_path / "ledger", experiment="e") as watch:
            found = watch.manager.checkpoints()
        assert [(c.step, c.attempt.number) for c in found] == [(0, 1), (1, 1), (2, 2), (3, 2)]
        assert len({c.attempt.lineage for c in found}) == 1
        assert found[2].attempt.resumed_from == found[1].id

    def test_what_was_never_recorded_is_met_again(
        self, folder: Path, watch: OrbaxHandler, tmp_path: Path
    ) -> None:
        """A process may be killed when a step has its name and is not in the catalog yet."""
        save(folder, watch, 1, 2, 3)
        watch.manager.forget("step=2")
        (folder / "junk_5").mkdir()
        save(folder, watch, 4)
        assert [c.step for c in watch.manager.checkpoints()] == [1, 3, 4], "once for each folder"
        with OrbaxHandler(tmp_path / "ledger", experiment="orbax") as again, manager(folder, again) as orbax:
            orbax.restore(4, args=ocp.args.StandardRestore(state(0)))
            assert sorted(c.step for c in again.manager.checkpoints()) == [1, 2, 3, 4]
        with OrbaxHandler(tmp_path / "another", experiment="e") as other:
            save(folder, other, 6)
            other.wait()
            assert [c.step for c in other.manager.checkpoints()] == [1, 2, 3, 4, 6]
            assert len({c.attempt.lineage for c in other.manager.checkpoints()}) == 1

    def test_back_to_an_earlier_step(
        self, folder: Path, watch: OrbaxHandler, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR)
        save(folder, watch, 5)
        with manager(folder, watch) as orbax:
            orbax.save(2, args=ocp.args.StandardSave(state(2)), force=True)
        assert [(c.step, c.attempt.number) for c in watch.manager.checkpoints()] == [(5, 1), (2, 2)]
        assert not caplog.records

    def test_a_checkpoint_that_was_moved_is_known_by_its_digests(
        self, folder: Path, watch: OrbaxHandler, heard: Heard
    ) -> None:
        save(folder, watch, 7)
        elsewhere = folder.with_name("elsewhere")
        folder.rename(elsewhere)
        with manager(elsewhere, watch) as orbax:
            orbax.restore(7, args=ocp.args.StandardRestore(state(0)))
        loaded = heard.of(HookEvent.AFTER_LOAD)[0].checkpoint
        assert loaded is not None
        assert loaded.step == 7
