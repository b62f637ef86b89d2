"""The variables of a model and of its optimizers, as state and back, by position.

Paths of variables change from one program to the next, positions do not; names are for people, and for
`weights.py`. Whatever has no counterpart is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ckpt_core import StateMismatchError
from ckpt_keras.codec import assign, dtype_of

__all__ = ["capture_model", "named_weights", "restore_model", "values_are_there"]

_SHOWN = 8


def named_weights(model: Any) -> dict[str, Any]:
    """The weights of a model in their order, by the names of their layers and their own: `dense.kernel`."""
    names = dict(_names(model))
    found: dict[str, Any] = {}
    for variable in model.weights:
        name = first = names.get(id(variable), variable.path.replace("/", "."))
        number = 1
        while name in found:
            number += 1
            name = f"{first}#{number}"
        found[name] = variable
    return found


def _names(layer: Any, prefix: str = "") -> Iterator[tuple[int, str]]:
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        yield id(variable), prefix + variable.name
    for below in layer._layers:
        yield from _names(below, f"{prefix}{below.name}.")


def capture_model(model: Any) -> dict[str, Any]:
    """Everything that a step of training changes in a model: the live variables, to be saved at once.

    `weights` by name and in `order`, and lists of the rest: `seeds`, `metrics`, `optimizer`; `optimizers` that the
    model keeps beside its own, by attribute; `buffers` of PyTorch's modules within.
    """
    weights = named_weights(model)
    state = {"weights": weights, "order": list(weights)}
    state |= {part: list(variables) for part, variables in _parts(model).items()}
    state["optimizers"] = {name: list(each.variables) for name, each in _other_optimizers(model).items()}
    state["buffers"] = _buffers(model)
    return state


def restore_model(model: Any, state: Mapping[str, Any]) -> None:
    """Put back what `capture_model` gave, as it was loaded. Raises StateMismatchError before anything is changed."""
    others = _other_optimizers(model)
    saved = {"weights": [state["weights"][name] for name in state["order"]]}
    live = {"weights": list(model.weights), **_parts(model)}
    saved |= {part: state[part] for part in live if part != "weights"}
    names = {"weights": state["order"]}
    for name in state["optimizers"].keys() | others.keys():
        live[name] = list(others[name].variables) if name in others else []
        saved[name] = state["optimizers"].get(name, [])
    differences = [
        text for part in live for text in _differences(part, saved[part], live[part], names.get(part))
    ]
    buffers = _buffers(model)
    differences += [f"buffer {name}" for name in sorted(buffers.keys() ^ state["buffers"].keys())]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise StateMismatchError(
            f"the model is not the one that was saved, and its training cannot be gone on with: "
            f"{'; '.join(differences[:_SHOWN])}{more}. To take over what fits, start a new experiment with "
            "init_from=, strict=False",
            kind="model",
            paths=tuple(differences),
        )
    for part, variables in live.items():
        for variable, value in zip(variables, saved[part], strict=True):
            assign(variable, value)
    for name, buffer in buffers.items():
        buffer.copy_(state["buffers"][name])


def values_are_there(model: Any) -> bool:
    """Whether every variable has its value: on JAX a step that failed may have taken them away."""
    everything = [*model.weights, *(v for part in _parts(model).values() for v in part)]
    values = [getattr(variable, "_value", variable) for variable in everything]
    return not any(value is None or getattr(value, "is_deleted", bool)() for value in values)


def _parts(model: Any) -> dict[str, list[Any]]:
    weights = {id(variable) for variable in model.weights}
    seeds = [variable for variable in model.variables if id(variable) not in weights]
    metrics: dict[int, Any] = {}
    for metric in (*model.metrics, *model._get_own_metrics()):
        metrics |= {id(variable): variable for variable in metric.variables}
    optimizer = list(model.optimizer.variables) if model.optimizer is not None else []
    return {"seeds": seeds, "metrics": list(metrics.values()), "optimizer": optimizer}


def _other_optimizers(model: Any) -> dict[str, Any]:
    own = model.optimizer
    found = {}
    for name, value in list(vars(model).items()):
        if isinstance(value, keras.optimizers.Optimizer) and value is not own:
            found[name] = value
    return found


def _buffers(model: Any) -> dict[str, Any]:
    if keras.config.backend() != "torch":
        return {}
    return dict(model.named_buffers())


def _differences(
    part: str, saved: Sequence[Any], live: Sequence[Any], names: Sequence[str] | None
) -> Iterator[str]:
    what = _WORDS.get(part, f"variables of {part}")
    if len(saved) != len(live):
        yield f"{len(saved)} {what} are saved, and here are {len(live)}"
        return
    for index, (value, variable) in enumerate(zip(saved, live, strict=True)):
        name = names[index] if names is not None else variable.path
        shape, dtype = list(np.shape(value)), value.dtype
        where = f"{name} (number {index} of the {what})"
        if shape != list(variable.shape):
            yield f"{where} was saved with shape {shape}, and here it has {list(variable.shape)}"
        elif dtype != dtype_of(variable):
            yield f"{where} was saved as {dtype}, and here it is {dtype_of(variable)}"


_WORDS = {
    "weights": "weights", "seeds": "seeds", "metrics": "variables of metrics",
    "optimizer": "variables of the optimizer",
}  # fmt: skip
