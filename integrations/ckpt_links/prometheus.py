"""Prometheus: counters and gauges of saves, loads, deletions and damage, to be scraped or as a text file.

Labels are the experiment, an outcome, the name of a metric. Never a checkpoint or a step: each would be a series.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from ckpt_core import HookContext, HookEvent, UsageError
from ckpt_core.hooks import HookOptions
from ckpt_core.hooks.configured import FILE
from ckpt_links.link import Link, Saves, require

__all__ = ["PrometheusLink"]

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class PrometheusLink(Link):
    """Counts what happens for Prometheus.

    `port`: serve `/metrics` there, on `address`, from the making of its manager on. `textfile`: keep a file for the
    node exporter, written anew, whole, after each event; its name must end in `.prom`. `registry`: a CollectorRegistry
    of your own to count in, which is served elsewhere. One of the three must be given. Raises UsageError, as its
    manager does for a port that is taken; MissingExtraError.
    """

    events = (
        HookEvent.BEFORE_SAVE,
        HookEvent.AFTER_SAVE,
        HookEvent.SAVE_FAILED,
        HookEvent.NEW_BEST,
        HookEvent.AFTER_LOAD,
        HookEvent.LOAD_FAILED,
        HookEvent.AFTER_DELETE,
        HookEvent.CORRUPTION_FOUND,
        HookEvent.AFTER_REPAIR,
        HookEvent.PREEMPTED,
    )

    def __init__(
        self,
        *,
        port: int | None = None,
        address: str = "127.0.0.1",
        textfile: Path | None = None,
        registry: Any = None,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        if port is None and textfile is None and registry is None:
            raise UsageError(
                "say where Prometheus is to find it: port=9464, textfile='ckpt.prom' or registry=",
                kind="option",
            )
        if textfile is not None and Path(textfile).suffix != ".prom":
            raise UsageError(f"textfile={str(textfile)!r} must end in .prom to be found", kind="option")
        self._library = require("prometheus_client", "prometheus")
        self.registry = self._library.CollectorRegistry() if registry is None else registry
        self.textfile = None if textfile is None else Path(textfile)
        self._times = Saves()
        self._define()
        self._wanted = None if port is None else (port, address)
        self._server: Any = None

    @property
    def port(self) -> int | None:
        """Where `/metrics` is served; None where it is not."""
        return None if self._server is None else int(self._server.server_port)

    def attach(self, owner: Any) -> None:
        super().attach(owner)
        if self._wanted is None or self._server is not None:
            return
        port, address = self._wanted
        try:
            self._server, self._thread = self._library.start_http_server(port, address, self.registry)
        except OSError as error:
            raise UsageError(
                f"/metrics cannot be served at {address}:{port}: {error}; choose another port", kind="option"
            ) from error

    def detach(self) -> None:
        if self.source == FILE:  # nobody else holds it
            self.close()

    def close(self) -> None:
        """Serves no more. A process that ends need not call it; one that a file has named ends with its manager."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _define(self) -> None:
        def make(kind: str, name: str, text: str, *labels: str, **more: Any) -> Any:
            return getattr(self._library, kind)(
                f"ckpt_{name}", text, ("experiment", *labels), registry=self.registry, **more
            )

        self._saves = make("Counter", "saves", "Saves by what came of them", "outcome")
        self._seconds = make(
            "Histogram", "save_seconds", "From a save's turn to its commit", buckets=_SECONDS
        )
        self._logical = make("Counter", "logical_bytes", "Bytes of the states that were saved")
        self._written = make("Counter", "written_bytes", "Bytes that saves have written anew")
        self._step = make("Gauge", "last_save_step", "Step of the newest checkpoint")
        self._last = make("Gauge", "last_save_timestamp_seconds", "When the newest checkpoint was committed")
        self._best = make("Gauge", "best_step", "Step of the best checkpoint")
        self._metric = make("Gauge", "checkpoint_metric", "Metrics of the newest checkpoint", "metric")
        self._loads = make("Counter", "loads", "Loads by what came of them", "outcome")
        self._deleted = make("Counter", "deleted_checkpoints", "Checkpoints that were forgotten")
        self._corruptions = make("Counter", "corruptions", "Times that damage was found in the store")
        self._repairs = make("Counter", "repairs", "Repairs of the store")
        self._preemptions = make("Counter", "preemptions", "Times that training was told to stop")

    def execute(self, context: HookContext) -> None:
        experiment = context.experiment or ""
        match context.event:
            case HookEvent.BEFORE_SAVE:
                self._times.begin(context)
            case HookEvent.AFTER_SAVE:
                self._saved(context, experiment)
            case HookEvent.SAVE_FAILED:
                self._times.end(context)
                self._saves.labels(experiment, "failed").inc()
            case HookEvent.NEW_BEST:
                self._best.labels(experiment).set(context.step or 0)
            case HookEvent.AFTER_LOAD | HookEvent.LOAD_FAILED:
                done = "loaded" if context.event is HookEvent.AFTER_LOAD else "failed"
                self._loads.labels(experiment, done).inc()
            case HookEvent.AFTER_DELETE:
                self._deleted.labels(experiment).inc()
            case HookEvent.CORRUPTION_FOUND:
                self._corruptions.labels(experiment).inc()
            case HookEvent.AFTER_REPAIR:
                self._repairs.labels(experiment).inc()
            case HookEvent.PREEMPTED:
                self._preemptions.labels(experiment).inc()
        if self.textfile is not None and context.event is not HookEvent.BEFORE_SAVE:
            self._library.write_to_textfile(str(self.textfile), self.registry)

    def _saved(self, context: HookContext, experiment: str) -> None:
        begun = self._times.end(context)
        if begun is not None:
            self._seconds.labels(experiment).observe(Saves.between(begun, context))
        self._saves.labels(experiment, "saved").inc()
        if context.checkpoint is not None:
            self._logical.labels(experiment).inc(context.checkpoint.logical_bytes)
            self._written.labels(experiment).inc(context.checkpoint.written_bytes)
            self._step.labels(experiment).set(context.checkpoint.step)
            self._last.labels(experiment).set(context.checkpoint.created_at.timestamp())
        for name, value in context.metrics.items():
            self._metric.labels(experiment, name).set(value)
