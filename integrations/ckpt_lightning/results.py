"""What Lightning has accumulated in an epoch but keeps out of its checkpoints, as state and back.

Logged values on their way to an epoch's mean, the metrics that callbacks look at, states of torchmetrics,
buffers that are not persistent.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torchmetrics import Metric

__all__ = [
    "capture_logged",
    "capture_metric",
    "capture_module",
    "fresh",
    "loss_of",
    "metrics_of",
    "restore_logged",
    "restore_metric",
    "restore_metrics",
    "restore_module",
]

_META = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph",
    "add_dataloader_idx", "dataloader_idx", "metric_attribute",
)  # fmt: skip
_VALUES = ("value", "cumulated_batch_size", "_forward_cache", "_computed")
_DICTS = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")


def fresh(trainer: Any) -> dict[str, float]:
    """What was logged for the batch, evaluation or epoch that has just ended.

    Not `trainer.callback_metrics`, which keeps the last validation's values while training goes on: they
    say nothing of weights that were trained on since.
    """
    logged = trainer._logger_connector.metrics["callback"]
    return {name: float(value) for name, value in logged.items()}


def loss_of(outputs: Any) -> float | None:
    """The loss of a batch, as `training_step` gave it. To read it waits for the device."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return float(loss) if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None


def capture_logged(trainer: Any) -> dict[str, Any]:
    """The values logged so far in this epoch, and the metrics of the last one."""
    connector = trainer._logger_connector
    return {
        "results": {key: _capture_result(each) for key, each in trainer.fit_loop.epoch_loop._results.items()},
        "first_loop_iter": connector._first_loop_iter,
        "current_fx": connector._current_fx,
        **{name: dict(getattr(connector, name)) for name in _DICTS},
    }


def restore_logged(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what `capture_logged` gave."""
    connector = trainer._logger_connector
    results = trainer.fit_loop.epoch_loop._results
    words = importlib.import_module(type(results).__module__)
    results.clear()
    for key, saved in state["results"].items():
        results[key] = _restore_result(trainer, words, saved)
    connector._first_loop_iter = state["first_loop_iter"]
    connector._current_fx = state["current_fx"]
    restore_metrics(trainer, state)


def restore_metrics(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back, of what `capture_logged` gave, the metrics that callbacks and schedulers look at."""
    for name in _DICTS:
        setattr(trainer._logger_connector, name, dict(state[name]))


def _capture_result(result: Any) -> dict[str, Any]:
    meta = result.meta
    saved = {
        "meta": {name: getattr(meta, name) for name in _META} | {"reduce_fx": meta.reduce_fx.__name__},
        "sync": {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only, "op": meta.sync.op},
        "is_tensor": result.is_tensor,
        "has_reset": result.has_reset,
        "update_count": result._update_count,
    }
    if result.is_tensor:
        saved["values"] = {name: getattr(result, name) for name in _VALUES if hasattr(result, name)}
    return saved


def _restore_result(trainer: Any, words: Any, saved: Mapping[str, Any]) -> Any:
    sync = saved["sync"]
    meta = words._Metadata(**saved["meta"])
    meta.sync = words._Sync(
        fn=trainer.strategy.reduce,
        _should=sync["should"],
        rank_zero_only=sync["rank_zero_only"],
        _op=sync["op"],
    )
    result = words._ResultMetric(meta, saved["is_tensor"])
    result.to(trainer.strategy.root_device)
    if saved["is_tensor"]:
        for name, value in saved["values"].items():
            setattr(result, name, _to(value, trainer.strategy.root_device))
    else:
        result.value = trainer.lightning_module.get_submodule(meta.metric_attribute)
        result._forward_cache = result.value._forward_cache
    result.has_reset = saved["has_reset"]
    result._update_count = saved["update_count"]
    return result


def capture_module(module: torch.nn.Module) -> dict[str, Any]:
    """What a module holds that its `state_dict` leaves out: buffers not persistent, states of metrics."""
    return {
        "buffers": dict(_transient_buffers(module)),
        "metrics": {name: capture_metric(metric) for name, metric in metrics_of(module)},
    }


def restore_module(module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `capture_module` gave, as far as the module still has it."""
    with torch.no_grad():
        for name, buffer in _transient_buffers(module):
            saved = state["buffers"].get(name)
            if saved is not None and saved.shape == buffer.shape:
                buffer.copy_(saved)
    for name, metric in metrics_of(module):
        if name in state["metrics"]:
            restore_metric(metric, state["metrics"][name])


def metrics_of(module: torch.nn.Module) -> Iterator[tuple[str, Metric]]:
    """The torchmetrics in a module, by name."""
    return ((name, each) for name, each in module.named_modules() if isinstance(each, Metric))


def capture_metric(metric: Metric) -> dict[str, Any]:
    """What a metric has accumulated, as it is now. Of a list the items are the live ones: nobody changes those."""
    cache = metric._forward_cache
    return {
        "state": {name: _now(getattr(metric, name)) for name in metric._defaults},
        "update_count": metric._update_count,
        "forward_cache": cache if isinstance(cache, torch.Tensor) else None,
    }


def restore_metric(metric: Metric, state: Mapping[str, Any]) -> None:
    """Put back what `capture_metric` gave."""
    for name, value in state["state"].items():
        setattr(metric, name, _to(value, metric.device))
    metric._update_count = state["update_count"]
    metric._forward_cache = _to(state["forward_cache"], metric.device)
    metric._computed = None


def _transient_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, each in module.named_modules():
        for name in sorted(each._non_persistent_buffers_set):
            buffer = each._buffers.get(name)
            if buffer is not None and not isinstance(each, Metric):
                yield f"{prefix}.{name}" if prefix else name, buffer


def _now(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value.detach().clone()


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device=device, copy=True)
    return [_to(each, device) for each in value] if isinstance(value, list) else value
