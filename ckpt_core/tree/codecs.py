"""Which Python objects may stand in a state, and how each becomes bytes or plain values.

Frameworks register themselves on first sight of one of their objects, through the entry-point group
`ckpt_core.codecs` (named after the framework's top module), so that the core imports none of them.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from ckpt_core.errors import FormatError, MissingExtraError
from ckpt_core.model import Buffer, TensorSpec

__all__ = [
    "CodecRegistry",
    "ObjectCodec",
    "StructureCodec",
    "TensorCodec",
    "UnsupportedValueError",
    "register_codec",
    "registry",
]

_GROUP = "ckpt_core.codecs"
_EXTRAS = ("jax", "keras", "tensorflow", "torch")
_log = logging.getLogger("ckpt_core.tree")


class UnsupportedValueError(Exception):
    """Raised by a codec for a value of its type that it cannot store; the caller adds the path."""


class TensorCodec(Protocol):
    """How the arrays of one framework become bytes and come back.

    All bytes are in C order and in the byte order that the spec's dtype names (little endian, but for
    numpy's big-endian type strings), as numpy `uint8` arrays of one dimension in host memory.

    A codec may also have `hold(value) -> Buffer | None`: the bytes of `value` without a copy, if they stay as
    they are for as long as the buffer lives, whatever is done to `value`. Then a save does not copy them.
    """

    name: str

    def spec(self, value: Any) -> TensorSpec:
        """Element type and shape of `value`. Raises UnsupportedValueError, saying why."""

    def identity(self, value: Any) -> Hashable:
        """Equal for two values that are the same memory seen the same way (tied tensors)."""

    def view(self, value: Any) -> Buffer | None:
        """The bytes of `value` without a copy; None where they are not contiguous in host memory."""

    def copy_into(self, value: Any, out: Buffer) -> None:
        """Copies the bytes of `value`, wherever it lives, to `out`, which has exactly their size."""

    def wrap(self, spec: TensorSpec, data: Buffer) -> Any:
        """A host tensor over `data`, which it may keep: nobody else writes to it. Raises
        UnsupportedValueError where the framework has no such dtype or cannot hold the shape."""

    def destination(self, like: Any, spec: TensorSpec) -> Buffer | None:
        """The writable bytes of `like`, if `spec` can be read straight into them; else None."""

    def assign(self, like: Any, value: Any) -> Any:
        """`value` (from `wrap`) in the dtype and on the device of `like`; in place where it can be.
        Raises UnsupportedValueError where the values do not fit in that dtype."""


@dataclass(frozen=True, slots=True)
class ObjectCodec:
    """How one type that is not a tensor becomes a state of plain values and tensors, and comes back."""

    name: str
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class StructureCodec:
    """How an object opens up into what it is made of: `members` gives a dict, of dicts and lists and tensors.

    It is saved as that dict. In `like=` its members are filled, each in place, and it stays the object it is; a
    codec for what cannot be filled in place has no use here. Raises UnsupportedValueError.
    """

    name: str
    members: Callable[[Any], Mapping[str, Any]]


class CodecRegistry:
    """The codecs known to this process. Thread-safe; later registrations of a type or name win."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tensors: dict[type, TensorCodec] = {}
        self._tensor_names: dict[str, TensorCodec] = {}
        self._objects: dict[type, ObjectCodec] = {}
        self._object_names: dict[str, ObjectCodec] = {}
        self._structures: dict[type, StructureCodec] = {}
        self._found: dict[type, TensorCodec | ObjectCodec] = {}
        self._pending: dict[str, EntryPoint] | None = None

    def add_tensor(self, codec: TensorCodec, *types: type) -> None:
        """Store values of `types` (and of their subclasses) as tensors through `codec`."""
        with self._lock:
            self._tensor_names[codec.name] = codec
            self._found.clear()
            for kind in types:
                self._tensors[kind] = codec

    def add_object(self, codec: ObjectCodec) -> None:
        """Store values of exactly `codec.type` through `codec`."""
        with self._lock:
            self._objects[codec.type] = codec
            self._found.clear()
            self._object_names[codec.name] = codec

    def add_structure(self, codec: StructureCodec, *types: type) -> None:
        """Open values of `types` (and of their subclasses, where no other codec knows them) by `codec`."""
        with self._lock:
            for kind in types:
                self._structures[kind] = codec

    def structure(self, kind: type) -> StructureCodec | None:
        """The codec that opens values of type `kind`; None where another codec, or none, is for them."""
        if self.find(kind) is not None:
            return None
        with self._lock:
            return next((self._structures[base] for base in kind.__mro__ if base in self._structures), None)

    def find(self, kind: type) -> TensorCodec | ObjectCodec | None:
        """The codec for values of type `kind`, asking installed packages if none is known yet."""
        found = self._found.get(kind) or self._lookup(kind)
        if found is None and self._discover({base.__module__.partition(".")[0] for base in kind.__mro__}):
            found = self._lookup(kind)
        return found

    def tensor_named(self, name: str) -> TensorCodec:
        """The tensor codec that a manifest or a caller names. Raises MissingExtraError."""
        if name not in self._tensor_names:
            self._discover({name})
        try:
            return self._tensor_names[name]
        except KeyError:
            command = f"pip install 'ckpt-core[{name}]'" if name in _EXTRAS else "install its package"
            raise MissingExtraError(
                f'no codec for tensors of {name!r} is here: {command}, or load them with framework="numpy"',
                framework=name,
            ) from None

    def object_named(self, name: str) -> ObjectCodec:
        """The object codec that a manifest names. Raises FormatError."""
        if name not in self._object_names:
            self._discover({name.partition(".")[0]})
        try:
            return self._object_names[name]
        except KeyError:
            raise FormatError(
                f"this checkpoint holds an object of codec {name!r}, which is not registered here; "
                "call ckpt_core.register_codec for it before loading",
                kind="codec",
                codec=name,
            ) from None

    def _lookup(self, kind: type) -> TensorCodec | ObjectCodec | None:
        with self._lock:
            known = self._tensors
            found = self._objects.get(kind) or next(
                (known[base] for base in kind.__mro__ if base in known), None
            )
            if found is not None:
                self._found[kind] = found
            return found

    def _discover(self, names: set[str]) -> bool:
        with self._lock:
            if self._pending is None:
                self._pending = {entry.name: entry for entry in entry_points(group=_GROUP)}
            wanted = [self._pending.pop(name) for name in sorted(names & self._pending.keys())]
            for entry in wanted:
                try:
                    entry.load()(self)
                except Exception as error:  # as if it had no codec; a framework that is absent is no surprise
                    level = logging.WARNING if entry.name in sys.modules else logging.DEBUG
                    _log.log(level, "the codecs of %s cannot be used: %s", entry.name, error)
            return bool(wanted)


registry = CodecRegistry()
"""The codecs that managers use unless told otherwise."""


def register_codec(
    kind: type,
    *,
    name: str,
    encode: Callable[[Any], Mapping[str, Any] | list[Any] | tuple[Any, ...] | Any],
    decode: Callable[[Any], Any],
) -> None:
    """Teach the engine to save objects of exactly type `kind`.

    `encode(value)` returns anything a state may hold (dicts, lists, numbers, tensors, other registered
    types); `decode` gets it back, in plain containers, and makes the object. It must not trust what it
    gets: the bytes come from a file. `name` is written to disk: keep it stable and unlike others', as
    `"mypackage.Vocabulary"`. Takes precedence over what the engine does with dicts, lists and tuples.
    """
    registry.add_object(ObjectCodec(name, kind, encode, decode))
