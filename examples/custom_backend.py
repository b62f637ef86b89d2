"""A storage backend of one's own: a folder with one `.npy` for each tensor, and the rest as JSON.

    python examples/custom_backend.py

A package makes it known by name, so that `backend="npy-folder"` and `ckpt export --format npy-folder` find it:

    [project.entry-points."ckpt_core.backends"]
    npy-folder = "mypackage.backend:NpyFolder"
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager, StorageBackend
from ckpt_core.backends import put_together, take_apart


class NpyFolder(StorageBackend):
    """A folder of arrays that any program with numpy opens."""

    name = "npy-folder"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        arrays, structure = take_apart(data)
        path.mkdir()
        for number, array in enumerate(arrays.values()):
            raw = array if type(array.dtype).__module__ == "numpy.dtypes" else array.view(np.uint8)
            np.save(path / f"{number:05d}.npy", raw, allow_pickle=False)
        (path / "names.json").write_text(json.dumps(list(arrays)), encoding="utf-8")
        (path / "structure.json").write_text(structure, encoding="utf-8")
        return {"arrays": len(arrays)}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        structure = (path / "structure.json").read_text(encoding="utf-8")
        names = json.loads((path / "names.json").read_text(encoding="utf-8"))
        files = {name: path / f"{number:05d}.npy" for number, name in enumerate(names)}
        arrays = {name: np.load(file, allow_pickle=False) for name, file in files.items()}
        return put_together(arrays, structure)


def main() -> None:
    """Save, load and check with it."""
    state = {"model": {"weight": np.arange(6.0).reshape(2, 3)}, "epoch": 3}
    with (
        tempfile.TemporaryDirectory() as folder,
        CheckpointManager(folder, experiment="demo", backend=NpyFolder()) as manager,
    ):
        checkpoint = manager.save(state, step=100).result()
        loaded = manager.load("latest")
        assert (loaded["model"]["weight"] == state["model"]["weight"]).all()
        print(f"saved and loaded {checkpoint.id}, verified: {manager.verify().ok}")


if __name__ == "__main__":
    main()
