"""A store of checkpoints by storage backends, written when there first were any: every value is read back.

The files under `backend-files/` are never written again. Where this test fails, the reader is wrong.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from ckpt_core.maintenance.verify import verify
from ckpt_core.pipeline.loading import load_state
from ckpt_core.repository import Repository
from ckpt_core.stores import LocalStore
from ckpt_core.testing import same_state
from ckpt_core.tree import backend_files, registry

HERE = Path(__file__).parent
WRITER: dict[str, Any] = runpy.run_path(str(HERE / "write_backend_store.py"))


@pytest.fixture
def repository() -> Repository:
    return Repository.open(LocalStore(HERE / "backend-files"))


def test_every_value_comes_back(repository: Repository) -> None:
    steps = {}
    for found in repository.manifest_keys():
        manifest = repository.read(found.key).manifest
        made = backend_files(manifest.state)
        assert made is not None
        steps[found.step] = made.name
        assert same_state(load_state(repository, manifest, registry), WRITER["state"](found.step))
    assert steps == WRITER["BACKENDS"]
    assert not list((HERE / "backend-files").glob(".tmp-*"))


def test_it_is_whole(repository: Repository) -> None:
    assert verify(repository).ok
