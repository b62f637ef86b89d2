"""MLflow: each checkpoint an external model of a run, with its metrics. The bytes stay where they are.

The server is MLflow's own setting (`MLFLOW_TRACKING_URI`, `mlflow.set_tracking_uri`). `ckpt_links.mlflow_artifacts`
reads what the models point to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

from ckpt_core import Attempt, HookContext, HookEvent
from ckpt_core.hooks import HookOptions
from ckpt_links.link import Link, require
from ckpt_links.places import place_of

__all__ = ["MLflowLink"]

_ENDS = {HookEvent.TRAIN_END: "FINISHED", HookEvent.TRAIN_FAILED: "FAILED", HookEvent.PREEMPTED: "KILLED"}
_GOES_ON = (HookEvent.TRAIN_BEGIN, HookEvent.EVALUATE_END, HookEvent.EPOCH_END)
"""What shows, after a preemption, that whoever handled the signal let training go on."""


class MLflowLink(Link):
    """Tells MLflow of metrics and checkpoints.

    Each checkpoint becomes an external model (`mlflow.create_external_model`), named `<experiment>-step-<step>`, whose
    tag `ckpt.uri` is a `ckpt://` address that MLflow can list and download; its metrics are logged with its
    `model_id`. The best one of a lineage has the tag `ckpt.best`. `run_id`: a run of yours; left out, one is begun for
    this attempt in the MLflow experiment of the same name, and ended as training ends; an attempt that goes on where a
    preemption cut one off goes on in its run. `params`: of a run that is begun. Raises MissingExtraError.
    """

    events = (
        HookEvent.TRAIN_BEGIN,
        HookEvent.EVALUATE_END,
        HookEvent.EPOCH_END,
        HookEvent.AFTER_SAVE,
        HookEvent.NEW_BEST,
        HookEvent.TRAIN_END,
        HookEvent.TRAIN_FAILED,
        HookEvent.PREEMPTED,
    )
    timeout = 60.0

    def __init__(
        self,
        *,
        run_id: str | None = None,
        params: Mapping[str, bool | float | str] | None = None,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        self._mlflow = require("mlflow", "mlflow")
        self._entities = require("mlflow.entities", "mlflow")
        self.run_id = run_id
        self.params = dict(params or {})
        self._own = run_id is None
        self._experiment: str | None = None
        self._attempt: str | None = None
        self._killed = False
        self._models: dict[str, str] = {}

    def execute(self, context: HookContext) -> None:
        client = self._mlflow.MlflowClient()
        run = self._run(client, context)
        if context.event is HookEvent.AFTER_SAVE:
            self._tell_checkpoint(client, run, context)
        elif context.event is HookEvent.NEW_BEST:
            self._tell_best(client, context)
        elif context.metrics:
            self._log(client, run, context, None)
        if self._own:
            self._tell_end(client, run, context)

    def _run(self, client: Any, context: HookContext) -> str:
        attempt = context.attempt
        which = None if attempt is None else attempt.id
        if self.run_id is not None and (not self._own or self._attempt == which):
            if self._experiment is None:
                self._experiment = client.get_run(self.run_id).info.experiment_id
            return self.run_id
        name = context.experiment or "training"
        found = client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found is not None else client.create_experiment(name)
        tags = {"ckpt.experiment": name}
        if attempt is not None:
            tags |= {"ckpt.attempt": attempt.id, "ckpt.lineage": attempt.lineage}
        run = None if attempt is None else self._cut_off(client, attempt)
        if run is not None:
            self._go_on(client, run)
            client.set_tag(run, "ckpt.attempt", which)
        else:
            number = "" if attempt is None else f"-{attempt.number}"
            run = str(client.create_run(self._experiment, tags=tags, run_name=f"{name}{number}").info.run_id)
            for key, value in self.params.items():
                client.log_param(run, key, value)
        self.run_id, self._attempt = run, which
        return run

    def _cut_off(self, client: Any, attempt: Attempt) -> str | None:
        """The run that a preemption has ended at the step that this attempt goes on from."""
        if attempt.resumed_step is None:
            return None
        of_lineage = f"tags.`ckpt.lineage` = '{attempt.lineage}'"
        newest = ["attributes.start_time DESC"]
        for run in client.search_runs([self._experiment], of_lineage, max_results=1, order_by=newest):
            if run.info.status == "KILLED" and run.data.tags.get("ckpt.step") == str(attempt.resumed_step):
                return str(run.info.run_id)
        return None

    def _tell_end(self, client: Any, run: str, context: HookContext) -> None:
        status = _ENDS.get(context.event)
        if context.event is HookEvent.TRAIN_FAILED and "preempted" in context.data:
            status = "KILLED"  # it is by an exception that the signal's handler has ended training
        if context.event is HookEvent.PREEMPTED:
            client.set_tag(run, "ckpt.step", str(context.step))
        if status is not None:
            client.set_terminated(run, status)
        elif self._killed and context.event in _GOES_ON:
            self._go_on(client, run)
        else:
            return
        self._killed = status == "KILLED"

    def _go_on(self, client: Any, run: str) -> None:
        client.update_run(run, status="RUNNING")

    def _tell_checkpoint(self, client: Any, run: str, context: HookContext) -> None:
        checkpoint = context.checkpoint
        assert checkpoint is not None
        model = self._mlflow.create_external_model(
            name=f"{_named(checkpoint.experiment)}-step-{checkpoint.step}",
            source_run_id=run,
            experiment_id=self._experiment,
            model_type="checkpoint",
            params={"step": str(checkpoint.step), "logical_bytes": str(checkpoint.logical_bytes)},
            tags={
                "ckpt.uri": place_of(self.manager, checkpoint),
                "ckpt.id": checkpoint.id,
                "ckpt.digest": checkpoint.digest,
                "ckpt.lineage": checkpoint.attempt.lineage,
            },
        )
        self._models = {checkpoint.id: model.model_id}
        self._log(client, run, context, model.model_id)

    def _tell_best(self, client: Any, context: HookContext) -> None:
        checkpoint = context.checkpoint
        assert checkpoint is not None
        model = self._models.get(checkpoint.id)
        if model is None:
            return
        client.set_logged_model_tags(model, {"ckpt.best": "true"})
        # The best so far may have been told of by an earlier process.
        best = f"tags.`ckpt.best` = 'true' AND tags.`ckpt.lineage` = '{checkpoint.attempt.lineage}'"
        for found in client.search_logged_models([self._experiment], best):
            if found.model_id != model:
                client.delete_logged_model_tag(found.model_id, "ckpt.best")

    def _log(self, client: Any, run: str, context: HookContext, model: str | None) -> None:
        at = round(context.at.timestamp() * 1000)
        metrics = [
            self._entities.Metric(_named(name), value, at, context.step or 0, model_id=model, run_id=run)
            for name, value in context.metrics.items()
            if math.isfinite(value)  # a database behind the server may refuse others
        ]
        client.log_batch(run, metrics=metrics)


def _named(name: str) -> str:
    """A name as MLflow takes it: letters, digits, and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)
