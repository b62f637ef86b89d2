"""Watchers at work in a manager: what they look at, what they compare with, and what follows a complaint."""

from __future__ import annotations

import logging
import math
import re
import threading
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    HookContext,
    HookEvent,
    HookManager,
    SaveNotDoneError,
    UsageError,
    Workspace,
)
from ckpt_core.hooks import FunctionHook, HookPriority, installed_hooks, make_hook
from ckpt_core.hooks.installed import options_of
from ckpt_core.watch import DiskSpaceGuard, GridMonitor, QuaternionCheck, Sight, TensorHealth, TensorWatcher

IDENTITY = np.array([[1, 0, 0, 0]] * 50, np.float32)


def turned(degrees):
    half = math.radians(degrees) / 2
    return np.array([[math.cos(half), math.sin(half), 0, 0]] * 50, np.float32)


def series(store, name, experiment="x"):
    """Values of a metric by step, as they were logged."""
    with opened(store) as catalog:
        return {point.step: point.value for point in catalog.metric_series(experiment, name)}


@contextmanager
def opened(store):
    workspace = Workspace.open(store)
    try:
        yield workspace.index.catalog()
    finally:
        workspace.close()


def save(store, *hooks, experiment="x", **states):
    """Saves states, each under its step, as `s1={...}`; the checkpoints' tags by step."""
    with CheckpointManager(store, experiment=experiment, hooks=hooks) as manager:
        for step, state in states.items():
            manager.save(state, step=int(step[1:])).result()
        manager.wait()
        return {found.step: found.tags for found in manager.checkpoints()}


def test_metrics_go_to_the_series(store_path):
    q = IDENTITY.copy()
    q[3] = 0
    watch = QuaternionCheck("splats/*", allowed=0.5)
    save(store_path, watch, s1={"splats": {"rotation": q}}, s2={"splats": {"rotation": turned(10)}})
    assert series(store_path, "quaternions/violations/splats/rotation") == {1: 0.02, 2: 0.0}
    assert series(store_path, "quaternions/zero/splats/rotation") == {1: 1.0, 2: 0.0}
    drift = series(store_path, "quaternions/drift_max/splats/rotation")
    assert drift == pytest.approx({2: 10.0}, rel=1e-4)  # the first save has nothing before it


def test_after_a_restart_the_checkpoint_that_training_goes_on_from_is_the_one_before(store_path):
    save(store_path, s1={"q": IDENTITY})
    watch = QuaternionCheck("q")
    with CheckpointManager(store_path, experiment="x", hooks=[watch]) as manager:
        manager.load("latest")
        manager.save({"q": turned(30)}, step=2).result()
    assert series(store_path, "quaternions/drift_mean/q") == pytest.approx({2: 30.0}, rel=1e-4)
    save(store_path, watch, s3={"q": turned(60)})  # an attempt from nothing has none before it
    assert series(store_path, "quaternions/drift_mean/q") == {}
    assert series(store_path, "quaternions/violations/q") == {3: 0.0}


def test_a_save_that_was_not_made_is_not_what_the_next_is_compared_with(store_path):
    watch = QuaternionCheck("q", max_drift=20, action="veto")
    with CheckpointManager(store_path, experiment="x", hooks=[watch]) as manager:
        manager.save({"q": IDENTITY}, step=1).result()
        with pytest.raises(SaveNotDoneError, match=r"QuaternionCheck: q: a rotation turned 25° .* over 20°"):
            manager.save({"q": turned(25)}, step=2).result()
        manager.save({"q": turned(15)}, step=3).result()
    assert series(store_path, "quaternions/drift_max/q") == pytest.approx({2: 25, 3: 15}, rel=1e-4)


def test_a_veto_is_audited_with_its_reason(store_path):
    watch = TensorHealth(action="veto")
    with CheckpointManager(store_path, experiment="x", hooks=[watch]) as manager:
        with pytest.raises(SaveNotDoneError) as caught:
            manager.save({"w": np.array([1, np.nan, np.inf], np.float32)}, step=4, wait=True)
        assert caught.value.kind == "vetoed"
        trail = [entry for entry in manager.workspace.index.catalog().audit_log() if entry.event == "save"]
    assert [entry.outcome for entry in trail] == ["vetoed"]
    assert "w: 1 NaN and 1 infinite among 3 values" in trail[0].detail["reason"]


def test_a_tag_names_the_checkpoint_that_was_complained_of(store_path, caplog):
    broken = {"w": np.full(4, np.nan, np.float32)}
    tags = save(store_path, TensorHealth(action="tag"), s1={"w": np.ones(4)}, s2=broken, s3={"w": np.ones(4)})
    assert tags == {1: (), 2: ("health-step-2",), 3: ()}
    assert "TensorHealth at step 2: w: 4 NaN" in caplog.text


def test_a_complaint_of_a_save_that_was_not_made_is_not_the_next_ones(store_path):
    refuse = FunctionHook(lambda context: context.step != 1, name="refuse", events=HookEvent.BEFORE_SAVE)
    with CheckpointManager(store_path, experiment="x", hooks=[TensorHealth(action="tag"), refuse]) as manager:
        assert manager.save({"w": np.full(4, np.nan)}, step=1).exception() is not None
        manager.save({"w": np.ones(4)}, step=2).result()
        manager.wait()
        assert [found.tags for found in manager.checkpoints()] == [()]


def test_a_warning_is_logged_and_nothing_else(store_path, caplog):
    with caplog.at_level(logging.WARNING, "ckpt_core.watch"):
        tags = save(store_path, TensorHealth(), s1={"w": np.full(4, np.inf, np.float32)})
    assert tags == {1: ()}
    assert [record.name for record in caplog.records] == ["ckpt_core.watch"]


@pytest.mark.parametrize("wait", [False, True])
def test_what_is_looked_at_is_the_copy_that_is_saved(store_path, wait):
    """Training goes on while a watcher looks, and changes what it had handed over."""
    looks, goes_on = threading.Event(), threading.Event()

    class Patient(TensorHealth):
        def examine(self, path, values, before):
            looks.set()
            assert wait or goes_on.wait(10)
            return super().examine(path, values, before)

    live = np.ones(1000, np.float32)
    with CheckpointManager(store_path, experiment="x", hooks=[Patient(each=True)]) as manager:
        handle = manager.save({"w": live}, step=1, wait=wait)
        assert looks.wait(10)
        live[:] = np.nan
        goes_on.set()
        handle.result()
    assert series(store_path, "health/nan/w") == {1: 0.0}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn], ids=str)
def test_narrow_dtypes_are_judged_by_what_they_can_hold(store_path, dtype):
    q = np.random.default_rng(0).normal(size=(500, 4))
    q = (q / np.linalg.norm(q, axis=1, keepdims=True)).astype(dtype)
    field = np.random.default_rng(1).normal(size=(8, 8, 8)).astype(dtype)
    hooks = [
        QuaternionCheck("q", action="veto"),
        GridMonitor("field", action="veto"),
        TensorHealth(action="veto"),
    ]
    save(store_path, *hooks, s1={"q": q, "field": field}, s2={"q": q, "field": field})
    assert series(store_path, "quaternions/drift_max/q")[2] == 0.0
    assert series(store_path, "grid/dead/field") == {2: 1.0}
    assert series(store_path, "health/update") == {2: 0.0}


def test_a_grid_tells_what_it_holds_and_how_it_changed(store_path, caplog):
    field = np.zeros((4, 4, 4), np.float32)
    field[:2] = 1
    finer = np.zeros((8, 8, 8), np.float32)
    watch = GridMonitor(
        "field", fixed=True, occupancy=(0.3, 1), value_range=(-1, 1), max_change=0.5, max_dead=0.9
    )
    save(store_path, watch, s1={"field": field}, s2={"field": field * 3}, s3={"field": finer})
    assert series(store_path, "grid/occupancy/field") == {1: 0.5, 2: 0.5, 3: 0.0}
    assert series(store_path, "grid/gradient/field") == {1: 0.25, 2: 2.25, 3: 0.0}
    assert series(store_path, "grid/dead/field") == {2: 0.5}
    assert series(store_path, "grid/change/field") == {2: 2.0}
    assert series(store_path, "grid/resolution_0/field") == {1: 4.0, 2: 4.0, 3: 8.0}
    assert [record.getMessage() for record in caplog.records if record.name == "ckpt_core.watch"] == [
        "GridMonitor at step 2: field: its values go from 0 to 3, outside -1 to 1; field: its change since the last "
        "checkpoint is 2, over 0.5",
        "GridMonitor at step 3: field: its resolution is 8 × 8 × 8, and was 4 × 4 × 4; field: 0.000% of its cells are "
        "occupied, outside 0.3 to 1",
    ]


def test_health_of_all_and_of_each(store_path):
    w = np.ones((4, 3), np.float32)
    w[1] = 0
    changed = w * 2
    save(
        store_path,
        TensorHealth(each=True),
        s1={"w": w, "b": np.ones(2), "n": 3},
        s2={"w": changed, "b": np.ones(2)},
    )
    assert series(store_path, "health/dead") == {1: 0.25, 2: 0.25}
    assert series(store_path, "health/norm/w") == {1: 3.0, 2: 6.0}
    assert series(store_path, "health/update/w") == {2: 1.0}
    assert series(store_path, "health/update/b") == {2: 0.0}
    assert series(store_path, "health/norm") == pytest.approx({1: math.sqrt(11), 2: math.sqrt(38)})


@pytest.mark.parametrize(
    ("watch", "state", "said"),
    [
        (
            QuaternionCheck("rotation"),
            {"q": IDENTITY},
            "finds no tensor to look at under rotation; the state has q",
        ),
        (QuaternionCheck("q"), {"q": IDENTITY.T}, r"q of shape \[4, 50\] .* holds no quaternions"),
        (QuaternionCheck("q*"), {"q": IDENTITY.astype(int)}, r"finds no tensor to look at under q\*"),
        (GridMonitor("g"), {"g": np.array(1.0)}, "no grid of real numbers"),
        (GridMonitor("g", axes=(2,)), {"g": np.ones((2, 2))}, "not all axes of a tensor that has 2"),
    ],
)
def test_what_cannot_be_looked_at_is_told_and_the_save_is_made(store_path, caplog, watch, state, said):
    tags = save(store_path, watch, s1=state)
    assert list(tags) == [1]
    assert re.search(said, caplog.text)


def test_a_checkpoint_before_that_cannot_be_read_is_no_reason_to_look_away(store_path, caplog):
    with CheckpointManager(
        store_path, experiment="x", hooks=[QuaternionCheck("q"), TensorHealth("w")]
    ) as manager:
        first = manager.save({"q": IDENTITY, "w": np.ones(4)}, step=1).result()
        manager.wait()
        for pack in (store_path / "packs").rglob("*.safetensors"):
            pack.unlink()
        manager.save({"q": turned(1), "w": np.full(4, np.nan)}, step=2).result()
    assert "QuaternionCheck cannot compare q with the checkpoint before" in caplog.text
    assert "w: 4 NaN" in caplog.text
    assert first.step == 1


def test_only_chosen_tensors_are_looked_at_and_each_metric_has_a_name(store_path):
    deep = "/".join(["block"] * 60)
    state = {"a": np.ones(2), deep: np.ones(2), "b": np.ones(2)}
    save(store_path, TensorHealth(["a", "block*"], each=True), s1=state)
    with opened(store_path) as catalog:
        names = catalog.metric_names("x")
    assert {"health/norm/a"} <= set(names) and "health/norm/b" not in names
    assert max(map(len, names)) == 255


def test_a_watcher_without_a_manager_or_a_state_says_so():
    context = HookContext(HookEvent.BEFORE_SAVE, step=1, tensors={"w": np.ones(3)})
    with pytest.raises(UsageError, match="belongs to no manager"):
        TensorHealth().execute(context)
    with pytest.raises(UsageError, match="leave its events and its priority"):
        TensorHealth().execute(HookContext(HookEvent.STEP_END, step=1))
    background = TensorHealth()
    background.priority = HookPriority.BACKGROUND
    manager = HookManager([background])
    manager.fire(context)
    manager.drain()
    assert manager.statistics()["TensorHealth"].failures == 1


def test_a_watcher_of_ones_own(store_path):
    class Largest(TensorWatcher):
        topic = "largest"

        def examine(self, path, values, before):
            return Sight({"value": float(values.max())}, ("over 9",) if values.max() > 9 else ())

    tags = save(store_path, Largest("w", action="tag"), s1={"w": np.arange(5)}, s2={"w": np.arange(20)})
    assert series(store_path, "largest/value/w") == {1: 4.0, 2: 19.0}
    assert tags == {1: (), 2: ("largest-step-2",)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuaternionCheck("q", order="zyxw"),
        lambda: QuaternionCheck("q", sign="negative"),
        lambda: QuaternionCheck("q", tolerance=-1),
        lambda: QuaternionCheck("q", allowed=2),
        lambda: QuaternionCheck("q", action="delete"),
        lambda: QuaternionCheck(3),
        lambda: GridMonitor("g", axes=()),
        lambda: GridMonitor("g", axes=(0, 2)),
        lambda: GridMonitor("g", occupancy=(1, 0)),
        lambda: GridMonitor("g", max_dead=1.5),
        lambda: TensorHealth(units="middle"),
        lambda: TensorHealth(max_norm=math.nan),
        lambda: TensorHealth(max_update=True),
        lambda: DiskSpaceGuard("many"),
        lambda: DiskSpaceGuard(action="delete"),
    ],
)
def test_options_that_mean_nothing_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_a_save_that_would_fill_the_disk_is_refused(store_path):
    guard = DiskSpaceGuard("1 MB")
    with CheckpointManager(store_path, experiment="x", hooks=[guard]) as manager:
        manager.save({"w": np.ones(3)}, step=1).result()
        guard.keep_free = 10**18
        with pytest.raises(
            SaveNotDoneError, match="bytes are free on the disk of .*store; a save of 24 would leave"
        ):
            manager.save({"w": np.ones(3)}, step=2).result()
    assert series(store_path, "disk/free")[2] > 0


def test_a_disk_that_is_merely_warned_of(store_path, caplog):
    assert list(save(store_path, DiskSpaceGuard(10**18, action="warn"), s1={"w": np.ones(3)})) == [1]
    assert "to be kept free" in caplog.text


def test_a_guard_wants_a_disk(tmp_path):
    with pytest.raises(UsageError, match="name a folder on the disk"):
        CheckpointManager("memory://guard", experiment="x", hooks=[DiskSpaceGuard()])
    with CheckpointManager(
        "memory://guarded", experiment="x", hooks=[DiskSpaceGuard(path=tmp_path)]
    ) as manager:
        manager.save({"w": np.ones(3)}, step=1).result()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quaternions", {"tensors": ["q"], "order": "xyzw", "max_drift": 3.0, "action": "tag"}),
        ("grids", {"tensors": "g", "axes": [1, 2], "occupancy": [0.1, 1.0]}),
        ("tensor-health", {"units": "last", "max_dead": 0.5, "each": True}),
        ("disk-space", {"keep_free": "2 GiB", "path": "/"}),
        (
            "webhook",
            {"url": "https://example.org/x", "headers": {"Authorization": "Bearer x"}, "seconds": 3.0},
        ),
        ("command", {"command": ["true"], "environment": {"A": "b"}}),
        ("event-log", {"path": "events.jsonl"}),
        ("upload", {"place": "memory://archive"}),
    ],
)
def test_each_is_installed_and_takes_its_options_from_a_file(name, options):
    assert name in installed_hooks()
    made = make_hook(name, options)
    assert made.name == name
    assert set(options) <= {option.name for option in options_of(type(made))}
