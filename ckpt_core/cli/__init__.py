"""The command `ckpt`: what it says and how it is called. What it does is done on the floors below.

Third-party commands (entry-point group `ckpt_core.commands`) are click commands; `command` here makes
one with the options that all commands share, and hands it a `Call`.
"""

from __future__ import annotations

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command
from ckpt_core.cli.program import main

__all__ = ["Call", "command", "main"]
