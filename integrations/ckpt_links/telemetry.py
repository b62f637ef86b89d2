"""OpenTelemetry: a span for each save and load, counters and a histogram. Depends on the API alone.

Where they go is said by the SDK that the program sets up; without one, the API drops them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Unpack

from ckpt_core import HookContext, HookEvent
from ckpt_core.hooks import HookOptions
from ckpt_links.link import Link, Saves, require

__all__ = ["OpenTelemetryLink"]


class OpenTelemetryLink(Link):
    """Traces and measures saves, loads, deletions and damage.

    `tracer_provider` and `meter_provider`: those of your own, else the global ones. Raises MissingExtraError.
    """

    events = (
        HookEvent.BEFORE_SAVE,
        HookEvent.AFTER_SAVE,
        HookEvent.SAVE_FAILED,
        HookEvent.BEFORE_LOAD,
        HookEvent.AFTER_LOAD,
        HookEvent.LOAD_FAILED,
        HookEvent.AFTER_DELETE,
        HookEvent.CORRUPTION_FOUND,
        HookEvent.PREEMPTED,
    )

    def __init__(
        self, *, tracer_provider: Any = None, meter_provider: Any = None, **options: Unpack[HookOptions]
    ) -> None:
        super().__init__(**options)
        self._trace = require("opentelemetry.trace", "opentelemetry")
        metrics = require("opentelemetry.metrics", "opentelemetry")
        self._tracer = self._trace.get_tracer("ckpt_core", tracer_provider=tracer_provider)
        meter = metrics.get_meter("ckpt_core", meter_provider=meter_provider)
        self._saves = meter.create_counter("ckpt.saves", "{save}", "Saves by what came of them")
        self._seconds = meter.create_histogram("ckpt.save.duration", "s", "From a save's turn to its commit")
        self._logical = meter.create_counter("ckpt.save.logical", "By", "Bytes of the states that were saved")
        self._written = meter.create_counter("ckpt.save.written", "By", "Bytes that saves have written anew")
        self._loads = meter.create_counter("ckpt.loads", "{load}", "Loads by what came of them")
        self._deleted = meter.create_counter(
            "ckpt.deletions", "{checkpoint}", "Checkpoints that were forgotten"
        )
        self._corruptions = meter.create_counter("ckpt.corruptions", "{time}", "Times that damage was found")
        self._preemptions = meter.create_counter(
            "ckpt.preemptions", "{time}", "Times that training was to stop"
        )
        self._times = Saves()
        self._load: HookContext | None = None

    def execute(self, context: HookContext) -> None:
        labels = {"ckpt.experiment": context.experiment or ""}
        match context.event:
            case HookEvent.BEFORE_SAVE:
                self._times.begin(context)
            case HookEvent.AFTER_SAVE:
                self._saved(context, "saved")
            case HookEvent.SAVE_FAILED:
                self._saved(context, "failed")
            case HookEvent.BEFORE_LOAD:
                self._load = context
            case HookEvent.AFTER_LOAD | HookEvent.LOAD_FAILED:
                begun, self._load = self._load, None
                outcome = "loaded" if context.event is HookEvent.AFTER_LOAD else "failed"
                self._loads.add(1, {**labels, "ckpt.outcome": outcome})
                self._span("ckpt.load", begun, context, outcome)
            case HookEvent.AFTER_DELETE:
                self._deleted.add(1, labels)
            case HookEvent.CORRUPTION_FOUND:
                self._corruptions.add(1, labels)
            case HookEvent.PREEMPTED:
                self._preemptions.add(1, labels)

    def _saved(self, context: HookContext, outcome: str) -> None:
        labels = {"ckpt.experiment": context.experiment or ""}
        begun = self._times.end(context)
        self._saves.add(1, {**labels, "ckpt.outcome": outcome})
        if outcome == "saved" and begun is not None:
            self._seconds.record(Saves.between(begun, context), labels)
        if context.checkpoint is not None:
            self._logical.add(context.checkpoint.logical_bytes, labels)
            self._written.add(context.checkpoint.written_bytes, labels)
        self._span("ckpt.save", begun, context, outcome)

    def _span(self, name: str, begun: HookContext | None, context: HookContext, outcome: str) -> None:
        attributes: dict[str, Any] = {"ckpt.experiment": context.experiment or "", "ckpt.outcome": outcome}
        facts = {"ckpt.step": context.step, "ckpt.reason": context.reason}
        if context.checkpoint is not None:
            facts |= {
                "ckpt.checkpoint.id": context.checkpoint.id,
                "ckpt.checkpoint.logical_bytes": context.checkpoint.logical_bytes,
                "ckpt.checkpoint.written_bytes": context.checkpoint.written_bytes,
            }
        attributes |= {key: value for key, value in facts.items() if value is not None}
        started, ended = (begun or context).at, _nanoseconds(context.at)
        span = self._tracer.start_span(name, attributes=attributes, start_time=_nanoseconds(started))
        if context.error is not None:
            span.record_exception(context.error, timestamp=ended)
            span.set_status(self._trace.StatusCode.ERROR, f"{type(context.error).__name__}: {context.error}")
        span.end(ended)


def _nanoseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6) * 1000
