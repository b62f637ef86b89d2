"""What a shell may complete: names of experiments, and references to their checkpoints.

A shell asks at every press of a key, so nothing here may fail aloud.
"""

from __future__ import annotations

import logging
from typing import Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.escape import escape
from ckpt_core.errors import CkptError
from ckpt_core.model import Checkpoint

__all__ = ["experiments", "references"]


def experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Names of experiments."""
    names = sorted({checkpoint.experiment for checkpoint in _known(context)})
    return [name for name in names if name.startswith(incomplete) and name == escape(name)]


def references(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """`experiment@` first, and then what stands behind it; without it where there is one experiment only."""
    found = _known(context)
    names = sorted({checkpoint.experiment for checkpoint in found})
    experiment, at, _ = incomplete.rpartition("@")
    if not at and len(names) > 1:
        return [f"{name}@" for name in names if name.startswith(incomplete) and name == escape(name)]
    prefix = f"{experiment}@" if at else ""
    tags = sorted({tag for c in found for tag in c.tags if c.experiment == experiment or not at})
    words = [prefix + word for word in (("latest", "best", *tags) if found else ())]
    return [word for word in words if word.startswith(incomplete) and word == escape(word)]


def _known(context: click.Context) -> list[Checkpoint]:
    logging.getLogger("ckpt_core").setLevel(logging.CRITICAL)
    try:
        return context.ensure_object(Call).workspace.index.checkpoints()
    except (CkptError, OSError):
        return []
