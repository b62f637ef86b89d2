"""Every error carries its facts, fits a builtin, and survives copying, pickling and being raised across threads."""

from __future__ import annotations

import copy
import pickle

import pytest

from ckpt_core import errors
from ckpt_core.errors import CkptError

CLASSES = [getattr(errors, name) for name in errors.__all__]
BUILTINS = {
    "CatalogError": RuntimeError, "CkptError": Exception, "CorruptionError": ValueError, "FormatError": ValueError,
    "HookError": RuntimeError, "MissingExtraError": ImportError, "NotFoundError": LookupError,
    "ObjectExistsError": FileExistsError, "ObjectNotFoundError": FileNotFoundError,
    "SaveFailedError": RuntimeError, "SaveNotDoneError": RuntimeError, "StateError": TypeError, "StateMismatchError": ValueError,
    "SignatureError": ValueError, "StoreError": OSError, "UsageError": ValueError,
}  # fmt: skip


def test_every_class_is_public() -> None:
    defined = {
        n for n, each in vars(errors).items() if isinstance(each, type) and issubclass(each, CkptError)
    }
    assert defined == set(errors.__all__) == BUILTINS.keys()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_carries_its_facts(kind: type[CkptError]) -> None:
    error = kind("do this next", kind="cause", step=3, key="a/k", paths=("x",))
    assert isinstance(error, BUILTINS[kind.__name__])
    assert str(error) == error.message == "do this next"
    assert (error.kind, error.step, error.key, error.paths) == ("cause", 3, "a/k", ("x",))
    assert error.facts == {"step": 3, "key": "a/k", "paths": ("x",)}
    assert kind("x").kind == kind.default_kind
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = error.other
    assert kind.__doc__


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])  # noqa: S301
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_can_be_copied(kind: type[CkptError], again: object) -> None:
    error = again(kind("do this next", kind="cause", step=3))  # type: ignore[operator]
    assert type(error) is kind
    assert (str(error), error.kind, error.step) == ("do this next", "cause", 3)
