"""A part of the REST API of one's own: how far each experiment has come.

In a package it is named in `pyproject.toml`, and then `ckpt serve` finds it:

    [project.entry-points."ckpt_core.api"]
    progress = "my_package.api:Progress"

Run as a program, this file serves a store with it: `python examples/custom_api.py PATH`.
"""

from __future__ import annotations

import sys

from fastapi import APIRouter

from ckpt_core import BaseAPI, NotFoundError, Workspace


class Progress(BaseAPI):
    """`GET /api/v1/progress/{experiment}`: its newest step, and when that was saved."""

    prefix = "/progress"

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/{experiment}", self.progress)
        return router

    def progress(self, experiment: str) -> dict[str, int | str]:
        found = self.workspace.index.checkpoints(experiment)
        if not found:
            raise NotFoundError(f"there are no checkpoints of {experiment!r}")  # becomes a 404
        newest = found[-1]
        return {"step": newest.step, "saved_at": newest.created_at.isoformat(), "checkpoints": len(found)}


def main(root: str) -> None:
    """Serves the store at `root` on this machine until Ctrl-C."""
    from ckpt_core.web.serving import Server

    server = Server(Workspace.open(root), parts=[Progress])
    print("open", server.invitation, flush=True)
    server.run()


if __name__ == "__main__":
    main(sys.argv[1])
