"""What the API changes, where the server lets it: tags of checkpoints and of experiments, pins; and verification,
which is written down."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.tracker.experiments import ExperimentTracker
from ckpt_core.web import documents as say
from ckpt_core.web.base import BaseAPI
from ckpt_core.web.choosing import Choosing

__all__ = ["ChangingAPI"]

Name = Annotated[str, Query(min_length=1, max_length=255)]


class ChangingAPI(BaseAPI):
    """The routes that change something, or cost much."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._choosing = Choosing(workspace)
        self._tracker = ExperimentTracker(workspace)

    def router(self) -> APIRouter:
        router = APIRouter()
        for method, path, endpoint, status in (
            ("PUT", "/checkpoints/{id}/tags", self.tag, 200),
            ("DELETE", "/tags", self.untag, 204),
            ("PUT", "/experiments/{name}/tags", self.tag_experiment, 200),
            ("DELETE", "/experiments/{name}/tags", self.untag_experiment, 204),
            ("PUT", "/checkpoints/{id}/pin", self.pin, 200),
            ("DELETE", "/checkpoints/{id}/pin", self.unpin, 200),
            ("POST", "/checkpoints/{id}/verify", self.verify, 200),
        ):
            router.add_api_route(
                path, endpoint, methods=[method], status_code=status, operation_id=endpoint.__name__
            )
        return router

    def tag(self, id: say.Id, body: say.TagName) -> say.CheckpointDocument:  # noqa: A002
        """Points a tag to the checkpoint, away from any other of its experiment."""
        self.workspace.tag(self._choosing.by_id(id), body.tag)
        return say.checkpoint_document(self._choosing.by_id(id))

    def untag(self, experiment: Name, tag: Name) -> None:
        """Removes a tag; one that is not there is no error."""
        self.workspace.untag(experiment, tag)

    def tag_experiment(self, name: say.ExperimentName, body: say.TagName) -> say.ExperimentDetail:
        """Puts a tag on an experiment."""
        self._tracker.tag(name, body.tag)
        return say.experiment_detail(self._tracker.experiment(name))

    def untag_experiment(self, name: say.ExperimentName, tag: Name) -> None:
        """Takes a tag off an experiment; one that is not there is no error."""
        self._tracker.untag(name, tag)

    def pin(self, id: say.Id) -> say.CheckpointDocument:  # noqa: A002
        """Keeps the checkpoint from every retention policy."""
        self.workspace.pin(self._choosing.by_id(id))
        return say.checkpoint_document(self._choosing.by_id(id))

    def unpin(self, id: say.Id) -> say.CheckpointDocument:  # noqa: A002
        """Leaves the checkpoint to the retention policies again."""
        self.workspace.unpin(self._choosing.by_id(id))
        return say.checkpoint_document(self._choosing.by_id(id))

    def verify(self, id: say.Id, headers_only: bool = False) -> say.VerifyDocument:  # noqa: A002
        """Reads the checkpoint and checks every byte of it, and writes down what was found."""
        report = self.workspace.verify([self._choosing.by_id(id)], read_data=not headers_only)
        return say.VerifyDocument(
            ok=report.ok,
            packs=report.packs,
            bytes_read=report.bytes_read,
            problems=[_problem(each) for each in report.problems],
        )


def _problem(each: Any) -> dict[str, Any]:
    return {"kind": each.kind, "key": each.key, "detail": each.detail, "checkpoints": list(each.checkpoints)}
