"""The names that the world may count on. A name is added or removed here, on purpose, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_core
from ckpt_core import errors

EXPECTED = {
    "__version__",
    # manager and session
    "Attempt",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointReader",
    "Decision",
    "SaveHandle",
    "Session",
    "Workspace",
    # formats
    "Copied",
    "copy_checkpoints",
    "Exported",
    "export_checkpoint",
    "import_checkpoint",
    "StorageBackend",
    # experiments, and what carries their metrics
    "BatchProcessor",
    "CacheManager",
    "ExperimentTracker",
    # hooks
    "BaseAPI",
    "BaseHook",
    "HookContext",
    "HookEvent",
    "HookManager",
    "HookPriority",
    "hook",
    # when to save
    "AnyOf",
    "EveryEpochs",
    "EveryMinutes",
    "EverySteps",
    "Never",
    "OnImprovement",
    "OnLearningRateDrop",
    "OnLossSpike",
    "OnPlateau",
    "OnSignal",
    "WithinOverhead",
    # what to keep
    "KeepAll",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepSpaced",
    "KeepTagged",
    "KeepWithinBytes",
    # checking
    "CheckpointVerifier",
    "ChecksumCalculator",
    "IntegrityTracker",
    # states
    "WeightsReport",
    "register_codec",
    # errors
    "CatalogError",
    "CkptError",
    "CorruptionError",
    "FormatError",
    "HookError",
    "MissingExtraError",
    "NotFoundError",
    "SaveFailedError",
    "SaveNotDoneError",
    "SignatureError",
    "StateError",
    "StateMismatchError",
    "StoreError",
    "UsageError",
}


def test_the_list_is_the_list() -> None:
    assert set(ckpt_core.__all__) == EXPECTED
    assert len(ckpt_core.__all__) == len(EXPECTED), "a name stands twice in __all__"


def test_every_error_is_public() -> None:
    # A store raises these two to the repository, which says in the words of its caller what they mean.
    between_floors = {"ObjectExistsError", "ObjectNotFoundError"}
    assert set(errors.__all__) - between_floors <= EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED - {"__version__"}))
def test_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(ckpt_core, name)
    # The class's own text: one inherited from `object` or from a base would say nothing of this name.
    text = value.__doc__ or ""
    assert text.strip(), f"ckpt_core.{name} has no docstring"
    assert not text.startswith(f"{name}("), f"ckpt_core.{name} has only the signature that dataclass writes"


def test_dir_shows_the_names_before_any_is_used(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ckpt_core; print(*dir(ckpt_core))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) >= EXPECTED


def test_star_import_gives_the_names() -> None:
    namespace: dict[str, object] = {}
    exec("from ckpt_core import *", namespace)
    assert namespace.keys() >= EXPECTED


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ckpt_core.no_such_name
