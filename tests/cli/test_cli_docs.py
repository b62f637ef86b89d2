"""The reference page names every command, every option and every exit code, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from ckpt_core.cli import exit_codes
from ckpt_core.cli.program import COMMANDS, program

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
CONTEXT = click.Context(program, info_name="ckpt")
SHARED = {"--store", "--catalog", "--json", "--quiet", "--debug", "--help"}


def in_code() -> str:
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", PAGE, flags=re.DOTALL))


def section(command: str) -> str:
    found = re.search(rf"^### `ckpt {command}`$(.*?)(?=^##)", PAGE + "\n##", flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no section `ckpt {command}`"
    return found[1]


def options(command: click.Command) -> list[str]:
    return [
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_its_options_and_an_example(name: str) -> None:
    command = program.get_command(CONTEXT, name)
    assert command is not None
    text = section(name)
    missing = [o for o in options(command) if o.startswith("--") and o not in SHARED and f"`{o}" not in text]
    assert missing == []
    assert f"ckpt {name}" in "".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL))


@pytest.mark.parametrize("option", sorted(SHARED | {"--version", "--yes"}))
def test_the_shared_options_are_named(option: str) -> None:
    assert option in in_code()


def test_the_page_names_no_option_that_is_not_there() -> None:
    known = {o for name in COMMANDS for o in options(program.get_command(CONTEXT, name) or program)}
    known |= set(options(program)) | {"--help", "-h"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", in_code()))
    assert named - known == set()


def test_the_exit_codes_are_all_told() -> None:
    codes = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    rows = {int(row) for row in re.findall(r"^\| `(\d+)` \|", PAGE, flags=re.MULTILINE)}
    assert rows == codes


def test_the_settings_are_named() -> None:
    for variable in ("CKPT_STORE", "CKPT_CATALOG", "NO_COLOR"):
        assert f"`{variable}`" in PAGE
