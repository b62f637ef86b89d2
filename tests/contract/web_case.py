"""What tests of the REST API share: a store with two experiments, and a client."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from ckpt_core import CheckpointManager, Workspace
from ckpt_core.web.app import create_app

TOKEN = "t" * 64
NAME = "größe π %2F & + 𝕏"  # letters, an escape and a separator that are none
CHUNK = 64 << 10


def state(step: int) -> dict[str, Any]:
    return {
        "model": {"w": np.arange(40_000, dtype=np.float32) + step, "b/c": np.full((3, 5), step, np.int16)},
        "config": {"lr": 0.1 * step, "name": "digits", "nan": float("nan")},
        "step": step,
    }


def fill(root: Path) -> None:
    with CheckpointManager(root, experiment="digits", metric="loss", chunk_bytes=CHUNK) as manager:
        for step in range(1, 8):
            manager.log({"train": step if step != 3 else float("nan")}, step=step)
            manager.save(state(step), step=step, metrics={"loss": 1 / step}, tags=[f"t{step}"], wait=True)
    with CheckpointManager(root, experiment=NAME) as manager:
        manager.save({"x": np.arange(10)}, step=1, wait=True)


@cache
def _app(workspace: Workspace, **options: Any) -> Any:
    return create_app(workspace, token=TOKEN, **options)


def client_of(workspace: Workspace, **options: Any) -> TestClient:
    app = create_app(workspace, token=TOKEN, **options) if "parts" in options else _app(workspace, **options)
    return TestClient(
        app, base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {TOKEN}"}, follow_redirects=False,
        raise_server_exceptions=False,
    )  # fmt: skip
