"""Hostile input, kind by kind: what a folder may hold, how things are called, the catalog, what is set around.

As `hostile`, on a store in a folder. What lies outside of it must stay as it was.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager, CkptError, config
from ckpt_core.catalog import backups
from ckpt_core.format.names import encode_name
from ckpt_core.format.signing import SigningKey, TrustedKeys
from ckpt_core.repository import References, Repository, layout
from ckpt_core.stores import LocalStore, open_store
from ckpt_core.stores.contract import is_key
from contract.hostile import Ground, Kind, Must
from contract.store_case import commit, load, same

__all__ = ["KINDS"]

KINDS: list[Kind] = []
Act = Callable[[], object] | None


def kind(group: str, must: Must) -> Callable[[Callable[[Ground, Path], Act]], None]:
    """Enters a function into the list, under its own name; it gets the folder of the store."""

    def enter(make: Callable[[Ground, Path], Act]) -> None:
        kinds(
            group, must, {make.__name__.replace("_", " "): None}, lambda ground, root, _: make(ground, root)
        )

    return enter


def kinds(group: str, must: Must, named: dict[str, Any], make: Callable[[Ground, Path, Any], Act]) -> None:
    """Enters several, which differ in a value."""
    for name, value in named.items():

        def at(ground: Ground, value: Any = value) -> Act:
            assert isinstance(ground.store, LocalStore)
            return make(ground, ground.store.root, value)

        KINDS.append(Kind(group, name, must, at))


def outside(root: Path) -> Path:
    """A folder beside the store."""
    folder = root.parent / "outside"
    folder.mkdir(exist_ok=True)
    return folder


def moved_out(root: Path, key: str) -> None:
    """Moves something out of the store, and leaves a link to it."""
    target = outside(root) / key.replace("/", "-")
    (root / key).rename(target)
    (root / key).symlink_to(target)


def second_manifest(ground: Ground) -> str:
    return ground.second.key


def second_pack(ground: Ground) -> str:
    return layout.pack_key(ground.pack)


# -- links ---------------------------------------------------------------------------------------------

kinds("link", "refused", {"of a manifest": second_manifest, "of a pack": second_pack},
      lambda ground, root, key: moved_out(root, key(ground)))  # fmt: skip


def folder_moved_out(ground: Ground, root: Path, key: str) -> Act:
    moved_out(root, key)
    return lambda: load(Repository.open(LocalStore(root)), ground.second.key)


kinds("link", "raises", {
    "of store.json": "store.json", "of the folder of manifests": "checkpoints", "of an experiment's manifests": "checkpoints/digits",
    "of the folder of packs": "packs", "of an experiment's packs": "packs/digits",
}, folder_moved_out)  # fmt: skip


@kind("link", "refused")
def in_a_circle(ground: Ground, root: Path) -> None:
    (root / ground.second.key).unlink()
    (root / ground.second.key).symlink_to(root / ground.second.key)


@kind("link", "refused")
def to_a_device_without_an_end(ground: Ground, root: Path) -> None:
    (root / second_pack(ground)).unlink()
    (root / second_pack(ground)).symlink_to("/dev/zero")


@kind("link", "right")
def that_leads_nowhere(ground: Ground, root: Path) -> None:
    for folder in ("refs/digits/tags", "metrics/digits", "signatures/digits", "trash/digits", "leases"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "x.json").symlink_to(root / "nowhere")


@kind("link", "raises")
def of_a_trash_that_is_elsewhere(ground: Ground, root: Path) -> Act:
    (root / "trash").symlink_to(outside(root))

    def forget() -> None:
        try:
            ground.repository.forget(ground.second.key)
        finally:
            assert not list(outside(root).iterdir())

    return forget


@kind("link", "raises")
def of_leases_that_are_elsewhere(ground: Ground, root: Path) -> Act:
    for path in (root / "leases").iterdir():
        path.unlink()
    (root / "leases").rmdir()
    (root / "leases").symlink_to(outside(root))

    def save() -> None:
        try:
            commit(ground.repository, ground.states[1], 3)
        finally:
            assert not list(outside(root).iterdir())

    return save


@kind("link", "right")
def that_looks_like_a_stale_temporary(ground: Ground, root: Path) -> Act:
    kept = outside(root) / "kept"
    kept.write_text("kept")
    (root / "packs" / ".tmp-1").symlink_to(kept)
    (root / "packs" / ".tmp-2").symlink_to(outside(root), target_is_directory=True)

    def sweep() -> bool:
        ground.store.sweep(-1e9)
        return kept.read_text() == "kept"

    return sweep


@kind("link", "right")
def of_the_store_itself(ground: Ground, root: Path) -> None:
    root.rename(outside(root) / "store")
    root.symlink_to(outside(root) / "store")


@kind("link", "right")
def a_second_name_of_the_same_file(ground: Ground, root: Path) -> None:
    os.link(root / second_pack(ground), outside(root) / "pack")
    os.link(root / second_pack(ground), root / "packs/digits/other.safetensors")


@kind("link", "refused")
def another_file_under_a_pack_s_name(ground: Ground, root: Path) -> None:
    (outside(root) / "x").write_bytes(b"\0" * 10_000)
    (root / second_pack(ground)).unlink()
    os.link(outside(root) / "x", root / second_pack(ground))


# -- what is no regular file ---------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    there = os.getcwd()
    os.chdir(path.parent)  # an address has a hundred bytes
    try:
        with closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
    finally:
        os.chdir(there)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:  # that takes a privilege; a pipe must do
        os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


STRANGE = {
    "a named pipe": pipe,
    "a socket": bound,
    "a device": device,
    "a folder": Path.mkdir,
    "a file of a tebibyte": sparse,
}
for what, plant in STRANGE.items():
    for where, key in {"a manifest": second_manifest, "a pack": second_pack}.items():

        def replaced(ground: Ground, root: Path, given: Any) -> None:
            (root / given[0](ground)).unlink()
            given[1](root / given[0](ground))

        kinds("place", "refused", {f"{what} for {where}": (key, plant)}, replaced)

    def planted(ground: Ground, root: Path, plant: Any) -> None:
        name = Path(ground.second.key).name
        for folder in (
            "refs/digits/tags",
            "metrics/digits",
            "signatures/digits",
            "trash/digits",
            "leases",
            "quarantine/packs",
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            plant(root / folder / name)
        plant(root / "mirror.json")
        plant(root / layout.parity_key(ground.pack))

    kinds("place", "right", {f"{what} beside the checkpoints": plant}, planted)

    def of_the_store(ground: Ground, root: Path, plant: Any) -> Act:
        (root / "store.json").unlink()
        plant(root / "store.json")
        return lambda: Repository.open(LocalStore(root))

    kinds("place", "raises", {f"{what} for store.json": plant}, of_the_store)


@kind("place", "right")
def files_where_folders_are(ground: Ground, root: Path) -> None:
    for name in ("trash", "signatures", "quarantine"):
        (root / name).write_bytes(b"x")


@kind("place", "right")
def folders_without_an_end(ground: Ground, root: Path) -> None:
    (root / ("packs" + "/d" * 300)).mkdir(parents=True)


@kind("place", "right")
def names_that_no_text_has(ground: Ground, root: Path) -> None:
    for folder in ("packs/digits", "checkpoints/digits", "leases"):
        for name in (b"\xff\xfe", b"a\nb", b"\x1b[2J", b"x" * 255, b" .json", "é".encode()):
            with open(os.fsencode(root / folder) + b"/" + name, "wb"):
                pass


# -- names ---------------------------------------------------------------------------------------------


def no_name(ground: Ground, root: Path, name: str) -> Act:
    def use() -> None:
        with suppress(CkptError):
            References(ground.store).set_tag("digits", name, ground.second.manifest.id)
            raise AssertionError("it became a tag")
        CheckpointManager(root, experiment=name)

    return use


kinds("name", "raises", {
    "nothing": "", "256 characters": "a" * 256, "a path upwards": "../x", "a path": "a/b", "a backslash": "a\\b", "a NUL": "a\0b",
    "a line break": "a\nb", "an escape": "\x1b[2J", "a mark of direction": "a\u202eb", "half a character": "\ud800",
    "a dot in front": ".git", "a dash in front": "-rf", "blanks around": " a ", "a reference": "a@b", "an invisible one": "a\u200bb",
}, no_name)  # fmt: skip


def names_apart(ground: Ground, root: Path, pair: tuple[str, str]) -> Act:
    def apart() -> bool:
        keys = [
            commit(ground.repository, {"w": np.full(3, n)}, 1, experiment=name).key
            for n, name in enumerate(pair)
        ]
        assert all(map(is_key, keys))
        return [int(load(ground.repository, key)["w"][0]) for key in keys] == [0, 1]

    return apart


kinds("name", "right", {
    "two that differ in case": ("Run", "run"), "two that differ in normal form": ("caf\u00e9", "cafe\u0301"),
    "two that look alike": ("paypal", "p\u0430ypal"), "two that are long and differ at the end": ("x" * 254 + "a", "x" * 254 + "b"),
    "two that are encoded alike": ("a b", "a%20b"), "names of devices": ("CON", "nul"), "255 characters of four bytes": ("\U0001f525" * 255, "\U0001f525" * 254),
}, names_apart)  # fmt: skip


@kind("name", "raises")
def one_that_a_file_system_took_for_another(ground: Ground, root: Path) -> Act:
    """What a file system that does not tell cases apart shows: each one's checkpoints in the other's folder."""
    made = commit(ground.repository, {"w": np.zeros(3)}, 1, experiment="Run")
    key = made.key.replace(encode_name("Run"), "run")
    ground.store.put(key, ground.store.get(made.key))
    return lambda: ground.repository.read(key)


@kind("name", "right")
def keys_of_a_state(ground: Ground, root: Path) -> Act:
    names = (
        "../../etc",
        "/",
        "a\0b",
        "\x1b[2J",
        "",
        "~",
        "__metadata__",
        "a[0:8]",
        "x" * 5000,
        "é\u202e",
        "$x",
        "a\\b",
        "con",
    )
    state = {name: np.full(3, n) for n, name in enumerate(names)}
    return lambda: same(load(ground.repository, commit(ground.repository, state, 3).key), state)


# -- the catalog ---------------------------------------------------------------------------------------


def managed(ground: Ground, root: Path) -> bool:
    """Whether a manager still loads what was saved, and saves."""
    with CheckpointManager(root, experiment="digits") as manager:
        right = same(manager.load("step=2"), ground.states[2])
        manager.begin_attempt(None)
        manager.save(ground.states[1], step=3, wait=True)
        return right and same(manager.load("step=3"), ground.states[1]) and len(manager.checkpoints()) == 3


def bad_catalog(ground: Ground, root: Path, plant: Callable[[Path], object]) -> Act:
    plant(root / "catalog.db")
    return lambda: managed(ground, root)


kinds("catalog", "right", {
    "that is no database": lambda path: path.write_bytes(b"\xde\xad" * 5000), "that is empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\x10\0" + bytes(90)), "that is a folder": Path.mkdir,
    "that is a named pipe": pipe, "that is a device": device,
}, bad_catalog)  # fmt: skip


@kind("catalog", "right")
def that_is_a_link_to_another_s_database(ground: Ground, root: Path) -> Act:
    other = outside(root) / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    (root / "catalog.db").symlink_to(other)
    return lambda: managed(ground, root) and other.read_bytes() == before


@kind("catalog", "right")
def that_is_a_link_to_what_is_not_there(ground: Ground, root: Path) -> Act:
    (root / "catalog.db").symlink_to(outside(root) / "new.db")
    return lambda: managed(ground, root) and not list(outside(root).iterdir())


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def altered_catalog(ground: Ground, root: Path, statements: list[str]) -> Act:
    with CheckpointManager(root, experiment="digits") as manager:
        manager.checkpoints()
    with closing(sqlite3.connect(root / "catalog.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return lambda: managed(ground, root)


kinds("catalog", "right", {
    "a trigger that forbids": ["CREATE TRIGGER x BEFORE INSERT ON checkpoints BEGIN SELECT RAISE(FAIL, 'no'); END"],
    "a trigger that deletes": ["CREATE TRIGGER x AFTER INSERT ON audit_log BEGIN DELETE FROM checkpoints; END"],
    "a view for a table": ["DROP TABLE tags", "CREATE VIEW tags AS SELECT 1 AS id"],
    "a view without an end": ["DROP TABLE tags", f"CREATE VIEW tags AS {ENDLESS} SELECT i AS id FROM n"],
    "tables that are missing": ["DROP TABLE checkpoint_metrics"], "a newer schema": ["UPDATE catalog_version SET version_num = 'f' || hex(randomblob(5))"],
    "values of other types": ["UPDATE checkpoints SET metrics = '{', step = 'x' WHERE step = 1"],
    "names that act on a terminal": ["UPDATE experiments SET name = char(27) || '[2J'"],
    "checkpoints that are not there": ["UPDATE checkpoints SET uid = '" + "0" * 26 + "' WHERE step = 2"],
    "a number of checkpoints beyond all": ["UPDATE checkpoints SET attempt_number = 9223372036854775807"],
}, altered_catalog)  # fmt: skip


def bad_backup(ground: Ground, root: Path, plant: Callable[[Path], object]) -> Act:
    with CheckpointManager(root, experiment="digits") as manager:
        manager.checkpoints()
    (root / "backups").mkdir()
    copy = root / "backups" / "catalog-manual-20260101T000000000000Z.db"
    plant(copy)
    before = (root / "catalog.db").read_bytes()

    def restore() -> None:
        try:
            backups.restore(root / "catalog.db", copy.name)
        finally:
            assert (root / "catalog.db").read_bytes() == before

    return restore


kinds("catalog backup", "raises", {
    "that is no database": lambda path: path.write_bytes(b"\xde\xad" * 5000), "that is a folder": Path.mkdir, "that is a named pipe": pipe,
    "that is a link": lambda path: path.symlink_to("/etc/passwd"),
}, bad_backup)  # fmt: skip


@kind("catalog backup", "raises")
def that_is_a_path(ground: Ground, root: Path) -> Act:
    return lambda: backups.restore(root / "catalog.db", "../store.json")


# -- what is set around --------------------------------------------------------------------------------


@contextmanager
def surroundings(folder: Path, **variables: str) -> Iterator[None]:
    before, here = dict(os.environ), os.getcwd()
    os.environ.update(variables)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def saved_amid(ground: Ground, root: Path, variables: dict[str, str]) -> Act:
    def save() -> bool:
        with surroundings(root.parent, **variables):
            return managed(ground, root) and bool(config.actor())

    return save


kinds("configuration", "right", {
    "a job's number that is no text": {"SLURM_JOB_ID": "\udcff\udc80", "POD_NAME": "\x1b[2J"},
    "a job's name of a megabyte": {"POD_NAME": "x" * 100_000}, "a user's name that acts on a terminal": {"LOGNAME": "\x1b]0;x\x07", "USER": "\n"},
    "a place for nothing": {"TMPDIR": "/nowhere", "HOME": "/nowhere"},
}, saved_amid)  # fmt: skip


def git(ground: Ground, root: Path, plant: Callable[[Path], object]) -> Act:
    plant(root.parent / ".git")

    def told() -> bool:
        with surroundings(root.parent):
            return "git_commit" not in config.provenance()

    return told


def head(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def plant(folder: Path) -> None:
        folder.mkdir()
        make(folder / "HEAD")

    return plant


kinds("configuration", "right", {
    "git's HEAD is a named pipe": head(pipe), "git's HEAD is a folder": head(Path.mkdir), "git's HEAD has no end": head(lambda path: path.symlink_to("/dev/zero")),
    "git's HEAD leads elsewhere": head(lambda path: path.write_text("ref: ../../../../../../etc/passwd")),
    "git's HEAD acts on a terminal": head(lambda path: path.write_text("\x1b[2J" * 20)), "git's folder is a named pipe": pipe,
    "git's folder leads in a circle": lambda path: path.write_text("gitdir: .git/../.git"), "git's HEAD is a tebibyte": head(sparse),
}, git)  # fmt: skip

kinds("configuration", "raises", {
    "a scheme that nobody has": "gopher://x/y", "another machine's folder": "file://host/x", "a folder with a question": "file:///x?y=1",
    "a NUL in a path": "a\0b", "no address at all": "file://",
}, lambda ground, root, place: lambda: open_store(place))  # fmt: skip
kinds("configuration", "raises", {
    "a catalog's address that is none": "nonsense", "a catalog that nobody has": "oracle9://x/y",
}, lambda ground, root, url: lambda: CheckpointManager(root, experiment="digits", catalog=url))  # fmt: skip


def key_file(ground: Ground, root: Path, plant: Callable[[Path], object]) -> Act:
    path = outside(root) / "key"
    plant(path)

    def use() -> None:
        with suppress(CkptError):
            TrustedKeys.load(path)
            raise AssertionError("it was trusted")
        SigningKey.load(path)

    return use


kinds("configuration", "raises", {
    "a key that is a named pipe": pipe, "a key that has no end": lambda path: path.symlink_to("/dev/zero"), "a key that is a folder": Path.mkdir,
    "a key that is not there": lambda path: None, "a key of a tebibyte": sparse,
    "a key that claims to be one": lambda path: path.write_text("-----BEGIN PUBLIC KEY-----\n" * 1000),
}, key_file)  # fmt: skip
