"""The state: taking it apart into a tree and tensors, and putting it together again."""

from ckpt_core.tree.builtin import register_builtin
from ckpt_core.tree.codecs import (
    CodecRegistry,
    ObjectCodec,
    TensorCodec,
    UnsupportedValueError,
    register_codec,
    registry,
)
from ckpt_core.tree.flatten import Flat, Leaf, flatten
from ckpt_core.tree.nodes import check_tree, plain_value, tensor_paths, walk
from ckpt_core.tree.rebuild import rebuild, rebuild_like, wanted_tensors
from ckpt_core.tree.selection import Selection

__all__ = [
    "CodecRegistry",
    "Flat",
    "Leaf",
    "ObjectCodec",
    "Selection",
    "TensorCodec",
    "UnsupportedValueError",
    "check_tree",
    "flatten",
    "plain_value",
    "rebuild",
    "rebuild_like",
    "register_builtin",
    "register_codec",
    "registry",
    "tensor_paths",
    "walk",
    "wanted_tensors",
]

register_builtin(registry)
