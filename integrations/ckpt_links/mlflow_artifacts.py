"""What MLflow finds under a `ckpt://` address: the tensors of a checkpoint in one safetensors file, the rest as JSON.

MLflow imports this module when it starts, by the entry point `ckpt` of its group `mlflow.artifact_repository`. Nothing
can be written there: checkpoints are made by saving.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from ckpt_core import CheckpointManager, CheckpointReader, CkptError, Workspace
from ckpt_core.config import environment
from ckpt_links.places import split_place

__all__ = ["CheckpointArtifacts"]

TENSORS = "tensors.safetensors"
STATE = "state.json"
_PARTS = 3  # of an address: store, experiment, reference


class CheckpointArtifacts(ArtifactRepository):  # type: ignore[misc]
    """The files of one checkpoint. Errors of the store come as MlflowException."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        place, file = self._split(path)
        if file:
            return []
        with self._opened(place) as reader:
            tensors = sum(tensor.nbytes for tensor in reader.tensors().values())
            above = f"{path.strip('/')}/" if path else ""
            return [FileInfo(above + STATE, False, None), FileInfo(above + TENSORS, False, tensors)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        place, file = self._split(remote_file_path)
        if file == STATE:
            with self._opened(place) as reader:
                tensors = reader.tensors()
                values = {path: reader[path] for path in reader if path not in tensors}
            Path(local_path).write_text(json.dumps(values, default=str, indent=1), encoding="utf-8")
        elif file == TENSORS:
            self._restore(place, Path(local_path))
        else:
            raise MlflowException(f"{place} has {STATE} and {TENSORS}, no {file!r}")

    def _split(self, path: str | None) -> tuple[str, str]:
        """The checkpoint's address, and a file in it. MLflow takes the last part of an address for a path."""
        whole = "/".join([self.artifact_uri.rstrip("/"), *([path.strip("/")] if path else [])])
        parts = whole.removeprefix("ckpt://").split("/")
        return "ckpt://" + "/".join(parts[:_PARTS]), "/".join(parts[_PARTS:])

    def _restore(self, place: str, target: Path) -> None:
        """By the command, which streams any number of tensors and checks every byte."""
        store, experiment, reference = split_place(place)
        made = target.with_name(f".{target.name}.restored.safetensors")
        arguments = ["--store", store, "restore", f"{experiment}@{reference}", str(made), "--force"]
        done = subprocess.run(
            [sys.executable, "-m", "ckpt_core", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MlflowException(f"{place} cannot be restored: {done.stderr.strip()}")
        made.replace(target)

    @contextmanager
    def _opened(self, place: str) -> Iterator[CheckpointReader]:
        try:
            store, experiment, reference = split_place(place)
            catalog = environment("CKPT_CATALOG")
            Workspace.open(store, catalog=catalog).close()  # a manager would begin one where there is none
            with (
                CheckpointManager(store, experiment=experiment, catalog=catalog, hooks_file=False) as manager,
                manager.open(reference, framework="numpy") as reader,
            ):
                yield reader
        except CkptError as error:
            raise MlflowException(f"{place} cannot be read: {error}") from error

    def log_artifact(self, local_file: Any, artifact_path: Any = None) -> NoReturn:
        self._refuse()

    def log_artifacts(self, local_dir: Any, artifact_path: Any = None) -> NoReturn:
        self._refuse()

    def delete_artifacts(self, artifact_path: Any = None) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MlflowException(
            f"{self.artifact_uri} can only be read: a checkpoint is made by saving, and removed by `ckpt forget`"
        )
