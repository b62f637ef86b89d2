"""The state: taking it apart into a tree and tensors, and putting it together again."""

from ckpt_core.tree.builtin import register_builtin
from ckpt_core.tree.codecs import (
    CodecRegistry,
    ObjectCodec,
    StructureCodec,
    TensorCodec,
    UnsupportedValueError,
    register_codec,
    registry,
)
from ckpt_core.tree.flatten import Flat, Leaf, borrow, flatten
from ckpt_core.tree.nodes import (
    BackendFiles,
    backend_files,
    backend_tree,
    check_tree,
    is_file_name,
    plain_value,
    tensor_paths,
    tensors_in,
    walk,
)
from ckpt_core.tree.rebuild import rebuild, rebuild_like, wanted_tensors
from ckpt_core.tree.selection import Selection
from ckpt_core.tree.structures import closed, opened

__all__ = [
    "BackendFiles",
    "CodecRegistry",
    "Flat",
    "Leaf",
    "ObjectCodec",
    "Selection",
    "StructureCodec",
    "TensorCodec",
    "UnsupportedValueError",
    "backend_files",
    "backend_tree",
    "borrow",
    "check_tree",
    "closed",
    "flatten",
    "is_file_name",
    "opened",
    "plain_value",
    "rebuild",
    "rebuild_like",
    "register_builtin",
    "register_codec",
    "registry",
    "tensor_paths",
    "tensors_in",
    "walk",
    "wanted_tensors",
]

register_builtin(registry)
