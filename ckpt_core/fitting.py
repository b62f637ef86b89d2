"""Weights for a model that need not be the one they came from: which of them fit, and under which names.

Knows names and shapes only. Reading weights and putting them into a model is each adapter's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckpt_core.errors import StateMismatchError
from ckpt_core.model import Checkpoint

__all__ = ["Renames", "Shape", "WeightsReport", "fit"]

_SHOWN = 8

Shape = Sequence[int] | None
"""The shape of a tensor; None for what has none, which fits whatever has its name."""

Renames = Mapping[str, str | None]
"""From a name in the checkpoint, or the part of it before a dot or a slash, to the name in the model, or to
None for what is to be left out. Of several that apply the longest does."""


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What of a checkpoint's weights fits a model, by name.

    `missing`: in the model only; `unexpected`: in the checkpoint only; `misshapen`: in both, with the shape
    in the checkpoint and that in the model; `left_out`: as the caller wished. `checkpoint`: where they are from.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    left_out: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        shapes = [f"{name} {list(saved)} -> {list(there)}" for name, saved, there in self.misshapen]
        rows = (
            (shapes, "of another shape (checkpoint -> model)"),
            (self.missing, "only in the model, left as they were"),
            (self.unexpected, "only in the checkpoint, not loaded"),
            (self.left_out, "left out by renames="),
        )
        lines = [f"{len(self.loaded)} weights fit"]
        lines += [f"{len(names)} {what}: {_some(names)}" for names, what in rows if names]
        return "\n  ".join(lines)


def fit(
    saved: Mapping[str, Shape],
    live: Mapping[str, Shape],
    *,
    strict: bool = True,
    renames: Renames | None = None,
    needed: Collection[str] | None = None,
) -> tuple[dict[str, str], WeightsReport]:
    """Which of the `saved` weights go where in the `live` model: (name in the model -> name saved, report).

    `needed`: the names in the model that must be there, all of them if left out. With `strict`,
    StateMismatchError names all that does not fit and has the report as `report`.
    """
    fitting: dict[str, str] = {}
    unexpected: list[str] = []
    left_out: list[str] = []
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, shape in saved.items():
        target = _renamed(name, renames or {})
        there = live.get(target) if target is not None else None
        if target is None:
            left_out.append(name)
        elif target not in live or target in fitting:
            unexpected.append(name)
        elif shape is not None and there is not None and tuple(shape) != tuple(there):
            misshapen.append((target, tuple(shape), tuple(there)))
        else:
            fitting[target] = name
    known = fitting.keys() | {name for name, *_ in misshapen}
    missing = tuple(name for name in live if name not in known and (needed is None or name in needed))
    report = WeightsReport(tuple(fitting), missing, tuple(unexpected), tuple(misshapen), tuple(left_out))
    if strict and not report.ok:
        raise StateMismatchError(
            f"the weights of the checkpoint do not fit the model:\n  {report}\nload what fits with strict=False, "
            "or name what is called otherwise now with renames=",
            kind="weights",
            paths=(*missing, *unexpected, *(name for name, *_ in misshapen)),
            report=report,
        )
    return fitting, report


def _renamed(name: str, renames: Renames) -> str | None:
    for old in sorted(renames, key=len, reverse=True):
        new, rest = renames[old], name[len(old) :]
        whole = not rest or not old or rest[0] in "./" or old[-1] in "./"
        if name.startswith(old) and whole:
            return None if new is None else f"{new}{rest}".removeprefix(".").removeprefix("/")
    return name


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
