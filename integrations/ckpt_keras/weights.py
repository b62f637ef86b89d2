"""Weights of a checkpoint for a model that need not be the one they came from. By name."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core import CheckpointManager, UsageError
from ckpt_core.fitting import Renames, WeightsReport, fit
from ckpt_keras.codec import assign, dtype_of
from ckpt_keras.state import named_weights

__all__ = ["load_weights"]

_log = logging.getLogger("ckpt_core.keras")


def load_weights(
    model: Any,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
) -> WeightsReport:
    """The weights of a checkpoint into a model, which may have changed since.

    Names are those of layers and of variables in them, `encoder.dense.kernel`. `renames` maps names in the
    checkpoint, or what they begin with, to names in the model, or to None for what to leave out. A number that
    Keras has put behind a name by itself (`dense_7`) need not be the same. With `strict`, StateMismatchError
    names all that does not fit; otherwise it is loaded what fits, and the report tells of the rest. The model
    must be built. `ref` may name another experiment: `pretrained@best`.
    """
    live = named_weights(model)
    if not live:
        raise UsageError("the model has no weights yet: build it, or call it once", kind="unbuilt")
    checkpoint = manager.resolve(ref)
    experiment = checkpoint.experiment
    with manager.open(f"{experiment}@{checkpoint.id}", framework="numpy") as reader:
        order: list[str] = []
        while (path := f"model/order/{len(order)}") in reader:
            order.append(reader[path])
        if not order:
            raise UsageError(
                f"checkpoint {checkpoint.id} of {experiment!r} is not of a Keras training: load what it holds with "
                "manager.open()",
                kind="weights",
            )
        saved = {name: reader.tensor(f"model/weights/{_component(name)}") for name in order}
        shapes = {name: tuple(each.shape) for name, each in live.items()}
        before = {name: tuple(each.shape) for name, each in saved.items()}
        mapping = {**_renumbered(before, shapes, renames or {}), **(renames or {})}
        fitting, report = fit(before, shapes, strict=strict, renames=mapping)
        for target, source in fitting.items():
            variable = live[target]
            assign(variable, saved[source].read().astype(dtype_of(variable), copy=False))
    report = replace(report, checkpoint=checkpoint)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return report


def _component(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _renumbered(
    saved: Mapping[str, tuple[int, ...]], live: Mapping[str, tuple[int, ...]], renames: Renames
) -> dict[str, str]:
    """For names in the checkpoint that the model does not have: those that differ in Keras' numbers only."""
    there = {canonical: name for name, canonical in _canonical(live).items()}
    found = {}
    for name, canonical in _canonical(saved).items():
        target = there.get(canonical)
        touched = any(name.startswith(old) for old in renames)
        if name in live or touched or target is None or target in saved or saved[name] != live[target]:
            continue
        found[name] = target
    return found


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """Names with their numbers counted anew, in each layer from the first that comes."""
    count: Counter[tuple[str, str]] = Counter()
    known: dict[str, str] = {}

    def of(path: str) -> str:
        if path in known:
            return known[path]
        parent, _, own = path.rpartition(".")
        above = of(parent) if parent else ""
        kind = re.sub(r"_\d+$", "", own)
        number = count[above, kind]
        count[above, kind] += 1
        known[path] = ".".join(filter(None, [above, f"{kind}:{number}"]))
        return known[path]

    return {name: of(name) for name in names}
