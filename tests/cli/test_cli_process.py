"""The command as a process: what only a shell, a pipe, a signal or a terminal can show."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.cli.program import COMMANDS
from cli.calls import Call, damage

Process = Callable[..., subprocess.CompletedProcess[str]]
FRAMEWORKS = {"torch", "jax", "tensorflow", "keras", "lightning", "pytorch_lightning", "transformers"}
IMPORTED = (
    "import sys, json; from ckpt_core.cli.program import program; program.main({!r}, standalone_mode=False)"
)


def environment(store: Path, **more: str) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("CKPT_", "_CKPT", "NO_COLOR"))
    }
    return kept | {"CKPT_STORE": str(store), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"} | more


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ls",), 0),
        (("diff", "digits@step=400", "digits@step=500", "--exit-code"), 1),
        (("show", "digits@nothing"), 1),
        (("ls", "--nonsense"), 2),
        ((), 2),
        (("ls", "--store", "nowhere"), 10),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, process: Process) -> None:
    done = process(*arguments)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr


def test_exit_code_of_damage(process: Process, store: Path) -> None:
    damage(store)
    done = process("verify", "--json")
    assert done.returncode == 4
    assert not json.loads(done.stdout)["data"]["ok"]


def test_the_console_script_is_the_same(store: Path) -> None:
    script = Path(sys.executable).with_name("ckpt")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run(
        [script, "ls", "-q"], env=environment(store), capture_output=True, text=True, check=True
    )
    assert len(done.stdout.split()) == 10


# -- what a start costs ---------------------------------------------------------------------------


def imported(arguments: list[str], store: Path) -> set[str]:
    ask = IMPORTED.format(arguments) + "; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=environment(store),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_help_imports_next_to_nothing(store: Path) -> None:
    modules = imported(["--help"], store)
    assert "click" in modules
    assert not modules & (FRAMEWORKS | {"sqlalchemy", "alembic", "rich", "numpy", "msgspec"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["show", "digits@latest"],
        ["cat", "digits@latest", "model/fc.weight"],
        ["diff", "digits@latest", "digits@warm"],
        ["verify"],
        ["stats"],
        ["doctor"],
        ["restore", "digits@latest", "out"],
    ],
)
def test_no_command_imports_a_framework(arguments: list[str], store: Path) -> None:
    assert not imported(arguments, store) & (FRAMEWORKS | {"rich", "alembic"})


# -- pipes and signals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("ls",), ("ls", "--json"), ("--help",), ("completion", "bash"), ("show", "nothing@x", "--json")],
)
def test_a_closed_pipe_is_quiet(arguments: tuple[str, ...], store: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_core", *arguments],
        env=environment(store),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (141, 1)


def test_a_closed_pipe_stops_what_was_not_begun(store: Path, ckpt: Call) -> None:
    """Nobody read the plan: nothing is forgotten."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ckpt_core", "forget", "--keep-last", "1"]
    done = subprocess.run(
        command, env=environment(store), stdout=writing, stdin=subprocess.DEVNULL, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert len(ckpt("ls", "-q").out.split()) == 10


def test_control_c_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted in the middle: the store stands on a pipe that never ends, so there is a middle."""
    store, target = tmp_path / "slow", tmp_path / "out.safetensors"
    with CheckpointManager(store, experiment="x") as manager:
        manager.save({"t": np.zeros(1000)}, step=1, wait=True)
    wait = (
        "import sys, threading\n"
        "from ckpt_core.repository.reader import ChunkReader\n"
        "def never(*arguments):\n"
        "    print('reading', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n"
        "ChunkReader.read_range = never\n"
        "from ckpt_core.cli import main\n"
        "main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", wait, "restore", "latest", str(target)],
        env=environment(store),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert child.stderr.readline() == "reading\n"
    assert [path.name.startswith(".out") for path in tmp_path.glob("*.tmp")] == [True]
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, "", "error: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slow"]


# -- terminals ------------------------------------------------------------------------------------


def on_terminal(store: Path, *arguments: str, answer: str = "", **more: str) -> tuple[int, str]:
    """Runs the command on a terminal of 80 columns; its exit code, and all that was to be seen."""
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        os.execve(sys.executable, [sys.executable, "-m", "ckpt_core", *arguments], environment(store, **more))
    shown = b""
    asked = False
    while True:
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, f"nothing more came after {shown!r}"
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if answer and not asked and b"[y/N]" in shown:
            os.write(terminal, answer.encode())
            asked = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode().replace("\r\n", "\n")


def test_colour_only_where_it_is_wanted(store: Path) -> None:
    assert "\x1b[1mEXPERIMENT\x1b[0m" in on_terminal(store, "experiments")[1]
    assert "\x1b" not in on_terminal(store, "experiments", NO_COLOR="1")[1]
    assert "\x1b" not in on_terminal(store, "experiments", TERM="dumb")[1]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"completion", "prune"}))
def test_lines_fit_the_terminal(command: str, store: Path) -> None:
    arguments = {
        "show": ["digits@latest", "--leaves"],
        "diff": ["digits@step=400", "digits@step=500"],
        "cat": ["digits@latest", "model/fc.weight"],
        "restore": ["digits@latest", "out.safetensors"],
        "pin": ["digits@latest"],
        "unpin": ["digits@latest"],
        "forget": ["--keep-last", "1", "--dry-run"],
    }
    code, shown = on_terminal(store, command, *arguments.get(command, []), NO_COLOR="1")
    assert code == 0
    tables = {"ls", "experiments", "forget", "stats", "tag", "log", "diff"}
    if command in tables:
        assert max(map(len, shown.splitlines())) <= 80, shown


def test_progress_is_drawn_on_a_terminal_alone(store: Path, process: Process) -> None:
    assert "verifying" in on_terminal(store, "verify")[1]
    assert "verifying" not in on_terminal(store, "verify", "-q")[1]
    done = process("verify")
    assert "verifying" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "left"),
    [
        ((), "y\n", 0, 4),
        ((), "n\n", 1, 10),
        ((), "\n", 1, 10),
        ((), "\x03", 130, 10),
        ((), "\x04", 1, 10),
        (("--yes",), "", 0, 4),
        (("--dry-run",), "", 0, 10),
        (("--json",), "n\n", 1, 10),
    ],
)
def test_a_terminal_is_asked(
    arguments: tuple[str, ...], answer: str, code: int, left: int, store: Path, ckpt: Call
) -> None:
    found, shown = on_terminal(store, "forget", "--keep-last", "1", *arguments, answer=answer)
    assert (found, len(ckpt("ls", "-q").out.split())) == (code, left), shown
    assert ("Forget 6 checkpoints? [y/N]" in shown) is bool(answer)


def test_prune_asks_as_well(store: Path, ckpt: Call) -> None:
    ckpt("forget", "mnist@step=10")
    code, shown = on_terminal(store, "prune", answer="n\n")
    assert (code, "nothing was changed" in shown) == (1, True)
    assert list(store.glob("trash/*/*.json"))
    assert on_terminal(store, "prune", answer="y\n")[0] == 0
    assert not list(store.glob("trash/*/*.json"))


# -- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_for_each_shell(shell: str, ckpt: Call) -> None:
    answer = ckpt("completion", shell, at=None)
    assert answer.code == 0
    assert "_CKPT_COMPLETE" in answer.out
    assert ckpt("completion", shell, "--json", at=None).data["shell"] == shell
    assert ckpt("completion", "tcsh", at=None).code == 2


def completed(store: Path, line: str) -> list[str]:
    more = {
        "_CKPT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_core"],
        env=environment(store, **more),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [row.partition(",")[2] for row in done.stdout.splitlines()]


def test_commands_options_and_references_are_completed(store: Path) -> None:
    assert completed(store, "ckpt sh") == ["show"]
    assert "--keep-last" in completed(store, "ckpt forget --keep")
    assert completed(store, "ckpt show digits@") == [
        "digits@latest",
        "digits@best",
        "digits@release-1",
        "digits@warm",
    ]
    assert completed(store, "ckpt show mn") == ["mnist@"]
    assert completed(store, "ckpt ls m") == ["mnist"]
    assert completed(store / "nowhere", "ckpt show d") == []
