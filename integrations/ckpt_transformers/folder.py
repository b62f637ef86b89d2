"""A checkpoint as the folder that Trainer itself would have written, for all that reads such folders.

Reading them is `ingestion.py`'s. Both know what the random states of Trainer's files look like.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ckpt_core import CheckpointManager, UsageError
from ckpt_torch.rng import read_generator, write_generator
from ckpt_transformers.state import log_history
from ckpt_transformers.weights import is_peft

__all__ = ["from_native_rng", "is_weights", "materialize", "small_files", "to_native_rng"]

_OBJECTS = ("optimizer", "scheduler", "scaler")


def materialize(
    manager: CheckpointManager, ref: str, folder: str | os.PathLike[str], *, model: Any = None
) -> Path:
    """Writes a checkpoint as a folder for `trainer.train(resume_from_checkpoint=...)`, `from_pretrained`, `pipeline`.

    `model`: one of the class that was trained, needed only where transformers does not have that class. The
    folder appears complete or not at all. Raises UsageError where it exists, NotFoundError, CorruptionError.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already: choose another folder, or remove it", kind="exists")
    state = manager.load(ref)
    if "files" not in state:
        raise UsageError(
            f"{ref} was not saved by Trainer: there is no model's configuration in it", kind="foreign"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as around:
        made = Path(around) / target.name
        made.mkdir()
        _write_files(made, state["files"])
        if state.get("adapters"):
            _write_adapters(made, state["adapters"])
        else:
            _write_model(made, state["model"], model)
            _write_files(made, state["files"])  # what the model wrote about itself is not as it was
        _write_training(made, state)
        if target.exists():
            target.rmdir()
        made.rename(target)
    return target


def small_files(trainer: Any, args: Any) -> dict[str, bytes]:
    """What Trainer writes beside the weights: configuration, tokenizer, the arguments. By path in the folder."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer._save(folder, state_dict=None if is_peft(model) else {})
        torch.save(args, os.path.join(folder, "training_args.bin"))
        found = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not is_weights(path))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def is_weights(path: Path) -> bool:
    """Whether a file of such a folder holds weights, or says which file does."""
    return path.name.endswith((".safetensors", ".safetensors.index.json")) or path.name.startswith(
        "pytorch_model"
    )


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"the checkpoint names a file outside of its folder: {name!r}", kind="path")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _write_adapters(folder: Path, adapters: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for name, weights in adapters.items():
        place = folder if name == "default" else folder / name
        _save_tensors(place / "adapter_model.safetensors", weights)


def _write_model(folder: Path, weights: Mapping[str, torch.Tensor], model: Any) -> None:
    model = model if model is not None else _empty_model(folder)
    if hasattr(model, "save_pretrained"):
        with _quiet():
            model.save_pretrained(folder, state_dict=dict(weights))
        for path in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
            path.chmod((folder / "config.json").stat().st_mode)
    else:
        _save_tensors(folder / "model.safetensors", weights)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that transformers draws for each file."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _empty_model(folder: Path) -> Any:
    """The model of a configuration, without weights; None where there is none."""
    if not (folder / "config.json").exists():
        return None
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["?"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise UsageError(
            f"transformers has no {name}: give materialize a model of that class, model=...", kind="class"
        )
    with torch.device("meta"):
        return kind(config)


def _save_tensors(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        tied = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        kept[name] = tensor.clone() if tied else tensor.contiguous()  # the format has no tied tensors
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)


def _write_training(folder: Path, state: Mapping[str, Any]) -> None:
    for name in _OBJECTS:
        if name in state:
            torch.save(state[name], folder / f"{name}.pt")
    if "rng" in state:
        torch.save(to_native_rng(state["rng"]), folder / "rng_state.pth")
    _native_state(state).save_to_json(str(folder / "trainer_state.json"))


def _native_state(state: Mapping[str, Any]) -> Any:
    from transformers import TrainerState

    counters = state["trainer"]
    known = {each.name for each in dataclasses.fields(TrainerState)}
    fields = {name: value for name, value in counters["state"].items() if name in known}
    exported: dict[str, Any] = {}
    for name, saved in counters["callbacks"]:
        if name in exported:  # Trainer keeps a list where there are several of a class
            exported[name] = [
                *(exported[name] if isinstance(exported[name], list) else [exported[name]]),
                saved,
            ]
        else:
            exported[name] = saved
    best = fields.get("best_model_checkpoint")
    fields |= {
        "log_history": log_history(counters),
        "stateful_callbacks": exported,
        "total_flos": fields["total_flos"] + state.get("sums", {}).get("flos", 0),
        "best_model_checkpoint": best if best is not None and os.path.isdir(best) else None,
    }
    return TrainerState(**fields)


def to_native_rng(rng: Mapping[str, Any]) -> dict[str, Any]:
    """Random states as Trainer's `rng_state.pth` has them."""
    python, legacy, cpu = random.Random(), np.random.RandomState(), torch.Generator()
    for generator, name in ((python, "python"), (legacy, "numpy"), (cpu, "torch")):
        write_generator(generator, rng[name])
    native: dict[str, Any] = {
        "python": python.getstate(),
        "numpy": legacy.get_state(),
        "cpu": cpu.get_state(),
    }
    if "cuda" in rng:
        native["cuda"] = torch.frombuffer(bytearray(rng["cuda"][0]), dtype=torch.uint8)
    return native


def from_native_rng(native: Mapping[str, Any]) -> dict[str, Any]:
    """And back, as `ckpt_torch.rng` has them."""
    python, legacy, cpu = random.Random(), np.random.RandomState(), torch.Generator()
    version, words, gauss = native["python"]
    python.setstate((version, tuple(words), gauss))
    legacy.set_state(native["numpy"])
    cpu.set_state(native["cpu"])
    rng: dict[str, Any] = {
        "python": read_generator(python), "numpy": read_generator(legacy), "torch": read_generator(cpu),
    }  # fmt: skip
    if "cuda" in native:
        states = native["cuda"] if isinstance(native["cuda"], (list, tuple)) else [native["cuda"]]
        rng["cuda"] = [each.cpu().numpy().tobytes() for each in states]
    return rng
