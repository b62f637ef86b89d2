"""A store with two experiments, and clients of an API over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ckpt_core import Workspace
from contract.web_case import client_of, fill


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web") / "store"
    fill(root)
    return root


@pytest.fixture(scope="session")
def workspace(root: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(root)
    yield workspace
    workspace.close()


@pytest.fixture
def api(workspace: Workspace) -> TestClient:
    """May read."""
    return client_of(workspace)


@pytest.fixture
def writing(workspace: Workspace) -> TestClient:
    """May change things, too."""
    return client_of(workspace, allow_write=True)


@pytest.fixture(scope="session")
def newest(workspace: Workspace) -> str:
    return workspace.index.newest("digits").id
