"""The manager of an adapter: a given one, or its own, opened when it is needed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import CheckpointManager, KeepLast, UsageError
from ckpt_core.opening import ManagerOptions, ManagerSource


def test_its_own_is_opened_late_closed_and_opened_again(store_path: Path) -> None:
    source = ManagerSource(store_path, "mine", None, call="Callback", metric="loss", catalog=None, hooks=())
    assert not source.opened
    assert not store_path.exists()
    manager = source.manager
    assert source.manager is manager
    assert (manager.experiment, manager.metric) == ("mine", "loss")
    source.close()
    source.close()
    with pytest.raises(UsageError, match="closed"):
        manager.log({"a": 1.0}, step=1)
    assert source.manager is not manager
    source.close()


def test_one_that_was_given_is_not_closed(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="theirs") as manager:
        source = ManagerSource(None, None, manager, call="Callback", retention=(), mode=None)
        assert source.opened
        assert not source.owned
        assert source.manager is manager
        source.close()
        manager.log({"a": 1.0}, step=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"root": "x"}, "root"),
        ({"experiment": "x"}, "experiment"),
        ({"retention": (KeepLast(1),), "metric": "loss"}, "retention, metric"),
    ],
)
def test_with_a_manager_the_rest_is_its_own_to_say(
    store_path: Path, options: dict[str, Any], named: str
) -> None:
    with CheckpointManager(store_path, experiment="theirs") as manager:
        given = {"root": None, "experiment": None, **options}
        with pytest.raises(UsageError, match=f"manager's to say: {named}"):
            ManagerSource(manager=manager, call="Callback", **given)


@pytest.mark.parametrize("given", [(None, None), ("somewhere", None), (None, "name")])
def test_where_to_save_must_be_said(given: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match=r'say where to save: Callback\("checkpoints", experiment="..."\)'):
        ManagerSource(*given, None, call="Callback")


def test_every_argument_of_a_manager_is_one_of_an_adapter() -> None:
    own = {"root", "experiment", "metric", "mode", "save_policy", "retention", "hooks"}
    assert own | set(ManagerOptions.__annotations__) == set(inspect.signature(CheckpointManager).parameters)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"staged_byte": 1}, r"Callback has no argument staged_byte=, .* did you mean staged_bytes=\?"),
        ({"saves": None}, "Callback has no argument saves=, and CheckpointManager has none$"),
    ],
)
def test_an_argument_that_nobody_has_is_refused(store_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ManagerSource(store_path, "mine", None, call="Callback", **options)
    with CheckpointManager(store_path, experiment="theirs") as manager, pytest.raises(UsageError, match=said):
        ManagerSource(None, None, manager, call="Callback", **options)
