"""The weights of a checkpoint into a pytree that may have changed since: for fine-tuning and for evaluation.

Which of them fit, and under which names, is `ckpt_core.fitting`'s; how they are read is `loading.py`'s. The
exact state of a training, weights and all, is `checkpointer.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_core import CheckpointManager, NotFoundError, UsageError, WeightsReport
from ckpt_core.fitting import Renames, fit
from ckpt_core.tree.nodes import child_path, children, key_component
from ckpt_jax.codec import is_key
from ckpt_jax.loading import Reading, finished, read
from ckpt_jax.pytrees import as_state, fill

__all__ = ["Renames", "WeightsReport", "load_weights", "part_of", "with_weights"]

_log = logging.getLogger("ckpt_core.jax")

_PARTS = ("params", "model")
"""What the weights are called in the states of most people: in a dict, in flax's TrainState."""
_HOMES = (*(f"state/{part}" for part in _PARTS), "state/0", *_PARTS)
T = TypeVar("T")


def load_weights(
    model: T,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
    part: str | None = None,
) -> tuple[T, WeightsReport]:
    """The model with the weights of a checkpoint, and what of them fits. Nothing else is read.

    `model`: any pytree of arrays, on any mesh; its other leaves stay, and so do its random keys. nnx objects
    are updated in place. `renames`: from a name in the checkpoint, or the part of it before a slash, to the
    name in the model; to None for what is to be left out. With `strict`, StateMismatchError names all that
    does not fit. `part`: the path of the weights in the checkpoint; left out, where a JaxCheckpointer has put
    `params` or `model`, or the first of a tuple. Raises NotFoundError and CorruptionError, too.
    """
    return _load(model, "", manager, ref, strict, renames, part)


def with_weights(
    state: T, part: str, manager: CheckpointManager, ref: str, *, strict: bool, renames: Renames | None
) -> T:
    """The state of a training whose `part` has the weights of another one's checkpoint. See `load_weights`.

    They stand under the same path there, or where `load_weights` looks for them.
    """
    return _load(state, part, manager, ref, strict, renames, None)[0]


def _load(
    tree: T,
    below: str,
    manager: CheckpointManager,
    ref: str,
    strict: bool,
    renames: Renames | None,
    part: str | None,
) -> tuple[T, WeightsReport]:
    homes = (part,) if part is not None else (f"state/{below}", *_HOMES) if below else _HOMES
    found, report = read(manager, ref, lambda reading: _fitted(reading, homes, tree, below, strict, renames))
    report = replace(report, checkpoint=manager.loaded)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return found, report


def part_of(state: Any) -> str:
    """Where in the state of a training its weights are. Raises UsageError where that is not plain to see."""
    plain = as_state(state)
    if isinstance(plain, (list, tuple)) and plain:
        return "0"
    for part in _PARTS:
        if isinstance(plain, dict) and part in plain:
            return part
    known = ", ".join(map(str, plain)) if isinstance(plain, dict) else type(state).__name__
    raise UsageError(
        f'which part of the state are the weights? it has {known}: say so with weights="..."', kind="part"
    )


def _fitted(
    reading: Reading, homes: Sequence[str], tree: Any, below: str, strict: bool, renames: Renames | None
) -> tuple[Any, WeightsReport]:
    saved = dict(_saved(_home(reading, homes), reading))
    plain = as_state(tree)
    inside = f"{below}/" if below else ""
    live = {
        path[len(below) :].removeprefix("/"): (path, array)
        for path, array in _live(plain)
        if f"{path}/".startswith(inside)
    }
    fitting, report = fit(
        {name: reading.spec(index).shape for name, index in saved.items()},
        {name: array.shape for name, (_, array) in live.items()},
        strict=strict,
        renames=renames,
    )
    arrays = reading.arrays([(saved[source], live[name][1]) for name, source in fitting.items()])
    found = {live[name][0]: array for name, array in zip(fitting, arrays, strict=True)}

    def leaf(path: str | None, like: Any, _: Any) -> Any:
        return finished(like, found[path or ""]) if (path or "") in found else like

    return fill(tree, plain, leaf), report


def _home(reading: Reading, homes: Sequence[str]) -> Any:
    for home in homes:
        try:
            return reading.node(home)
        except NotFoundError:
            if len(homes) == 1:
                raise
    raise UsageError(
        f"the checkpoint has no weights at {', '.join(homes)}: say where they are with part=", kind="part"
    )


def _saved(node: Any, reading: Reading, path: str | None = None) -> Iterator[tuple[str, int]]:
    """The weights below a node of a checkpoint's tree: their names, and the indices of their tensors."""
    if _has(node, "$tensor"):
        yield path or "", node["$tensor"]
        return
    below = [(name, item) for name, item in children(node, path) or () if not _is_stored_key(item)]
    is_stream = len(below) < len(children(node, path) or ())
    for name, item in below:
        if not (is_stream and _has(item, "$tensor") and reading.spec(item["$tensor"]).dtype[0] in "IU"):
            yield from _saved(item, reading, name)


def _live(node: Any, path: str | None = None) -> Iterator[tuple[str, Any]]:
    """The weights of a plain state: their names and the arrays.

    Neither random keys are weights nor whole numbers beside one, which are its count, as in nnx's streams.
    """
    if isinstance(node, dict):
        below = [(key_component(key), item) for key, item in node.items()]
    elif isinstance(node, (list, tuple)):
        names = getattr(node, "_fields", range(len(node)))
        below = [(str(name), item) for name, item in zip(names, node, strict=True)]
    else:
        if isinstance(node, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)) and not is_key(node):
            yield path or "", node
        return
    is_stream = any(is_key(item) for _, item in below)
    for name, item in below:
        if not (is_stream and hasattr(item, "dtype") and jnp.issubdtype(item.dtype, np.integer)):
            yield from _live(item, child_path(path, name))


def _is_stored_key(node: Any) -> bool:
    return _has(node, "$object") and node["$object"].get("codec") == "jax.key"


def _has(node: Any, tag: str) -> bool:
    return isinstance(node, dict) and tag in node
