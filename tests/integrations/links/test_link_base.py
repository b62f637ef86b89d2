"""What holds for every link: it is made of options, says what to install, and holds nobody up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import ckpt_links
from ckpt_core import CheckpointManager, HookEvent, HookPriority
from ckpt_core.hooks import installed_hooks, make_hook
from ckpt_links.link import Link

EXTRAS = {
    "MLflowLink": ("mlflow", "mlflow", "()"),
    "OpenTelemetryLink": ("opentelemetry", "opentelemetry", "()"),
    "PrometheusLink": ("prometheus_client", "prometheus", "(registry=1)"),
    "TensorBoardLink": ("tensorboard", "tensorboard", "('runs')"),
    "WandbLink": ("wandb", "wandb", "()"),
}


def test_every_link_is_here():
    assert set(EXTRAS) == set(ckpt_links.__all__)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_library_that_is_missing_is_named_with_its_command(name):
    library, extra, arguments = EXTRAS[name]
    script = f"""
import sys
class Without:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
import ckpt_links
from ckpt_core import MissingExtraError
try:
    ckpt_links.{name}{arguments}
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{library} is not installed: pip install 'ckpt-core[{extra}]'"


def test_to_import_the_package_imports_no_library():
    libraries = {library for library, _, _ in EXTRAS.values()}
    script = f"import sys, ckpt_links; dir(ckpt_links); print(set(sys.modules) & {libraries!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlflow", {"params": {"lr": 0.1}}),
        ("opentelemetry", {}),
        ("prometheus", {"textfile": "ckpt.prom"}),
        ("tensorboard", {"folder": "runs/1", "hparams": {"lr": 0.1, "name": "adam"}}),
        ("wandb", {"project": "digits", "config": {"lr": 0.1}}),
    ],
)
def test_each_is_installed_and_takes_its_options_from_a_file(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name in installed_hooks()
    made = make_hook(name, options)
    assert made.priority is HookPriority.BACKGROUND
    assert made.timeout is not None


def test_a_tracker_that_hangs_is_left_behind(store_path):
    goes_on = threading.Event()

    class Hangs(Link):
        events = (HookEvent.AFTER_SAVE,)
        timeout = 0.2

        def execute(self, context):
            goes_on.wait(30)

    begun = time.monotonic()
    with CheckpointManager(store_path, experiment="x", hooks=[Hangs()]) as manager:
        for step in range(5):
            manager.save({"w": np.ones(3)}, step=step).result()
    assert time.monotonic() - begun < 20
    statistics = manager.hooks.statistics()["Hangs"]
    goes_on.set()
    assert (statistics.calls, statistics.timeouts, statistics.dropped) == (1, 1, 4)
