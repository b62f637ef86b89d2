"""The app: our parts and those that are installed, behind the guard. What an endpoint does is not said here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from ckpt_core.config import version_of
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.web.base import installed, part
from ckpt_core.web.changing import ChangingAPI
from ckpt_core.web.downloads import DownloadsAPI
from ckpt_core.web.etags import Tagged
from ckpt_core.web.guard import LOOPBACK, Guard
from ckpt_core.web.page import page_of
from ckpt_core.web.problems import PROBLEMS, catch
from ckpt_core.web.reading import ReadingAPI

__all__ = ["PREFIX", "create_app", "create_open_app"]

PREFIX = "/api/v1"


def create_app(
    workspace: Workspace,
    *,
    token: str,
    allow_write: bool = False,
    hosts: Collection[str] = LOOPBACK,
    parts: Sequence[object] = (),
) -> ASGIApp:
    """The API of a store as an ASGI app, which asks for `token`. `parts` are added to those that are installed."""
    app = create_open_app(workspace, allow_write=allow_write, parts=parts)
    return Guard(Tagged(app), token=token, hosts=hosts, allow_write=allow_write)


def create_open_app(
    workspace: Workspace, *, allow_write: bool = False, parts: Sequence[object] = ()
) -> FastAPI:
    """The same without its guard: for nobody to be served."""
    app = FastAPI(
        title="ckpt: checkpoints of one store",
        description="Looks at checkpoints, metrics and what is in them, and downloads tensors. Every byte is checked "
        "against its digest on its way. Errors are problem documents (RFC 9457).",
        version=version_of("ckpt-core") or "0",
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    catch(app)
    others = [*installed(workspace), *((f"part {n}", *part(each, workspace)) for n, each in enumerate(parts))]
    names = [name for name, _, _ in others]
    for own in (
        ReadingAPI(workspace, allow_write=allow_write, parts=names), DownloadsAPI(workspace), ChangingAPI(workspace)
    ):  # fmt: skip
        app.include_router(own.router(), prefix=PREFIX)
    for _, prefix, router in others:
        app.include_router(router, prefix=f"{PREFIX}{prefix}")

    def home() -> HTMLResponse:
        return HTMLResponse(page_of(app.openapi()))

    app.add_api_route("/", home, methods=["GET"], include_in_schema=False)
    return app
