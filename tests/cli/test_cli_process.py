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

import msgspec
import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.format.sealed import seal
from ckpt_core.ids import new_ulid
from cli.calls import Call, damage

Process = Callable[..., subprocess.CompletedProcess[str]]
FRAMEWORKS = {"torch", "jax", "tensorflow", "keras", "lightning", "pytorch_lightning", "transformers"}


def environment(store: Path, **more: str) -> dict[str, str]:
    """Of a person without any settings. What is written must be buffered, as it usually is."""
    settings = ("CKPT_", "_CKPT", "NO_COLOR", "PYTHONUNBUFFERED")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    return kept | {"CKPT_STORE": str(store), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"} | more


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ls",), 0),
        (("diff", "digits@step=400", "digits@step=500", "--exit-code"), 1),
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


def imported(store: Path, *calls: list[str]) -> set[str]:
    """The packages that a fresh interpreter has imported after these calls."""
    code = (
        "import sys, json\n"
        "from ckpt_core.cli.program import program\n"
        f"codes = [program.main(call, standalone_mode=False) for call in {list(calls)!r}]\n"
        "print(json.dumps([codes, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(store),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    codes, modules = json.loads(done.stderr.splitlines()[-1])
    assert codes == [0] * len(calls), done.stderr
    return {name.partition(".")[0] for name in modules}


def test_help_imports_next_to_nothing(store: Path) -> None:
    modules = imported(store, ["--help"], ["ls", "--help"], ["--version"])
    assert "click" in modules
    assert not modules & (FRAMEWORKS | {"sqlalchemy", "alembic", "rich", "numpy", "msgspec"})


def test_no_command_imports_a_framework(store: Path) -> None:
    calls = [
        ["ls"],
        ["experiments"],
        ["show", "digits@latest", "--leaves"],
        ["log"],
        ["diff", "digits@latest", "digits@warm"],
        ["cat", "digits@latest", "model/fc.weight"],
        ["restore", "digits@latest", "out"],
        ["tag", "digits@latest", "x"],
        ["forget", "--keep-last", "1", "--prune"],
        ["verify"],
        ["stats"],
        ["reindex"],
    ]
    assert not imported(store, *calls) & (FRAMEWORKS | {"rich", "alembic"})


def test_a_checkpoint_of_another_framework_is_read_without_it(store: Path, tmp_path: Path) -> None:
    for path in store.glob("checkpoints/mnist/*.json"):
        body = msgspec.json.decode(path.read_bytes())
        body.pop("sha256")
        body["tensors"] = [[*tensor[:3], "torch"] for tensor in body["tensors"]]
        path.write_bytes(seal(body))
    (store / "catalog.db").unlink()
    target = tmp_path / "out.safetensors"
    calls = [
        ["show", "mnist@latest", "--leaves"],
        ["cat", "mnist@latest", "model/fc.weight"],
        ["diff", "mnist@step=10", "mnist@step=20"],
        ["restore", "mnist@latest", str(target)],
        ["verify"],
    ]
    assert not imported(store, *calls) & FRAMEWORKS
    assert b'"format":"pt"' in target.read_bytes()[:400]


def grown(store: Path, count: int) -> None:
    """Gives mnist so many checkpoints, each a manifest of its own over the packs that are there."""
    pattern = sorted(store.glob("checkpoints/mnist/*.json"))[0]
    body = msgspec.json.decode(pattern.read_bytes())
    body.pop("sha256")
    for step in range(1000, 1000 + count):
        body |= {"id": new_ulid(), "step": step}
        (pattern.parent / f"{step:012d}-{body['id']}.json").write_bytes(seal(body))


def test_a_list_of_a_thousand_is_quick(store: Path, ckpt: Call) -> None:
    """At most 500 ms on a warm catalog. The processor's time, best of five, and twice of it: a busy or an old
    machine must not fail this, an import that came in by mistake must."""
    grown(store, 1000)
    assert len(ckpt("ls", "-q").out.split()) == 1010
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "ckpt_core", "ls"], env=environment(store), capture_output=True, check=True
        )
        after = os.times()
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 1.0, times


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
        "import signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's job may have it ignored
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "slow"]


# -- terminals ------------------------------------------------------------------------------------


def on_terminal(
    store: Path, *arguments: str, answer: str = "", program: str = "", **more: str
) -> tuple[int, str]:
    """Runs the command on a terminal of 80 columns; its exit code, and all that was to be seen.

    `program` is Python to run before the command.
    """
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        attentive = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        begin = f"{attentive}\n{program}\nfrom ckpt_core.cli import main; main()"
        os.execve(sys.executable, [sys.executable, "-c", begin, *arguments], environment(store, **more))
    shown, silent, asked = b"", 0, False
    while True:
        ready, _, _ = select.select([terminal], [], [], 1)
        if not ready:
            silent += 1
            assert silent < 120, f"nothing more came after {shown!r}"
        else:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            shown += data
        # Again where nothing comes of it: the interpreter can miss a signal just before it begins to read.
        if b"[y/N]" in shown and (not asked or silent > 1):
            os.write(terminal, answer.encode() if not asked or answer == "\x03" else b"")
            asked = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode().replace("\r\n", "\n")


def test_colour_only_where_it_is_wanted(store: Path) -> None:
    assert "\x1b[1mEXPERIMENT\x1b[0m" in on_terminal(store, "experiments")[1]
    assert "\x1b" not in on_terminal(store, "experiments", NO_COLOR="1")[1]
    assert "\x1b" not in on_terminal(store, "experiments", TERM="dumb")[1]


def test_progress_is_drawn_on_a_terminal_alone(store: Path) -> None:
    at_once = "from ckpt_core.cli import progress; progress.PATIENCE = 0"
    assert "verifying" in on_terminal(store, "verify", program=at_once)[1]
    assert "verifying" not in on_terminal(store, "verify", "-q", program=at_once)[1]
    patient = at_once.replace("= 0", "= 300")
    assert "verifying" not in on_terminal(store, "verify", program=patient)[1]
    for arguments in (["verify"], ["verify", "--json"]):
        code = f"{at_once}; from ckpt_core.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment(store),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        assert "verifying" not in done.stdout


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, 4), ("\x03", 130, 10)], ids=["yes", "ctrl-c"]
)
def test_a_terminal_is_asked(answer: str, code: int, left: int, store: Path, ckpt: Call) -> None:
    found, shown = on_terminal(store, "forget", "--keep-last", "1", answer=answer)
    if found == -signal.SIGINT:  # sent again while the interpreter was ending: to a shell that is 130 too
        found = 130
    assert (found, len(ckpt("ls", "-q").out.split())) == (code, left), shown
    assert "Forget 6 checkpoints? [y/N]" in shown


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
    return [row.partition(",")[2] for row in done.stdout.split()]


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
