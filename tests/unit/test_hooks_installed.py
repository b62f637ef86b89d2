"""Hooks by name: found through entry points, made of options that come from a file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import pytest

from ckpt_core import BaseHook, CheckpointManager, HookEvent, HookPriority, UsageError, hook
from ckpt_core.hooks import installed_hooks, make_hook


class Limit(BaseHook):
    """What a third party installs: a class with options of its own."""

    events = (HookEvent.AFTER_SAVE,)

    def __init__(
        self,
        *,
        most: float,
        kinds: list[str] | None = None,
        how: Literal["log", "veto"] = "log",
        folder: Path = Path("."),
        judge: type | None = None,
    ) -> None:
        super().__init__()
        if most < 0:
            raise UsageError("most must not be negative", argument="most")
        self.most, self.kinds, self.how, self.folder = most, kinds, how, folder

    def execute(self, context):
        return None


@hook(HookEvent.NEW_BEST)
def cheer(context):
    return None


def no_hook():
    return "a text"


def broken(**options):
    raise RuntimeError("no licence")


NUMBER = 3


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with hooks, as pip would leave it."""
    folder = tmp_path / "site"
    (folder / "odd_hooks-1.2.dist-info").mkdir(parents=True)
    (folder / "odd_hooks-1.2.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-hooks\nVersion: 1.2\n"
    )
    lines = [f"{name} = odd_hooks:{attribute}" for name, attribute in {
        "limit": "Limit", "cheer": "cheer", "no-hook": "no_hook", "broken": "broken", "number": "NUMBER", "gone": "gone"
    }.items()]  # fmt: skip
    (folder / "odd_hooks-1.2.dist-info/entry_points.txt").write_text("\n".join(["[ckpt_core.hooks]", *lines]))
    (folder / "odd_hooks.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_what_is_installed_is_found_by_name(installed):
    found = installed_hooks()
    assert found["limit"].value == "odd_hooks:Limit"
    assert list(found) == sorted(found)


def test_a_class_is_made_with_options_of_the_types_that_it_declares(installed):
    made = make_hook("limit", {"most": 3, "kinds": ["a"], "how": "veto", "folder": "logs"})
    assert (made.most, made.kinds, made.how, made.folder) == (3.0, ["a"], "veto", Path("logs"))
    assert made.name == "limit"


def test_what_can_be_said_of_every_hook_can_be_said_of_these(installed):
    made = make_hook(
        "limit",
        {
            "most": 1,
            "name": "mine",
            "events": ["step_end"],
            "priority": "low",
            "timeout": 5,
            "on_error": "raise",
        },
    )
    assert (made.name, made.events, made.priority) == ("mine", (HookEvent.STEP_END,), HookPriority.LOW)
    assert (made.timeout, made.on_error) == (5.0, "raise")


def test_a_function_under_hook_is_everybodys_and_stays_as_it_is(installed):
    made = make_hook("cheer", {"priority": "critical"})
    import odd_hooks

    assert made.priority is HookPriority.CRITICAL
    assert odd_hooks.cheer.priority is HookPriority.NORMAL


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("limmit", {}, "did you mean 'limit'"),
        ("limit", {}, "option 'most': it has to be given"),
        ("limit", {"most": "1"}, "option 'most': '1' does not do: Expected `float`, got `str`"),
        ("limit", {"most": 1, "how": "shout"}, "option 'how'"),
        ("limit", {"most": 1, "limit": 2}, "its options are most, kinds, how, folder, judge, name, events"),
        ("limit", {"most": 1, "judge": {}}, "option 'judge'"),
        ("limit", {"most": -1}, "hook 'limit': most must not be negative"),
        ("limit", {"most": 1, "priority": "urgent"}, "choose one of critical, high"),
        ("limit", {"most": 1, "priority": 2}, "choose one of critical, high"),
        ("limit", {"most": 1, "events": "never"}, "the events of HookEvent are"),
        ("limit", {"most": 1, "events": 3}, "Expected `array`"),
        ("limit", {"most": 1, "events": []}, "a hook needs an event"),
        ("limit", {"most": 1, "timeout": "soon"}, "option 'timeout'"),
        ("limit", {"most": 1, "name": 3}, "option 'name'"),
        ("limit", {"most": 1, "on_error": "cry"}, "option 'on_error'"),
        ("cheer", {"loud": True}, "it has no options but name, events"),
        ("no-hook", {}, "gives str, which is no BaseHook"),
        ("broken", {}, "RuntimeError('no licence')"),
        ("number", {}, "neither a hook nor a function"),
        ("gone", {}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(installed, name, options, said):
    with pytest.raises(UsageError) as caught:
        make_hook(name, options)
    assert said in str(caught.value)
    assert caught.value.kind == "hook"


class Attached(BaseHook):
    events = (HookEvent.BEFORE_SAVE,)

    def __init__(self):
        super().__init__()
        self.owners = []
        self.seen = None

    def attach(self, owner):
        self.owners.append(owner)

    def execute(self, context):
        self.seen = {path: array.copy() for path, array in context.tensors.items()}
        self.frozen = not any(array.flags.writeable for array in context.tensors.values())


def test_a_hook_is_told_its_manager_and_sees_what_is_written(tmp_path):
    import numpy as np

    first, second = Attached(), Attached()
    with CheckpointManager(tmp_path / "store", experiment="e", hooks=[first]) as manager:
        manager.hooks.register_hook(second)
        manager.save({"w": np.arange(3.0), "z": np.empty((0, 2)), "n": 1}, step=1).result()
        assert first.owners == second.owners == [manager]
    assert set(first.seen) == {"w", "z"}
    assert first.seen["w"].tolist() == [0.0, 1.0, 2.0]
    assert first.frozen


def test_a_hook_that_cannot_serve_keeps_the_manager_from_being_made(tmp_path):
    class Refusing(Attached):
        def attach(self, owner):
            raise UsageError("not this store")

    with pytest.raises(UsageError, match="not this store"):
        CheckpointManager(tmp_path / "store", experiment="e", hooks=[Refusing()])
    CheckpointManager(tmp_path / "store", experiment="e").close()


def test_a_background_hook_has_no_tensors(tmp_path):
    import numpy as np

    seen = []
    late = hook(HookEvent.BEFORE_SAVE, priority=HookPriority.BACKGROUND)(
        lambda context: seen.append(context.tensors)
    )
    with CheckpointManager(tmp_path / "store", experiment="e", hooks=[late]) as manager:
        manager.save({"w": np.arange(3.0)}, step=1, wait=True)
    assert seen == [None]


def test_a_hook_is_told_that_it_is_over_after_the_last_event_and_once(tmp_path):
    told = []

    class Ends(BaseHook):
        events = (HookEvent.AFTER_SAVE,)
        priority = HookPriority.BACKGROUND

        def execute(self, context):
            told.append("saved")

        def detach(self):
            told.append("over")

    with CheckpointManager(tmp_path, experiment="x", hooks=[Ends()]) as manager:
        manager.save({"w": 1}, step=1)
    manager.close()
    manager.hooks.close()
    assert told == ["saved", "over"]


def test_where_one_cannot_be_attached_those_before_it_are_told_that_it_is_over(tmp_path):
    class Notes(BaseHook):
        events = (HookEvent.AFTER_SAVE,)

        def __init__(self, name, told):
            super().__init__(name=name)
            self.told = told

        def attach(self, owner):
            if self.name == "second":
                raise UsageError("not here")

        def execute(self, context): ...

        def detach(self):
            self.told.append(self.name)

    told = []
    hooks = [Notes(name, told) for name in ("first", "second", "third")]
    for _ in range(2):  # nothing of the manager that there never was is in the next one's way
        with pytest.raises(UsageError, match="not here"):
            CheckpointManager(tmp_path, experiment="x", hooks=hooks, exclusive=True)
    assert told == ["first", "first"]


def test_a_hook_that_does_not_end_holds_nobody_up(tmp_path, caplog):
    class Hangs(BaseHook):
        events = (HookEvent.TRAIN_END,)
        timeout = 0.05
        goes_on = threading.Event()

        def execute(self, context):
            return None

        def detach(self):
            assert self.goes_on.wait(30)

    class Raises(Hangs):
        def detach(self):
            raise OSError("the server is away")

    with CheckpointManager(tmp_path, experiment="x", hooks=[Hangs(), Raises()]):
        pass
    Hangs.goes_on.set()
    assert "hook Hangs did not end within its time limit of 0.05 s" in caplog.text
    assert "hook Raises did not end well: OSError('the server is away')" in caplog.text
