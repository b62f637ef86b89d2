"""Folders that Trainer wrote, read into the same state that a callback of ours captures.

Writing such folders is `folder.py`'s. What Trainer leaves out of them (its place in the data) is left out here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import trainer_pt_utils

from ckpt_core import Checkpoint, CheckpointManager, UsageError
from ckpt_transformers.folder import from_native_rng, is_weights

__all__ = ["ingest", "read_folder"]

_STATE = "trainer_state.json"
_TRAINING = {
    "optimizer": "optimizer.pt",
    "scheduler": "scheduler.pt",
    "scaler": "scaler.pt",
    "rng": "rng_state.pth",
}
_NEEDED = ("optimizer", "scheduler", "rng")


def ingest(manager: CheckpointManager, folder: str | os.PathLike[str]) -> Checkpoint:
    """Saves a folder that Trainer wrote as a checkpoint, with the metrics of its step. Durable on return.

    It continues the newest lineage, if it is not older than its newest checkpoint; else it begins one. Raises
    UsageError (kind `incomplete`) for a folder that Trainer had not finished, or that has been damaged since;
    what `manager.save` raises.
    """
    state = read_folder(folder)
    fields = state["trainer"]["state"]
    step = fields["global_step"]
    state["session"] = {"finished": bool(fields["max_steps"]) and step >= fields["max_steps"]}
    newest = manager.latest()
    if newest is not None and step >= newest.step and manager.attempt.id != newest.attempt.id:
        manager.begin_attempt(
            newest
        )  # also for the sake of what the two have in common, which is stored once
    handle = manager.save(
        state, step=step, metrics=_metrics(state, step), reason=f"ingested {Path(folder).name}"
    )
    return handle.result()


def read_folder(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder holds, as state. Raises UsageError for one that is incomplete or of several processes."""
    place = Path(folder)
    found = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
    weights = {name: path for name, path in found.items() if is_weights(path)}
    _check(place, found, weights)
    allowed: Any = trainer_pt_utils
    try:
        state: dict[str, Any] = _weights(weights)
        for name, file in _TRAINING.items():
            if file in found:
                with allowed.safe_globals():
                    state[name] = torch.load(found[file], map_location="cpu", weights_only=True)
        fields = json.loads(found[_STATE].read_text(encoding="utf-8"))
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UsageError(
            f"{place} is damaged ({error}): Trainer was stopped while it wrote it, or it was changed since",
            kind="incomplete",
            folder=str(place),
        ) from error
    if "rng" in state:
        state["rng"] = from_native_rng(state["rng"])
    state["trainer"] = _counters(fields)
    known = {*_TRAINING.values(), _STATE, *weights}
    state["files"] = {name: path.read_bytes() for name, path in found.items() if name not in known}
    return state


def _check(place: Path, found: Mapping[str, Path], weights: Mapping[str, Path]) -> None:
    several = [name for name in found if name.startswith(("rng_state_", "global_step", "pytorch_model_fsdp"))]
    if several:
        raise UsageError(
            f"{place} is of several processes ({several[0]}), which is not read yet", kind="distributed"
        )
    unsafe = [name for name in weights if name.startswith("pytorch_model")]
    if unsafe:
        raise UsageError(f"{place} holds {unsafe[0]}, a pickle: save as safetensors", kind="pickle")
    missing = [] if _STATE in found else [_STATE]
    if not any(name.endswith(".safetensors") for name in weights):
        missing.append("model.safetensors")
    here = [name for name in _NEEDED if _TRAINING[name] in found]
    if here:  # none at all is what save_only_model leaves
        missing += [_TRAINING[name] for name in _NEEDED if name not in here]
    for name in (each for each in weights if each.endswith(".index.json")):
        shards = set(json.loads(weights[name].read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(shards - found.keys())
    if missing:
        raise UsageError(
            f"{place} is not a complete checkpoint of Trainer: it lacks {', '.join(missing)}",
            kind="incomplete",
            folder=str(place),
        )


def _weights(files: Mapping[str, Path]) -> dict[str, Any]:
    model: dict[str, torch.Tensor] = {}
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    for name, path in files.items():
        if path.suffix != ".safetensors":
            continue
        if path.name.startswith("adapter_model"):
            adapters[name.rpartition("/")[0] or "default"] = load_file(path)
        else:
            model |= load_file(path)
    return {"adapters": adapters} if adapters else {"model": model}


def _counters(fields: dict[str, Any]) -> dict[str, Any]:
    logs = fields.pop("log_history") or []
    exported = (fields.pop("stateful_callbacks", None) or {}).items()
    return {
        "state": fields,
        "log_history": "".join(json.dumps(each) + "\n" for each in logs).encode(),
        "callbacks": [
            [name, each]
            for name, saved in exported
            for each in (saved if isinstance(saved, list) else [saved])
        ],
    }


def _metrics(state: Mapping[str, Any], step: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in state["trainer"]["log_history"].decode().splitlines():
        entry = json.loads(line)
        if entry.get("step") == step:
            found |= {
                name: value
                for name, value in entry.items()
                if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value)
            }
    return found
