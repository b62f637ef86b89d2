"""Framework-neutral checkpoints for model training: durable, verified, deduplicated, exact to resume.

The names below are public and load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_core.backends import StorageBackend as StorageBackend
    from ckpt_core.errors import CatalogError as CatalogError
    from ckpt_core.errors import CkptError as CkptError
    from ckpt_core.errors import CorruptionError as CorruptionError
    from ckpt_core.errors import FormatError as FormatError
    from ckpt_core.errors import HookError as HookError
    from ckpt_core.errors import MissingExtraError as MissingExtraError
    from ckpt_core.errors import NotFoundError as NotFoundError
    from ckpt_core.errors import SaveFailedError as SaveFailedError
    from ckpt_core.errors import SaveNotDoneError as SaveNotDoneError
    from ckpt_core.errors import SignatureError as SignatureError
    from ckpt_core.errors import StateError as StateError
    from ckpt_core.errors import StateMismatchError as StateMismatchError
    from ckpt_core.errors import StoreError as StoreError
    from ckpt_core.errors import UsageError as UsageError
    from ckpt_core.fitting import WeightsReport as WeightsReport
    from ckpt_core.format.hashing import ChecksumCalculator as ChecksumCalculator
    from ckpt_core.hooks import BaseHook as BaseHook
    from ckpt_core.hooks import HookContext as HookContext
    from ckpt_core.hooks import HookEvent as HookEvent
    from ckpt_core.hooks import HookManager as HookManager
    from ckpt_core.hooks import HookPriority as HookPriority
    from ckpt_core.hooks import hook as hook
    from ckpt_core.maintenance.integrity import IntegrityTracker as IntegrityTracker
    from ckpt_core.maintenance.verify import CheckpointVerifier as CheckpointVerifier
    from ckpt_core.manager import CheckpointManager as CheckpointManager
    from ckpt_core.model import Attempt as Attempt
    from ckpt_core.model import Checkpoint as Checkpoint
    from ckpt_core.model import Decision as Decision
    from ckpt_core.moving import Exported as Exported
    from ckpt_core.moving import export_checkpoint as export_checkpoint
    from ckpt_core.moving import import_checkpoint as import_checkpoint
    from ckpt_core.perf.batches import BatchProcessor as BatchProcessor
    from ckpt_core.perf.cache import CacheManager as CacheManager
    from ckpt_core.pipeline.copying import Copied as Copied
    from ckpt_core.pipeline.copying import copy_checkpoints as copy_checkpoints
    from ckpt_core.pipeline.opened import CheckpointReader as CheckpointReader
    from ckpt_core.pipeline.queue import SaveHandle as SaveHandle
    from ckpt_core.pipeline.workspace import Workspace as Workspace
    from ckpt_core.policies import AnyOf as AnyOf
    from ckpt_core.policies import EveryEpochs as EveryEpochs
    from ckpt_core.policies import EveryMinutes as EveryMinutes
    from ckpt_core.policies import EverySteps as EverySteps
    from ckpt_core.policies import KeepAll as KeepAll
    from ckpt_core.policies import KeepBest as KeepBest
    from ckpt_core.policies import KeepEvery as KeepEvery
    from ckpt_core.policies import KeepLast as KeepLast
    from ckpt_core.policies import KeepSpaced as KeepSpaced
    from ckpt_core.policies import KeepTagged as KeepTagged
    from ckpt_core.policies import KeepWithinBytes as KeepWithinBytes
    from ckpt_core.policies import Never as Never
    from ckpt_core.policies import OnImprovement as OnImprovement
    from ckpt_core.policies import OnLearningRateDrop as OnLearningRateDrop
    from ckpt_core.policies import OnLossSpike as OnLossSpike
    from ckpt_core.policies import OnPlateau as OnPlateau
    from ckpt_core.policies import OnSignal as OnSignal
    from ckpt_core.policies import WithinOverhead as WithinOverhead
    from ckpt_core.session import Session as Session
    from ckpt_core.tracker.experiments import ExperimentTracker as ExperimentTracker
    from ckpt_core.tree import register_codec as register_codec
    from ckpt_core.web import BaseAPI as BaseAPI

_MODULES = {
    "ckpt_core.backends": ("StorageBackend",),
    "ckpt_core.errors": (
        "CatalogError", "CkptError", "CorruptionError", "FormatError", "HookError", "MissingExtraError",
        "NotFoundError", "SaveFailedError", "SaveNotDoneError", "SignatureError", "StateError", "StateMismatchError",
        "StoreError", "UsageError",
    ),
    "ckpt_core.format.hashing": ("ChecksumCalculator",),
    "ckpt_core.maintenance.integrity": ("IntegrityTracker",),
    "ckpt_core.maintenance.verify": ("CheckpointVerifier",),
    "ckpt_core.fitting": ("WeightsReport",),
    "ckpt_core.hooks": ("BaseHook", "HookContext", "HookEvent", "HookManager", "HookPriority", "hook"),
    "ckpt_core.manager": ("CheckpointManager",),
    "ckpt_core.model": ("Attempt", "Checkpoint", "Decision"),
    "ckpt_core.moving": ("Exported", "export_checkpoint", "import_checkpoint"),
    "ckpt_core.perf.batches": ("BatchProcessor",),
    "ckpt_core.pipeline.copying": ("Copied", "copy_checkpoints"),
    "ckpt_core.perf.cache": ("CacheManager",),
    "ckpt_core.pipeline.opened": ("CheckpointReader",),
    "ckpt_core.pipeline.queue": ("SaveHandle",),
    "ckpt_core.pipeline.workspace": ("Workspace",),
    "ckpt_core.policies": (
        "AnyOf", "EveryEpochs", "EveryMinutes", "EverySteps", "KeepAll", "KeepBest", "KeepEvery", "KeepLast",
        "KeepSpaced", "KeepTagged", "KeepWithinBytes", "Never", "OnImprovement",
        "OnLearningRateDrop", "OnLossSpike", "OnPlateau", "OnSignal", "WithinOverhead",
    ),
    "ckpt_core.session": ("Session",),
    "ckpt_core.tracker.experiments": ("ExperimentTracker",),
    "ckpt_core.tree": ("register_codec",),
    "ckpt_core.web": ("BaseAPI",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ckpt_core.config import version_of

        return version_of("ckpt-core") or "unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
