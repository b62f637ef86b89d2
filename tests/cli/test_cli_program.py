"""The command as a whole: help, settings, errors and exit codes, third-party commands."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_core import errors
from ckpt_core.cli import exit_codes
from ckpt_core.cli.program import COMMANDS, program
from ckpt_core.config import version_of
from ckpt_core.format.signing import new_key
from cli.calls import Answer, Call, damage

# A harmless call of every command, and the member that its data must have.
CALLS = {
    "ls": ((), "checkpoints"),
    "experiments": ((), "experiments"),
    "metrics": (("digits",), "metrics"),
    "show": (("digits@latest",), "id"),
    "log": ((), "experiments"),
    "diff": (("digits@step=400", "digits@step=500"), "tensors"),
    "cat": (("digits@latest", "config/lr"), "value"),
    "restore": (("digits@latest", "out"), "target"),
    "export": (("digits@latest", "out.npz"), "format"),
    "import": (("there.npz", "imported"), "checkpoint"),
    "copy": (("../store", "copied"), "checkpoints"),
    "tag": ((), "tags"),
    "pin": (("digits@latest",), "checkpoints"),
    "unpin": (("digits@latest",), "checkpoints"),
    "forget": (("--keep-last", "1", "--dry-run"), "decisions"),
    "prune": (("--dry-run",), "plan"),
    "verify": ((), "ok"),
    "stats": ((), "stored_bytes"),
    "doctor": ((), "findings"),
    "reindex": ((), "checkpoints"),
    "scrub": ((), "left"),
    "repair": ((), "healed"),
    "parity": ((), "packs"),
    "mirror": (("off",), "url"),
    "undelete": ((), "can_be_brought_back"),
    "audit": ((), "entries"),
    "hooks": ((), "hooks"),
    "catalog": (("list",), "backups"),
    "keys": (("new", "new.pem"), "private"),
    "sign": (("digits@latest", "--key", "key.pem"), "signed"),
    "completion": (("bash",), "script"),
}
WITHOUT_END = {"serve"}  # tested where its server can be: tests/integrations/web


def place(command: str) -> dict[str, None]:
    """Where the command finds its store: as --store says, unless it takes two by itself."""
    return {"at": None} if command == "copy" else {}


def test_the_list_of_calls_is_whole() -> None:
    assert CALLS.keys() | WITHOUT_END == COMMANDS.keys()


@pytest.mark.parametrize("command", CALLS)
def test_every_command_answers_with_one_document(command: str, ckpt: Call) -> None:
    arguments, member = CALLS[command]
    answer = ckpt(command, *arguments, "--json", **place(command))
    assert answer.code == 0, answer
    assert answer.out.count("\n") == 1
    assert answer.document.keys() == {"version", "command", "data"}
    assert answer.document["command"] == command
    assert member in answer.data


@pytest.mark.parametrize("command", CALLS)
def test_every_command_answers_people(command: str, ckpt: Call) -> None:
    answer = ckpt(command, *CALLS[command][0], **place(command))
    assert answer.code == 0, answer
    assert answer.out.strip()
    assert "\x1b" not in answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_and_the_shared_options(command: str, ckpt: Call) -> None:
    answer = ckpt(command, "--help", at=None)
    assert answer.code == 0
    assert "Examples:" in answer.out
    assert f"ckpt {command}" in answer.out.partition("Examples:")[2]
    for option in ("--store", "--catalog", "--json", "-q, --quiet", "--debug"):
        assert option in answer.out


@pytest.fixture(autouse=True)
def _what_is_read(_no_settings: None) -> None:
    """Something to import, and a key to sign with."""
    np.savez("there.npz", w=np.ones(3))
    new_key("key.pem", None)


@pytest.mark.parametrize("command", sorted(CALLS.keys() - {"completion", "copy", "import", "keys"}))
def test_every_command_says_that_there_is_no_store(command: str, ckpt: Call, tmp_path: Path) -> None:
    answer = ckpt(command, *CALLS[command][0], "--json", at=tmp_path / "nothing")
    assert answer.code == 10
    assert answer.error["kind"] == "store"
    assert not (tmp_path / "nothing").exists()


def test_help_lists_every_command_with_a_whole_sentence(ckpt: Call) -> None:
    answer = ckpt("--help", at=None)
    assert answer.code == 0
    listed = answer.out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(COMMANDS)
    assert "..." not in listed


def test_version(ckpt: Call) -> None:
    assert ckpt("--version", at=None).out == f"ckpt {version_of('ckpt-core')}\n"


# -- settings -------------------------------------------------------------------------------------


def test_the_store_may_be_named_before_the_command(store: Path) -> None:
    before = CliRunner().invoke(program, ["--store", str(store), "--json", "experiments"])
    behind = CliRunner().invoke(program, ["experiments", "--json", "--store", str(store)])
    assert before.exit_code == behind.exit_code == 0
    assert before.stdout == behind.stdout


def test_the_store_comes_from_the_environment(
    ckpt: Call, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_STORE", str(store))
    assert ckpt("experiments", "-q", at=None).out == "digits\nmnist\n"
    monkeypatch.setenv("CKPT_STORE", str(store / "nowhere"))
    assert ckpt("experiments", "-q", at=store).out == "digits\nmnist\n"


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_the_store_is_found_where_it_usually_is(place: str, ckpt: Call, store: Path) -> None:
    assert ckpt("ls", at=None).code == 10
    target = Path(place)
    if place != ".":
        store.rename(target)
    else:
        for path in store.iterdir():
            path.rename(target / path.name)
    assert ckpt("experiments", "-q", at=None).out == "digits\nmnist\n"


def test_a_url_is_a_store_too(ckpt: Call, store: Path) -> None:
    assert ckpt("experiments", "-q", at=store.as_uri()).code == 0


def test_another_catalog_is_filled_and_used(ckpt: Call, store: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "other.db"
    answer = ckpt("ls", "--json", "--catalog", f"sqlite:///{catalog}")
    assert len(answer.data["checkpoints"]) == 10
    with closing(sqlite3.connect(catalog)) as database:
        assert database.execute("select count(*) from checkpoints").fetchone() == (10,)


def test_the_catalog_comes_from_the_environment(
    ckpt: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_CATALOG", f"sqlite:///{tmp_path / 'named.db'}")
    assert ckpt("ls").code == 0
    assert (tmp_path / "named.db").exists()


def test_without_a_catalog_the_store_answers(ckpt: Call, store: Path) -> None:
    (store / "catalog.db").write_bytes(b"this is no database" * 1000)
    for suffix in ("-wal", "-shm"):
        (store / f"catalog.db{suffix}").unlink(missing_ok=True)
    answer = ckpt("experiments", "-q")
    assert (answer.code, answer.out) == (0, "digits\nmnist\n")
    answer = ckpt("ls", "-q")
    assert answer.code == 0
    assert len(answer.out.split()) == 10
    assert "warning: " in ckpt("ls").err


# -- errors ---------------------------------------------------------------------------------------

MEANINGS = [
    (errors.UsageError("x"), 2),
    (errors.StateMismatchError("x", kind="include"), 2),
    (errors.StateMismatchError("x"), 1),
    (errors.CorruptionError("x"), 4),
    (errors.NotFoundError("x", kind="store"), 10),
    (errors.NotFoundError("x"), 1),
    (errors.StoreError("x", kind="not-a-folder"), 10),
    (errors.StoreError("x", kind="full"), 1),
    (errors.CatalogError("x", kind="locked"), 11),
    (errors.CatalogError("x"), 1),
    (errors.FormatError("x"), 1),
    (errors.MissingExtraError("x"), 1),
]


@pytest.mark.parametrize(("error", "code"), MEANINGS, ids=lambda value: getattr(value, "kind", str(value)))
def test_each_error_has_its_exit_code(error: errors.CkptError, code: int) -> None:
    assert exit_codes.code_of(error) == code


def failing(ckpt: Call, *arguments: str | Path, at: Path | str | None) -> tuple[Answer, Answer]:
    return ckpt(*arguments, at=at), ckpt(*arguments, "--json", at=at)


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "says"),
    [
        (("ls", "--nonsense"), 2, "usage", "No such option"),
        (("nonsense",), 2, "usage", "No such command"),
        (("show", "digits@step=abc"), 2, "reference", "step=N"),
        (("show", "nothing@latest"), 1, "experiment", "nothing"),
        (("show", "digits@step=999"), 1, "checkpoint", "nearest"),
        (("show", "mnist@best"), 2, "metric", "--metric"),
        (("show", "latest"), 2, "reference", "which experiment"),
        (("restore", "digits@latest", "x", "--include", "typo/*"), 2, "include", "typo"),
        (("cat", "digits@latest", "model/nothing"), 1, "path", "no leaf"),
        (("tag", "digits@latest", "latest"), 2, "name", "latest"),
        (("tag", "--delete", "nothing"), 1, "tag", "no tag"),
        (("forget",), 2, "usage", "--keep-last"),
    ],
)
def test_an_error_is_one_line_and_one_document(
    arguments: tuple[str, ...], code: int, kind: str, says: str, ckpt: Call, store: Path
) -> None:
    at = None if arguments[0] == "nonsense" else store
    line, document = failing(ckpt, *arguments, at=at)
    assert (line.code, line.out) == (code, "")
    assert line.err.startswith("error: ")
    assert line.err.count("\n") == 1
    assert says in line.err
    assert "Traceback" not in line.err
    assert (document.code, document.err) == (code, "")
    assert (document.error["kind"], document.error["exit_code"]) == (kind, code)
    assert says in document.error["message"]


def test_an_error_carries_its_facts(ckpt: Call) -> None:
    error = ckpt("show", "digits@step=999", "--json").error
    assert error["class"] == "NotFoundError"
    assert error["facts"]["step"] == 999


def test_debug_shows_the_traceback(ckpt: Call) -> None:
    answer = ckpt("show", "digits@step=999", "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "error: no checkpoint of step 999" in answer.err


def test_damage_is_code_4(ckpt: Call, store: Path) -> None:
    damage(store)
    assert ckpt("verify").code == 4
    (store / "store.json").write_text("{}")
    answer = ckpt("ls")
    assert (answer.code, answer.err.count("\n")) == (4, 1)


def test_a_file_is_no_store(ckpt: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = ckpt("ls", at=tmp_path / "file")
    assert answer.code == 10
    assert "is a file" in answer.err


def test_a_locked_catalog_is_code_11(ckpt: Call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the patience is another: half a minute is too long for a test.
    monkeypatch.setattr("ckpt_core.pipeline.index._TIMEOUT", 0.1)
    with closing(sqlite3.connect(store / "catalog.db")) as other:
        other.execute("begin immediate")
        answer = ckpt("reindex", "--json")
    assert answer.code == 11
    assert answer.error["kind"] == "locked"


def test_what_cannot_be_read_is_code_3(ckpt: Call, store: Path) -> None:
    manifest = sorted(store.glob("checkpoints/mnist/*.json"))[0]
    manifest.write_bytes(manifest.read_bytes()[:-30])
    answer = ckpt("reindex", "--json")
    assert answer.code == 3
    assert answer.data["unreadable"] == [manifest.relative_to(store).as_posix()]
    assert "warning: " in answer.err


def test_names_in_errors_are_escaped(ckpt: Call) -> None:
    answer = ckpt("show", "dig\x1b[31mits\u202e@latest")
    assert answer.code == 1
    assert answer.err.isprintable() or answer.err.rstrip("\n").isprintable()
    answer = ckpt("show", "dig\x1b[31mits\u202e@latest", "--json")
    assert answer.out.isascii()
    assert "\x1b" not in answer.out


# -- third-party commands -------------------------------------------------------------------------

PLUGIN = """
import click
from ckpt_core.cli import command

@command("count", examples=[("ckpt count", "")])
@click.option("--twice", is_flag=True)
def count(call, twice):
    "Count checkpoints."
    n = len(call.workspace.index.checkpoints()) * (2 if twice else 1)
    call.answer("count", {"count": n}, lambda output: output.line(f"{n} checkpoints"))
    return 3

@click.command("plain")
@click.pass_obj
def plain(call):
    "A click command without ours."
    click.echo(call.workspace.repository.document.format)

@click.command("ls")
def ls():
    "Not to be reached."
    raise AssertionError

@command("fails")
def fails(call):
    "Fails in two lines."
    from ckpt_core.errors import CkptError
    raise CkptError("first\\nsecond", kind="odd", path=b"x")

@command("crashes")
def crashes(call):
    "Has a fault."
    raise ZeroDivisionError("of its own")

not_a_command = 1
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plugin"
    (folder / "ckptplugin-1.0.dist-info").mkdir(parents=True)
    (folder / "ckptplugin-1.0.dist-info" / "METADATA").write_text("Name: ckptplugin\nVersion: 1.0\n")
    (folder / "ckptplugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[ckpt_core.commands]\ncount = ckptplugin:count\nplain = ckptplugin:plain\nls = ckptplugin:ls\n"
        "fails = ckptplugin:fails\ncrashes = ckptplugin:crashes\n"
        "absent = ckptplugin_that_is_not_there:x\nwrong = ckptplugin:not_a_command\n"
    )
    (folder / "ckptplugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("plugin")
def test_an_installed_command_is_one_of_ours(ckpt: Call, store: Path) -> None:
    assert "count" in ckpt("--help", at=None).out
    answer = ckpt("count", "--twice")
    assert (answer.code, answer.out) == (3, "20 checkpoints\n")
    assert ckpt("count", "--json").data == {"count": 10}
    plain = CliRunner().invoke(program, ["--store", str(store), "plain"])
    assert (plain.exit_code, plain.stdout) == (0, "1\n")


@pytest.mark.usefixtures("plugin")
def test_an_installed_command_cannot_take_the_place_of_ours(ckpt: Call) -> None:
    assert len(ckpt("ls", "-q").out.split()) == 10


@pytest.mark.usefixtures("plugin")
def test_an_error_of_two_lines_is_one_line(ckpt: Call) -> None:
    assert ckpt("fails").err == "error: first second\n"
    assert ckpt("fails", "--json").error["facts"] == {"path": {"$bytes": "eA=="}}


@pytest.mark.usefixtures("plugin")
def test_a_fault_of_the_program_is_told_as_one(ckpt: Call) -> None:
    answer = ckpt("crashes")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "this should not happen: ZeroDivisionError: of its own" in answer.err
    assert "Traceback" in ckpt("crashes", "--debug").err
    assert ckpt("crashes", "--json").error["kind"] == "internal"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["absent", "wrong"])
def test_a_broken_installed_command_breaks_nothing_else(name: str, ckpt: Call) -> None:
    assert ckpt("--help", at=None).code == 0
    answer = ckpt(name, at=None)
    assert answer.code == 1
    assert "cannot be loaded" in answer.err
