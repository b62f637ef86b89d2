"""The weights of a checkpoint into an object made of variables, which may have changed since.

Which of them fit is `ckpt_core.fitting`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import tensorflow as tf

from ckpt_core import CheckpointManager
from ckpt_core.fitting import Renames, WeightsReport, fit
from ckpt_tensorflow.trackables import variables_of

__all__ = ["WeightsReport", "load_weights"]

_log = logging.getLogger("ckpt_core.tensorflow")


def load_weights(
    model: Any,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
    part: str = "model",
) -> WeightsReport:
    """The variables of a checkpoint into a `tf.Module` or the like, which may have changed since.

    `part`: their path in the checkpoint; nothing else is read. `renames`: from a name in the checkpoint, or the part
    of it before a slash, to the name in the model; to None for what is to be left out. With `strict`,
    StateMismatchError names all that does not fit, and nothing is loaded; without, what fits is loaded and the
    report says what does not. Raises NotFoundError and CorruptionError, too.
    """
    saved: Any = manager.load(ref, include=part, framework="numpy")
    for key in part.split("/"):
        saved = saved[int(key)] if isinstance(saved, (list, tuple)) else saved[key]
    sources = dict(_leaves(saved))
    live = dict(_leaves(variables_of(model)))
    fitting, report = fit(
        {name: getattr(each, "shape", None) for name, each in sources.items()},
        {name: each.shape.as_list() for name, each in live.items()},
        strict=strict,
        renames=renames,
    )
    for target, source in fitting.items():
        live[target].assign(tf.cast(sources[source], live[target].dtype))
    report = replace(report, checkpoint=manager.loaded)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return report


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _leaves(item, f"{path}/{key}".removeprefix("/"))
    elif isinstance(tree, (list, tuple)):
        for index, item in enumerate(tree):
            yield from _leaves(item, f"{path}/{index}".removeprefix("/"))
    else:
        yield path, tree
