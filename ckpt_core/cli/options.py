"""The options that every command has, and the decorator that makes a command of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ckpt_core.cli.call import Call

__all__ = [
    "Command",
    "command",
    "complete_experiments",
    "complete_references",
    "ranking_options",
    "shared_options",
    "trusted_option",
    "yes_option",
]

F = TypeVar("F", bound=Callable[..., Any])
_SHARED = frozenset({"store", "catalog", "json", "quiet", "debug", "help"})


class Command(click.Command):
    """A command with the options that all commands have; its help ends with examples."""

    def __init__(self, *arguments: Any, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += shared_options()
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                (shared if parameter.name in _SHARED else own).append(record)
        for title, records in (("Options", own), ("Options of every command", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line, meaning in self.examples:
                    formatter.write(f"  {line}\n")
                    if meaning:
                        formatter.write(f"      {meaning}\n")
        super().format_epilog(ctx, formatter)


def command(
    name: str, *, examples: Sequence[tuple[str, str]] = ()
) -> Callable[[Callable[..., Any]], Command]:
    """Makes a command of a function whose first argument is the `Call`, with the options all commands have.

    The function returns its exit code, or None for 0. `examples`: command lines, each with what it does.
    """

    def decorate(function: Callable[..., Any]) -> Command:
        given = click.make_pass_decorator(Call, ensure=True)(function)
        return click.command(name, cls=Command, examples=examples)(given)

    return decorate


def shared_options() -> list[click.Parameter]:
    """`--store --catalog --json --quiet --debug`, kept in the `Call`."""

    def option(*names: str, **settings: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, is_eager=True, **settings)

    return [
        option(
            "--store",
            metavar="PATH|URL",
            help="The store. Left out: CKPT_STORE, else `.` or `./checkpoints`.",
        ),
        option(
            "--catalog",
            metavar="URL",
            help="The catalog's database. Left out: CKPT_CATALOG, else in the store.",
        ),
        option("--json", is_flag=True, help="Write one JSON document to stdout."),
        option(
            "-q", "--quiet", is_flag=True, help="Write only what a script needs: names and ids, or nothing."
        ),
        option("--debug", is_flag=True, help="Show the engine's log, and a traceback where something fails."),
    ]


def complete_references(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """For arguments that are references."""
    from ckpt_core.cli.completing import references

    return references(context, parameter, incomplete)


def complete_experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """For arguments that are names of experiments."""
    from ckpt_core.cli.completing import experiments

    return experiments(context, parameter, incomplete)


def ranking_options(function: F) -> F:
    """`--metric --mode`: what `best` means."""
    mode = click.option(
        "--mode",
        type=click.Choice(["min", "max"]),
        default=None,
        expose_value=False,
        callback=_remember,
        help="Whether the smallest or the largest value is best.  [default: min]",
    )
    metric = click.option(
        "--metric",
        metavar="NAME",
        expose_value=False,
        callback=_remember,
        help="The metric that `best` goes by.",
    )
    return metric(mode(function))


def trusted_option(function: F) -> F:
    """`--trusted-key` of commands that read what a checkpoint holds."""
    return click.option(
        "--trusted-key",
        "trusted_keys",
        metavar="FILE",
        multiple=True,
        expose_value=False,
        callback=_remember,
        help="Take only what one of the public keys in FILE signed. May be repeated. Left out: CKPT_TRUSTED_KEYS.",
    )(function)


def yes_option(function: F) -> F:
    """`--yes` of commands that ask before they act."""
    return click.option(
        "-y",
        "--yes",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Do not ask. Without a terminal nothing is asked anyway.",
    )(function)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    call = context.ensure_object(Call)
    if value not in (None, False):  # an option before the command's name counts as one behind it
        call.remember(str(parameter.name), value)
    return value
