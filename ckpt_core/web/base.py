"""What a part of the REST API is, ours or a third party's, and where those that are installed are found."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from ckpt_core.errors import CkptError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from ckpt_core.pipeline.workspace import Workspace

__all__ = ["GROUP", "BaseAPI", "installed"]

GROUP = "ckpt_core.api"
"""The entry-point group of further parts: subclasses of BaseAPI, or plain routers."""

_log = logging.getLogger("ckpt_core.web")


class BaseAPI(ABC):
    """A part of the REST API of one store. Subclass it, and name the class under the entry-point group `ckpt_core.api`.

    Its routes stand under `/api/v1` and `prefix`. Whoever may use the API may use them; what changes something must
    not be a GET, and is refused with all the rest unless the server was started with `--allow-write`. An endpoint
    that is a plain function (no `async def`) runs on a thread of its own; an error of `ckpt_core` that it raises
    becomes the answer that belongs to it.
    """

    prefix: ClassVar[str] = ""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @abstractmethod
    def router(self) -> APIRouter:
        """The routes. Asked once, when the server starts."""


def installed(workspace: Workspace) -> Iterator[tuple[str, str, APIRouter]]:
    """Name, prefix and routes of every part that is installed. One that cannot be loaded is logged and left out."""
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            yield entry.name, *part(entry.load(), workspace)
        except Exception as error:  # somebody's code: the server goes without it
            _log.error(
                "the API part %r of %s cannot be used: %s: %s",
                entry.name,
                entry.value,
                type(error).__name__,
                error,
            )


def part(found: object, workspace: Workspace) -> tuple[str, APIRouter]:
    """Prefix and routes of a BaseAPI class, or of a plain router. Raises CkptError (kind `plugin`)."""
    from fastapi import APIRouter

    if isinstance(found, APIRouter):
        return "", found
    if not (isinstance(found, type) and issubclass(found, BaseAPI)):
        raise CkptError(f"{found!r} is neither a subclass of BaseAPI nor an APIRouter", kind="plugin")
    prefix, router = found.prefix, found(workspace).router()
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise CkptError(f"the prefix of {found!r} is {prefix!r}: write it as '/progress'", kind="plugin")
    if not isinstance(router, APIRouter):
        raise CkptError(f"router() of {found!r} returns {router!r}, not an APIRouter", kind="plugin")
    return prefix, router
