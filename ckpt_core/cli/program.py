"""The group `ckpt`: finds commands, runs one, and turns every way to fail into a line and an exit code."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from keyword import iskeyword
from typing import Any, NoReturn

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import shared_options
from ckpt_core.config import environment
from ckpt_core.errors import CkptError

__all__ = ["COMMANDS", "Program", "main", "program"]

GROUP = "ckpt_core.commands"
"""The entry-point group of third-party commands."""

COMMANDS = {
    "ls": "ls", "experiments": "experiments", "metrics": "metrics", "show": "show", "log": "log",
    "diff": "diff", "cat": "cat", "restore": "restore", "export": "export", "import": "import_", "copy": "copy",
    "tag": "tag", "pin": "pins", "unpin": "pins", "forget": "forget", "undelete": "undelete", "prune": "prune",
    "audit": "audit", "verify": "verify", "stats": "stats", "doctor": "doctor", "reindex": "reindex",
    "catalog": "catalog", "scrub": "scrub", "repair": "repair", "parity": "parity", "mirror": "mirror",
    "hooks": "hooks", "keys": "keys", "sign": "sign", "serve": "serve", "completion": "completion"}  # fmt: skip
"""Our own commands, and the module under `commands/` that holds each, imported when it is called.

Not entry points: to ask for these costs a look into every installed distribution.
"""


class Program(click.Group):
    """The group. Third-party commands are looked up only where a name is not one of ours."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += shared_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self._installed().keys() - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = import_module(f"ckpt_core.cli.commands.{COMMANDS[cmd_name]}")
            # A word of Python's cannot be the name of a function.
            own: click.Command = getattr(module, f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name)
            return own
        entry = self._installed().get(cmd_name)
        if entry is None:
            return None
        try:
            loaded = entry.load()
        except Exception as error:  # somebody's code; `ckpt --help` must not break by it
            return _broken(cmd_name, entry.value, error)
        if not isinstance(loaded, click.Command):
            return _broken(cmd_name, entry.value, TypeError("it is not a click command"))
        return loaded

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs one call and exits with its code (or returns it, where `standalone_mode` is off)."""
        arguments = list(sys.argv[1:] if args is None else args)
        code = self._run(arguments, extra)
        if standalone_mode:
            sys.exit(code)
        return code

    def _run(self, arguments: list[str], extra: dict[str, Any]) -> int:
        call = Call()
        call.output.prepare()
        call.output.json = "--json" in arguments  # errors in the arguments themselves are documents, too
        handler = call.listen()
        try:
            code = self._call(arguments, call, extra)
            call.output.flush()
            return code
        except Exception as error:
            return self._failed(error, call)
        except KeyboardInterrupt:
            return _tell(call, exit_codes.INTERRUPTED, "interrupted", "interrupted")
        finally:
            logging.getLogger("ckpt_core").removeHandler(handler)
            with suppress(CkptError):
                call.close()

    def _call(self, arguments: list[str], call: Call, extra: dict[str, Any]) -> int:
        instruction = environment("_CKPT_COMPLETE")
        if instruction:
            from click.shell_completion import shell_complete

            return shell_complete(self, {"obj": call}, "ckpt", "_CKPT_COMPLETE", instruction)
        try:
            with self.make_context("ckpt", arguments, obj=call, **extra) as context:
                logging.getLogger("ckpt_core").setLevel(logging.DEBUG if call.debug else logging.WARNING)
                code = self.invoke(context)
        except click.exceptions.Exit as done:
            code = done.exit_code
        return code if isinstance(code, int) else exit_codes.OK

    def _failed(self, error: Exception, call: Call) -> int:
        """Says what went wrong, and gives the exit code."""
        if call.debug:
            traceback.print_exception(error)
        if isinstance(error, OSError) and error.errno == errno.EPIPE and not isinstance(error, CkptError):
            return _nobody_reads()
        if isinstance(error, click.Abort):
            return _tell(call, exit_codes.INTERRUPTED, "interrupted", "interrupted")
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            if not call.output.json:
                click.echo(error.ctx.get_help(), err=True)
                return exit_codes.USAGE
            return _tell(call, exit_codes.USAGE, "usage", "name a command: `ckpt --help` lists them")
        if isinstance(error, click.UsageError):
            hint = f"; try `{error.ctx.command_path} --help`" if error.ctx else ""
            return _tell(call, exit_codes.USAGE, "usage", error.format_message().rstrip(".") + hint)
        if isinstance(error, click.ClickException):
            return _tell(call, error.exit_code, "usage", error.format_message())
        if isinstance(error, CkptError):
            return _tell(
                call, exit_codes.code_of(error), error.kind, error.message, type(error).__name__, error.facts
            )
        if isinstance(error, OSError):
            place = f"{error.filename}: " if error.filename else ""
            return _tell(call, exit_codes.FAILED, "io", f"{place}{error.strerror or error}")
        message = (
            f"this should not happen: {type(error).__name__}: {error}; --debug shows where, please report it"
        )
        return _tell(call, exit_codes.FAILED, "internal", message)

    @staticmethod
    def _installed() -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {entry.name: entry for entry in entry_points(group=GROUP)}


def _tell(
    call: Call,
    code: int,
    kind: str,
    message: str,
    name: str | None = None,
    facts: dict[str, Any] | None = None,
) -> int:
    try:
        if call.output.json:
            document = {"kind": kind, "message": message, "exit_code": code}
            call.output.error_document(document | ({"class": name, "facts": facts or {}} if name else {}))
        else:
            call.output.error(" ".join(message.splitlines()))
        call.output.flush()
    except BrokenPipeError:
        _nobody_reads()
    return code


def _nobody_reads() -> int:
    """Keeps the interpreter from complaining, when it flushes at exit, that the pipe is gone."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return exit_codes.BROKEN_PIPE


def _broken(name: str, source: str, error: Exception) -> click.Command:
    reason = f"the command {name!r} of {source} cannot be loaded: {type(error).__name__}: {error}"

    def refuse() -> NoReturn:
        raise CkptError(reason, kind="plugin", command=name)

    return click.Command(
        name,
        callback=refuse,
        help=f"Cannot be loaded: {error}",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from ckpt_core.config import version_of

        click.echo(f"ckpt {version_of('ckpt-core') or 'unknown'}")
        context.exit()


@click.group(
    "ckpt", cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def program() -> None:
    """Looks at and looks after a store of checkpoints.

    A checkpoint is named by a reference: [EXPERIMENT@]latest, best, step=N, a tag, or the first characters
    of its id. The store is --store, else CKPT_STORE, else the current folder or ./checkpoints.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 partly done, 4 corruption found, 10 no store, 11 locked,
    130 interrupted.
    """


def main() -> NoReturn:
    """The console script `ckpt`."""
    # A short-lived process that imports much: collecting garbage while it does so costs a tenth of the time,
    # and looking through all of it once more at the exit another fifth.
    gc.set_threshold(100_000, 50, 100)
    code = program.main(standalone_mode=False)
    gc.freeze()
    sys.exit(code)
