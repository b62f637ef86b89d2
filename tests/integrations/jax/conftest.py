"""Eight devices, all of them the CPU, and a cache of compiled programs for the tests of the JAX adapter and the
processes they start: set before JAX looks for them.

Makes importable what lies beside these tests and is shared by them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flag = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # each program once, in whatever process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from ckpt_core import CheckpointManager

_told = sys.unraisablehook


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Where one read of several fails, Orbax leaves the others behind, and TensorStore tells the end of each to an event
    loop that is closed: in the midst of whatever test is next."""
    if found.object is not None or str(found.exc_value) != "Event loop is closed":
        _told(found)


sys.unraisablehook = _unraisable


@pytest.fixture
def manager(store_path: Path) -> Iterator[CheckpointManager]:
    with CheckpointManager(store_path, experiment="jax") as made:
        yield made


@pytest.fixture(scope="session")
def mesh_4x2() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("rows", "columns"))


@pytest.fixture(scope="session")
def mesh_2x4() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("rows", "columns"))
