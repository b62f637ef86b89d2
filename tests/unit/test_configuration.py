"""Configurations as plain data, and questions about them. What each condition means stands in the catalog's suite."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import types
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest

from ckpt_core import UsageError
from ckpt_core.configuration import conditions, plain_configuration, values_of


class Mode(enum.Enum):
    FAST = 1


@dataclasses.dataclass
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


@dataclasses.dataclass
class Run:
    optimizer: Optimizer
    epochs: int = 3


PLAIN = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "epochs": 3}


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        Run(Optimizer()),
        argparse.Namespace(optimizer=Optimizer(), epochs=3),
        types.SimpleNamespace(optimizer={"lr": np.float64(0.1), "betas": (0.9, 0.999)}, epochs=np.int64(3)),
        types.MappingProxyType({"optimizer": Optimizer(), "epochs": np.array(3)}),
    ],
)
def test_whatever_names_its_values_is_a_configuration(config: Any) -> None:
    found = plain_configuration(config)
    assert found == PLAIN
    assert all(type(found[key]) is type(PLAIN[key]) for key in PLAIN)


def test_what_json_lacks_is_there_by_its_text() -> None:
    found = plain_configuration(
        {1: float("nan"), "path": PurePosixPath("a/b"), "mode": Mode.FAST, "big": 2**70, "set": {"b", "a"},
         "type": np.float32, "nul": "a\0b", "half": "\ud800", "bytes": b"x"}
    )  # fmt: skip
    assert found == {
        "1": "nan", "path": "a/b", "mode": "Mode.FAST", "big": str(2**70), "set": ["a", "b"],
        "type": "<class 'numpy.float32'>", "nul": "a\\x00b", "half": "\\ud800", "bytes": "b'x'",
    }  # fmt: skip


@pytest.mark.parametrize("config", [3, "lr=0.1", [1, 2], 0.5])
def test_values_without_names_are_refused(config: Any) -> None:
    with pytest.raises(UsageError, match="no names"):
        plain_configuration(config)


def test_a_configuration_that_holds_itself_is_refused() -> None:
    config: dict[str, Any] = {}
    config["self"] = config
    with pytest.raises(UsageError, match="holds itself"):
        plain_configuration(config)


def test_none_is_none() -> None:
    assert plain_configuration(None) is None


def test_values_by_their_paths() -> None:
    found = {
        path: value.plain for path, value in values_of({"a": {"b": [1, {"c": "x"}]}, "d": True, "e": None})
    }
    assert found == {"a.b.0": 1.0, "a.b.1.c": "x", "d": True, "e": None}


@pytest.mark.parametrize("text", ["", "lr", "=3", ">= 3", "lr ~ 3", 3])
def test_what_is_no_condition_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="no condition"):
        conditions([text])


@pytest.mark.parametrize("value", [[1], {"a": 1}, "x" * 256])
def test_what_nothing_can_be_found_by_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="by which a configuration could be found"):
        conditions({"lr": value})


def test_a_configuration_that_nobody_could_read_back_is_refused() -> None:
    assert plain_configuration({"text": "x" * 1_000_000}) is not None
    with pytest.raises(UsageError, match="4 MiB"):
        plain_configuration({"weights": [0.123456789] * 500_000})
