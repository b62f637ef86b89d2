"""`ckpt.toml`: where it is looked for, what it may say, and that a bad one is refused with file, key and remedy."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager, EverySteps, HookEvent, HookPriority, UsageError
from ckpt_core.hooks.configured import find_hook_file, read_hook_file

PLUGIN = """
from ckpt_core import BaseHook, HookEvent

class Tell(BaseHook):
    events = (HookEvent.AFTER_SAVE,)
    said = []

    def __init__(self, *, word: str, most: float = 1.0) -> None:
        super().__init__()
        self.word = word

    def execute(self, context):
        self.said.append((self.word, context.step))
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A distribution with a hook, as pip would leave it, and a working directory without a file."""
    folder = tmp_path / "site"
    (folder / "acme-1.2.dist-info").mkdir(parents=True)
    (folder / "acme-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (folder / "acme-1.2.dist-info/entry_points.txt").write_text(
        "[ckpt_core.hooks]\ntell = acme_plugin:Tell\n"
    )
    (folder / "acme_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("CKPT_CONFIG", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import acme_plugin

    acme_plugin.Tell.said.clear()
    return acme_plugin.Tell


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def file_with(tmp_path: Path, word: str) -> Path:
    return write(tmp_path / "ckpt.toml", f'[[hooks]]\nuse = "tell"\nword = "{word}"\n')


def save(root: Path, **options) -> None:
    with CheckpointManager(root, experiment="e", **options) as manager:
        manager.save({"w": np.ones(3)}, step=1, wait=True)


def test_the_hooks_of_a_file_run(tmp_path, installed):
    path = write(
        tmp_path / "my.toml",
        '[[hooks]]\nuse = "tell"\nword = "a"\npriority = "low"\nname = "second"\n\n'
        '[[hooks]]\nuse = "tell"\nword = "b"\n\n[[hooks]]\nuse = "tell"\nword = "c"\nenabled = false\n',
    )
    with CheckpointManager(
        tmp_path / "s", experiment="e", hooks_file=path, save_policy=EverySteps(2)
    ) as manager:
        manager.save({"w": np.ones(3)}, step=1, wait=True)
        found = [(each.name, each.source, each.priority) for each in manager.hooks.hooks()]
    assert found == [
        ("tell", "ckpt.toml", HookPriority.NORMAL),
        ("save-policy", "built in", HookPriority.NORMAL),
        ("second", "ckpt.toml", HookPriority.LOW),
    ]
    assert installed.said == [("b", 1), ("a", 1)]


def test_where_it_is_looked_for(tmp_path, installed, monkeypatch):
    store = tmp_path / "there" / "store"
    store.parent.mkdir()
    save(store)
    assert installed.said == []
    file_with(store.parent, "beside")
    save(store)
    file_with(tmp_path / "here", "here")
    save(store)
    monkeypatch.setenv(
        "CKPT_CONFIG", str(write(tmp_path / "named.toml", '[[hooks]]\nuse = "tell"\nword = "named"\n'))
    )
    save(store)
    save(store, hooks_file=write(tmp_path / "given.toml", '[[hooks]]\nuse = "tell"\nword = "given"\n'))
    save(store, hooks_file=False)
    assert [word for word, _ in installed.said] == ["beside", "here", "named", "given"]


def test_what_lies_in_a_store_is_not_looked_at(tmp_path, installed):
    save(tmp_path / "s")
    file_with(tmp_path / "s", "inside")
    save(tmp_path / "s")
    assert installed.said == []


def test_nothing_is_a_way_to_say_none(tmp_path, installed, monkeypatch):
    file_with(tmp_path / "here", "here")
    monkeypatch.setenv("CKPT_CONFIG", "/dev/null")
    save(tmp_path / "s")
    assert installed.said == []


def test_a_name_without_a_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CKPT_CONFIG", "nowhere.toml")
    with pytest.raises(UsageError, match="CKPT_CONFIG is 'nowhere.toml', and there is no such file"):
        save(tmp_path / "s")
    monkeypatch.delenv("CKPT_CONFIG")
    with pytest.raises(UsageError, match="other.toml: it cannot be read"):
        save(tmp_path / "s", hooks_file="other.toml")
    with pytest.raises(UsageError, match="hooks_file=3"):
        save(tmp_path / "s", hooks_file=3)
    assert not (tmp_path / "s").exists()


def test_a_file_that_anybody_can_change_is_not_believed(tmp_path, monkeypatch):
    path = file_with(tmp_path / "here", "theirs")
    path.chmod(0o666)
    with pytest.raises(UsageError, match=r"can be changed by every user.*CKPT_CONFIG=/dev/null"):
        find_hook_file(None)
    monkeypatch.setenv("CKPT_CONFIG", str(path))  # whoever names it trusts it
    assert find_hook_file(None).path == path


def test_a_file_that_a_group_can_change_is_not_believed(tmp_path, monkeypatch):
    path = file_with(tmp_path / "here", "theirs")
    path.chmod(0o664)
    there = list(path.stat())
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result(there))
    there[stat.ST_GID] = there[stat.ST_UID]  # as of a group that was made for the user
    assert find_hook_file(None).path == path
    there[stat.ST_GID] += 1
    with pytest.raises(UsageError, match=r"can be changed by a group.*chmod go-w"):
        find_hook_file(None)


def test_the_file_that_is_read_is_the_one_that_was_checked(tmp_path, installed, monkeypatch):
    path = file_with(tmp_path / "here", "mine")
    theirs = file_with(tmp_path, "theirs")
    theirs.chmod(0o666)
    opened = os.open

    def swapped(name, *arguments, **more):
        if name == path:
            theirs.replace(path)
        return opened(name, *arguments, **more)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(UsageError, match="can be changed by every user"):
        save(tmp_path / "s")
    assert installed.said == []


def test_a_file_of_somebody_else_is_not_believed(tmp_path, monkeypatch):
    file_with(tmp_path / "here", "theirs")
    owner = (tmp_path / "here").stat().st_uid
    if owner == 0:
        os.chown(tmp_path / "here" / "ckpt.toml", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        find_hook_file(None)


def test_an_empty_file_names_no_hooks(tmp_path):
    assert read_hook_file(write(tmp_path / "ckpt.toml", "# nothing yet\n")).hooks == ()


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("hooks = 3", "hooks", "it must be a list of tables, each headed [[hooks]]"),
        ("hooks = [1]", "hooks[1]", "it must be a table"),
        ("[hooks]\nuse = 'tell'", "hooks", "it must be a list of tables"),
        ("[[hook]]\nuse = 'tell'", "'hook'", "a file may have [[hooks]] and nothing else"),
        ("[[hooks]]\nname = 'x'", "hooks[1].use", "it must name a hook that is installed"),
        ("[[hooks]]\nuse = ''", "hooks[1].use", "it must name a hook"),
        ("[[hooks]]\nuse = 'os:system'", "hooks[1].use", "no hook 'os:system' is installed"),
        ("[[hooks]]\nuse = 'tel'\nword = 'x'", "hooks[1].use", "did you mean 'tell'?"),
        ("[[hooks]]\nuse = 'tell'\nenabled = 1", "hooks[1].enabled", "write true or false"),
        ("[[hooks]]\nuse = 'tell'", "hooks[1].'word'", "it has to be given"),
        ("[[hooks]]\nuse = 'tell'\nword = 3", "hooks[1].'word'", "Expected `str`, got `int`"),
        ("[[hooks]]\nuse = 'tell'\nword = 'x'\nmost = 'a'", "hooks[1].'most'", "Expected `float`"),
        ("[[hooks]]\nuse = 'tell'\nword = 'x'\nleast = 1", "hooks[1].'least'", "its options are word, most, name"),
        ("[[hooks]]\nuse = 'tell'\nword = 'x'\npriority = 'top'", "hooks[1].'priority'", "critical, high, normal"),
        ("[[hooks]]\nuse = 'tell'\nword = 'x'\nevents = ['x']", "hooks[1].'events'", "the events of HookEvent are"),
        ("[[hooks]]\nuse = 'tell'\nword = 'x'\nmost = 1979-05-27", "hooks[1].'most'", "Expected `float`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_file_key_and_what_may(tmp_path, text, key, said):
    path = write(tmp_path / "ckpt.toml", text)
    with pytest.raises(UsageError) as caught:
        read_hook_file(path).make_all()
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert said in str(caught.value)
    assert caught.value.kind == "config"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[[hooks]\n", "it is not TOML: "),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"x = " + b"[" * 5000, "nested too deep"),
        (b"x = " + b"9" * 5000, "it is not TOML: "),
        (b"#" * 70_000, "larger than 64 KiB"),
        (
            b"[[hooks]]\nuse='tell'\nword = " + b"[" * 30 + b"]" * 30,
            "hooks[1].'word': it is nested more than 16 deep",
        ),
    ],
)
def test_hostile_bytes_are_refused(tmp_path, data, said):
    path = tmp_path / "ckpt.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_hook_file(path)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "ckpt.toml")
    with pytest.raises(UsageError, match="ckpt.toml: it is no file"):
        read_hook_file(tmp_path / "ckpt.toml")


def test_a_bad_file_keeps_a_manager_from_being_made_and_leaves_nothing_behind(tmp_path):
    write(tmp_path / "here" / "ckpt.toml", "hooks = 3")
    with pytest.raises(UsageError, match="list of tables"):
        save(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_hook_of_the_file_reacts_to_what_it_is_told(tmp_path, installed):
    path = write(
        tmp_path / "e.toml", '[[hooks]]\nuse = "tell"\nword = "x"\nevents = ["before_save", "new_best"]\n'
    )
    (hook,) = read_hook_file(path).make_all()
    assert hook.events == (HookEvent.BEFORE_SAVE, HookEvent.NEW_BEST)
