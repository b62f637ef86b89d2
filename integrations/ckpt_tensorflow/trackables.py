"""Objects that are made of variables, opened by the names of their attributes: modules, checkpoints, optimizers.

What belongs to an object is TensorFlow's to say: whatever `tf.train.Checkpoint` would save of it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import tensorflow as tf

from ckpt_core.tree import StructureCodec, UnsupportedValueError

__all__ = ["STRUCTURE", "Trackable", "variables_of"]

Trackable = tf.__internal__.tracking.Trackable
"""The base of all that TensorFlow's own checkpoints know. It has no public name."""

_ALGORITHMS = {1: "philox", 2: "threefry"}


def variables_of(value: Any) -> dict[str, Any]:
    """The variables of an object in dicts by attribute: of a `tf.Module`, a `tf.train.Checkpoint`, a generator.

    An object that is reached by several paths stands under the shortest, a variable under each. Raises
    UnsupportedValueError for what holds more than variables, and names the attribute.
    """
    found: dict[str, Any] = {}
    seen = {id(value)}
    waiting: deque[tuple[str, Any, dict[str, Any]]] = deque([("", value, found)])
    reached: set[int] = set()
    while waiting:
        path, owner, into = waiting.popleft()
        for name, child in _children(owner, path).items():
            if isinstance(child, tf.Variable):
                reached.add(id(child))
                into[name] = child
            elif id(child) not in seen:
                seen.add(id(child))
                into[name] = {}
                waiting.append((f"{path}.{name}".removeprefix("."), child, into[name]))
    if isinstance(value, tf.Module):
        hidden = [each.name for each in value.variables if id(each) not in reached]
        if hidden:
            raise UnsupportedValueError(
                f"its variables {', '.join(hidden)} are where TensorFlow's own checkpoints do not find them "
                "either: make them attributes, or members of lists and dicts that are"
            )
    return _without_empty(found)


STRUCTURE = StructureCodec("tensorflow", variables_of)


def _children(owner: Any, path: str) -> dict[str, Any]:
    where = f"{path} is" if path else "it is"
    top = {base.__module__.partition(".")[0] for base in type(owner).__mro__}
    if top & {"keras", "tf_keras"}:
        raise UnsupportedValueError(
            f"{where} of Keras ({type(owner).__name__}): save the list of its .variables, or use ckpt_keras"
        )
    if isinstance(owner, tf.random.Generator):
        algorithm = int(owner.algorithm)
        return {_ALGORITHMS.get(algorithm, str(algorithm)): owner.state}
    if isinstance(owner, tf.compat.v1.train.Optimizer):
        return {str(index): each for index, each in enumerate(owner.variables())}
    if isinstance(owner, tf.data.Dataset) and not path:
        raise UnsupportedValueError("a dataset has no state: save how far you have come, and skip() so far")
    if type(owner)._serialize_to_tensors is not Trackable._serialize_to_tensors:
        kind = type(owner).__name__
        raise UnsupportedValueError(
            f"{where} a {kind}, which TensorFlow saves in a way of its own: of an iterator save how far it has "
            "come, and skip() so far; of a table, export() it"
        )
    try:
        children: dict[str, Any] = tf.train.TrackableView(owner).children(owner)
    except ValueError as error:  # a list from which something was taken away, a dict with keys of other types
        raise UnsupportedValueError(
            f"{path or 'it'} cannot be saved: {str(error).splitlines()[0]}"
        ) from error
    return children


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, item in tree.items():
        if isinstance(item, dict):
            item = _without_empty(item)
            if not item:
                continue
        kept[name] = item
    return kept
