"""`ckpt completion`: the script that teaches a shell to complete commands, options and references."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command(
    "completion",
    examples=[
        ("ckpt completion bash > ~/.local/share/bash-completion/completions/ckpt", ""),
        ("ckpt completion zsh > ~/.zfunc/_ckpt", "with ~/.zfunc in fpath"),
        ("ckpt completion fish > ~/.config/fish/completions/ckpt.fish", ""),
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(call: Call, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from ckpt_core.cli.program import program

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(program, {}, "ckpt", "_CKPT_COMPLETE")
    text = script.source_template % script.source_vars()
    if shell == "bash":
        # To bash `@` and `=` end a word, and a reference is one word: as npm's completion does.
        text = "COMP_WORDBREAKS=${COMP_WORDBREAKS//[@=]/}\n" + text.lstrip()

    def show(output: Output) -> None:
        for line in text.splitlines():
            output.line(line)

    call.answer("completion", {"shell": shell, "script": text}, show, quiet=text.splitlines())
