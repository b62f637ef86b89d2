"""The leaves of a stored state as people and JSON know them, read from its manifest alone.

No framework is imported for it, and nothing of a state is run: objects whose codec is not one of the
engine's own stay the plain containers that the codec made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.format.documents import Manifest
from ckpt_core.model import TensorSpec
from ckpt_core.tree import registry, tensor_paths
from ckpt_core.tree.nodes import children, plain_value, tag_of

__all__ = ["branch", "named_tree", "plain", "plain_leaves", "tensor_specs"]

_OWN_CODECS = frozenset(
    {
        "numpy.scalar",
        "set",
        "frozenset",
        "range",
        "slice",
        "datetime",
        "date",
        "time",
        "timedelta",
        "uuid",
        "decimal",
        "fraction",
        "path",
    }
)


def tensor_specs(manifest: Manifest) -> dict[str, tuple[int, TensorSpec]]:
    """Index and spec of the tensor at each path, in the order of the state; tied ones under every path."""
    return {
        path: (index, TensorSpec(manifest.tensors[index].dtype, manifest.tensors[index].shape))
        for path, index in tensor_paths(manifest.state).items()
    }


def plain_leaves(tree: Any, path: str | None = None) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf that is no tensor."""
    decoded = _decoded(tree)
    if decoded is not None:
        yield path or "", decoded
        return
    below = children(tree, path)
    if below is None:
        if not _is_tensor(tree):
            yield path or "", plain_value(tree)
        return
    for child, node in below:
        yield from plain_leaves(node, child)


def branch(tree: Any, path: str) -> Any:
    """The node at a path of a tree. Raises KeyError where there is none."""
    waiting: list[tuple[str | None, Any]] = [(None, tree)]
    while waiting:
        place, node = waiting.pop()
        if place == path:
            return node
        waiting += [item for item in children(node, place) or () if item[0] is None or _leads(item[0], path)]
    raise KeyError(path)


def plain(tree: Any, manifest: Manifest) -> Any:
    """A node as plain containers with string keys; in place of a tensor stands `<tensor F32 [64, 64]>`."""
    decoded = _decoded(tree)
    if decoded is not None:
        return decoded
    if _is_tensor(tree):
        record = manifest.tensors[tree["$tensor"]]
        return f"<tensor {record.dtype} {list(record.shape)}>"
    below = children(tree, None)
    if below is None:
        return plain_value(tree)
    tag = tag_of(tree) if isinstance(tree, dict) else None
    if tag == "$object":
        return plain(tree[tag]["value"], manifest)
    items = [plain(node, manifest) for _, node in below]
    if isinstance(tree, list) or tag == "$tuple":
        return items
    if tag == "$namedtuple":
        return dict(zip(tree[tag]["fields"], items, strict=True))
    if tag == "$backend":
        tree = tree[tag]["files"]
    keys = [plain_value(key) for key, _ in tree[tag]] if tag == "$dict" else list(tree)
    return {str(key): item for key, item in zip(keys, items, strict=True)}


def named_tree(tree: Any, manifest: Manifest) -> Any:
    """The tree of the format, lossless, with tensors named by path: `{"$tensor": "model/weight"}`."""
    first: dict[int, str] = {}
    for path, index in tensor_paths(manifest.state).items():
        first.setdefault(index, path)

    def named(node: Any) -> Any:
        if isinstance(node, list):
            return [named(item) for item in node]
        if _is_tensor(node):
            return {"$tensor": first[node["$tensor"]]}
        if isinstance(node, dict):
            return {key: named(item) for key, item in node.items()}
        return node

    return named(tree)


def _leads(place: str, path: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _is_tensor(node: Any) -> bool:
    return isinstance(node, dict) and len(node) == 1 and "$tensor" in node


def _decoded(node: Any) -> Any:
    """The object of a node that one of the engine's own codecs wrote; None for every other node."""
    if not isinstance(node, dict) or tag_of(node) != "$object" or node["$object"]["codec"] not in _OWN_CODECS:
        return None
    body = node["$object"]
    try:
        value = _containers(body["value"])
        return registry.object_named(body["codec"]).decode(value)
    except (FormatError, ValueError, TypeError, KeyError, LookupError, ArithmeticError):
        return None


def _containers(node: Any) -> Any:
    below = children(node, None)
    if below is None:
        return plain_value(node)
    items = [_containers(item) for _, item in below]
    if isinstance(node, dict) and tag_of(node) is None:
        return dict(zip(node, items, strict=True))
    return tuple(items) if isinstance(node, dict) and "$tuple" in node else items
