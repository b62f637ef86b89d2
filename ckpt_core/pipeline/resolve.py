"""What a reference means: `[experiment@]latest|best|step=N|tag|id prefix`."""

from __future__ import annotations

import math
from typing import Literal

from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.index import Index

__all__ = ["Mode", "best_first", "candidates", "split_reference"]

Mode = Literal["min", "max"]
_SHORTEST_PREFIX = 4


def split_reference(text: str, experiment: str | None = None) -> tuple[str | None, str]:
    """The experiment and the rest of a reference; `experiment` where the reference names none."""
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{text!r} is not a reference: try latest, best, step=100, a tag or an id", kind="reference")
    named, separator, rest = text.rpartition("@")
    if not separator:
        return experiment, text
    if not named or not rest:
        raise UsageError(f"{text!r} should read EXPERIMENT@REFERENCE, as digits@best", kind="reference")
    return named, rest


def candidates(
    index: Index, text: str, *, experiment: str | None, metric: str | None = None, mode: Mode = "min"
) -> list[Checkpoint]:
    """The checkpoint that a reference means, followed by those to fall back to (for `latest` and `best`).

    Raises NotFoundError, which says what there is instead; UsageError for an ambiguous or malformed one.
    """
    experiment, reference = split_reference(text, experiment)
    found = index.checkpoints(experiment)
    names = sorted({c.experiment for c in found})
    if not found:
        raise _nothing(index, experiment, text)
    if reference in ("latest", "best") and len(names) > 1:
        raise UsageError(
            f"{reference!r} of which experiment? there are {', '.join(names[:8])}: write {names[0]}@{reference}",
            kind="reference",
        )
    if reference == "latest":
        return _latest_first(found)
    if reference == "best":
        return best_first(_newest_lineage(found), metric, mode)
    for choice in (_with_step(found, reference), _tagged(found, reference), _prefixed(found, reference)):
        if choice:
            return choice
    raise NotFoundError(
        f"no checkpoint answers to {text!r}; `ckpt ls` lists what there is (latest is step {found[-1].step})",
        reference=text,
    )


def best_first(checkpoints: list[Checkpoint], metric: str | None, mode: Mode) -> list[Checkpoint]:
    """Those that carry the metric, the best first; of equals the older. Raises NotFoundError, UsageError."""
    if metric is None:
        raise UsageError(
            "best by which metric? give the manager metric=..., or the command --metric NAME", kind="metric"
        )
    carrying = [c for c in checkpoints if not math.isnan(c.metrics.get(metric, math.nan))]
    if not carrying:
        known = sorted({name for c in checkpoints for name in c.metrics})
        raise NotFoundError(
            f"no checkpoint carries the metric {metric!r}; they carry {', '.join(known) or 'none'}", metric=metric
        )
    sign = 1.0 if mode == "min" else -1.0
    return sorted(carrying, key=lambda c: (sign * c.metrics[metric], c.order))


def _latest_first(found: list[Checkpoint]) -> list[Checkpoint]:
    """The newest attempt's, newest first; then those of its lineage; then the rest."""
    lineage = max(found, key=lambda c: c.order).attempt.lineage
    return sorted(found, key=lambda c: (c.attempt.lineage == lineage, c.order), reverse=True)


def _newest_lineage(found: list[Checkpoint]) -> list[Checkpoint]:
    lineage = max(found, key=lambda c: c.order).attempt.lineage
    return [c for c in found if c.attempt.lineage == lineage]


def _with_step(found: list[Checkpoint], reference: str) -> list[Checkpoint]:
    if not reference.startswith("step="):
        return []
    digits = reference.removeprefix("step=")
    if not (digits.isascii() and digits.isdecimal()):
        raise UsageError(f"{reference!r} should read step=N with a whole number", kind="reference")
    matching = [c for c in _latest_first(found) if c.step == int(digits)]
    if not matching:
        nearest = min(found, key=lambda c: (abs(c.step - int(digits)), c.step))
        raise NotFoundError(
            f"no checkpoint of step {int(digits)}; the nearest is step={nearest.step}", step=int(digits)
        )
    _one_experiment(matching, reference)
    return matching[:1]


def _tagged(found: list[Checkpoint], reference: str) -> list[Checkpoint]:
    matching = [c for c in found if reference in c.tags]
    _one_experiment(matching, reference)
    return matching


def _prefixed(found: list[Checkpoint], reference: str) -> list[Checkpoint]:
    prefix = reference.upper()
    if len(prefix) < _SHORTEST_PREFIX:
        return []
    matching = [c for c in found if c.id.startswith(prefix)]
    if len(matching) > 1:
        raise UsageError(
            f"{reference!r} begins {len(matching)} ids ({matching[0].id}, {matching[1].id}, ...): write more of it",
            kind="ambiguous",
        )
    return matching


def _one_experiment(matching: list[Checkpoint], reference: str) -> None:
    names = sorted({c.experiment for c in matching})
    if len(names) > 1:
        raise UsageError(f"{reference!r} is in several experiments: write {names[0]}@{reference}", kind="ambiguous")


def _nothing(index: Index, experiment: str | None, text: str) -> NotFoundError:
    if experiment is None:
        return NotFoundError(f"the store has no checkpoints yet, so {text!r} means none", reference=text)
    others = sorted({c.experiment for c in index.checkpoints()})
    known = f"; it has {', '.join(others[:8])}" if others else ""
    return NotFoundError(
        f"the store has no checkpoints of experiment {experiment!r}{known}",
        kind="experiment" if others else "checkpoint",
        experiment=experiment,
        reference=text,
    )
