"""OpenTelemetry: spans and metrics as the SDK's in-memory exporters see them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from ckpt_core import CheckpointManager, hook
from ckpt_core.hooks import HookEvent
from ckpt_core.stores import MemoryStore
from ckpt_links import OpenTelemetryLink
from crash.wrappers import ScriptedStore


def providers(exporter):
    tracer, reader = TracerProvider(shutdown_on_exit=False), InMemoryMetricReader()
    tracer.add_span_processor(SimpleSpanProcessor(exporter))
    return {
        "tracer_provider": tracer,
        "meter_provider": MeterProvider([reader], shutdown_on_exit=False),
    }, reader


def points(reader):
    found = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    outcome = point.attributes.get("ckpt.outcome")
                    found[metric.name, outcome] = getattr(point, "value", None) or getattr(
                        point, "count", None
                    )
    return found


def test_saves_and_loads_are_spans_and_counts():
    exporter = InMemorySpanExporter()
    options, reader = providers(exporter)
    store = ScriptedStore(MemoryStore())

    @hook(HookEvent.BEFORE_SAVE)
    def no_second(context):
        return context.step != 2

    hooks = [OpenTelemetryLink(**options), no_second]
    with CheckpointManager(store, experiment="x", hooks=hooks) as manager:
        first = manager.save({"w": np.ones(1000)}, step=1, reason="asked").result()
        manager.save({"w": np.ones(1000)}, step=2).exception()

        def fail(operation, key, when):
            if operation == "create" and key.startswith("packs/"):
                raise OSError("no room")

        store.script = fail
        manager.save({"w": np.zeros(1000)}, step=3).exception()
        store.script = None
        manager.wait()
        manager.load("latest")
    spans = {span.attributes.get("ckpt.outcome"): span for span in exporter.get_finished_spans()}
    assert {(span.name, outcome) for outcome, span in spans.items()} == {
        ("ckpt.save", "saved"), ("ckpt.save", "failed"), ("ckpt.load", "loaded"),
    }  # fmt: skip
    saved = spans["saved"]
    assert dict(saved.attributes) == {
        "ckpt.experiment": "x",
        "ckpt.outcome": "saved",
        "ckpt.step": 1,
        "ckpt.reason": "asked",
        "ckpt.checkpoint.id": first.id,
        "ckpt.checkpoint.logical_bytes": 8000,
        "ckpt.checkpoint.written_bytes": first.written_bytes,
    }
    assert 0 < saved.end_time - saved.start_time < 60e9
    assert spans["failed"].status.status_code is StatusCode.ERROR
    assert [event.name for event in spans["failed"].events] == ["exception"]
    found = points(reader)
    assert {key: value for key, value in found.items() if key[0] in ("ckpt.saves", "ckpt.loads")} == {
        ("ckpt.saves", "saved"): 1,
        ("ckpt.saves", "failed"): 1,
        ("ckpt.loads", "loaded"): 1,
    }
    assert (found["ckpt.save.logical", None], found["ckpt.save.written", None]) == (8000, first.written_bytes)
    assert found["ckpt.save.duration", None] == 1


def test_an_exporter_that_fails_touches_no_save(store_path):
    class Broken(SpanExporter):
        def export(self, spans):
            raise ConnectionError("the collector is away")

    options, _ = providers(Broken())
    with CheckpointManager(store_path, experiment="x", hooks=[OpenTelemetryLink(**options)]) as manager:
        manager.save({"w": np.ones(3)}, step=1).result()
        manager.wait()
        assert len(manager.checkpoints()) == 1


@pytest.mark.filterwarnings("default")
def test_the_api_alone_will_do(store_path):
    script = f"""
import sys
class NoSdk:
    def find_spec(self, name, path, target=None):
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoSdk())
from ckpt_core import CheckpointManager
from ckpt_links import OpenTelemetryLink
with CheckpointManager({str(store_path)!r}, experiment="x", hooks=[OpenTelemetryLink()]) as manager:
    manager.save({{"w": 1}}, step=1).result()
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
