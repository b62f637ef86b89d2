"""Links to what people already use: TensorBoard, MLflow, Weights & Biases, Prometheus, OpenTelemetry.

Each is a hook and imports its library when it is made, so that this package needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_links.mlflow_runs import MLflowLink as MLflowLink
    from ckpt_links.prometheus import PrometheusLink as PrometheusLink
    from ckpt_links.telemetry import OpenTelemetryLink as OpenTelemetryLink
    from ckpt_links.tensorboard import TensorBoardLink as TensorBoardLink
    from ckpt_links.wandb_runs import WandbLink as WandbLink

_HOME = {
    "MLflowLink": "mlflow_runs",
    "OpenTelemetryLink": "telemetry",
    "PrometheusLink": "prometheus",
    "TensorBoardLink": "tensorboard",
    "WandbLink": "wandb_runs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
