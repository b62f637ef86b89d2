"""Checkpoints for Lightning: `CheckpointCallback`, `CheckpointIO` and `load_weights`, for both of its packages.

`lightning.pytorch` and `pytorch_lightning` have classes of their own. The names here become a class of the
one that the program uses, or of both; `for_package` gives those of one package.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_lightning.callback import CallbackBehaviour
from ckpt_lightning.io import ReferenceReader
from ckpt_lightning.last import teach_last
from ckpt_lightning.packages import PACKAGES, bases, present
from ckpt_torch.weights import WeightsReport, load_weights

__all__ = [
    "CheckpointCallback",
    "CheckpointIO",
    "Classes",
    "WeightsReport",
    "for_package",
    "load_weights",
]


class Classes(NamedTuple):
    """The classes for one package of Lightning."""

    CheckpointCallback: type[CallbackBehaviour]
    CheckpointIO: type[ReferenceReader]


def for_package(name: str) -> Classes:
    """The classes for `"lightning.pytorch"` or `"pytorch_lightning"`. Raises UsageError, MissingExtraError."""
    return Classes(_callback_class((name,)), _io_class((name,)))


@cache
def _callback_class(packages: tuple[str, ...]) -> type[CallbackBehaviour]:
    theirs = bases("Checkpoint", packages)
    for package in packages:
        teach_last(package, CallbackBehaviour)
    # Pickled by the packages it is for: strategies that spawn processes send them the callback.
    reduced = {"__reduce__": lambda self: (_blank_callback, (packages,), vars(self))}
    made: type[CallbackBehaviour] = _joined("CheckpointCallback", CallbackBehaviour, theirs, reduced)
    return made


def _blank_callback(packages: tuple[str, ...]) -> Any:
    made = _callback_class(packages)
    return made.__new__(made)


@cache
def _io_class(packages: tuple[str, ...]) -> type[ReferenceReader]:
    made: type[ReferenceReader] = _joined("CheckpointIO", ReferenceReader, bases("CheckpointIO", packages))
    return made


def _joined(
    name: str, behaviour: type, theirs: tuple[type, ...], more: Mapping[str, Any] | None = None
) -> Any:
    # The class's name is the key of the callback's state: the same whatever package it is for.
    members = {"__doc__": behaviour.__doc__, "__module__": __name__, **(more or {})}
    return type(theirs[0])(name, (behaviour, *theirs), members)


def io_class_for(there: type) -> type[ReferenceReader]:
    """The CheckpointIO class for the package that the class of another one belongs to."""
    for package in PACKAGES:
        root = PACKAGES[package]["CheckpointIO"].partition(".")[0]
        if any(base.__module__.partition(".")[0] == root for base in there.__mro__):
            return _io_class((package,))
    return _io_class(present())


class _ChosenOnUse(type):
    """A class that is made when it is first used: by then the program has imported its Lightning."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        make = _callback_class if cls.__name__ == "CheckpointCallback" else _io_class
        return make(present())(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(
            subclass, CallbackBehaviour if cls.__name__ == "CheckpointCallback" else ReferenceReader
        )


if TYPE_CHECKING:
    CheckpointCallback = CallbackBehaviour
    CheckpointIO = ReferenceReader
else:

    class CheckpointCallback(metaclass=_ChosenOnUse):
        __doc__ = CallbackBehaviour.__doc__

    class CheckpointIO(metaclass=_ChosenOnUse):
        __doc__ = ReferenceReader.__doc__
