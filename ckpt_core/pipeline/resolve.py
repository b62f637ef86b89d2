"""What a reference means: `[experiment@]latest|best|step=N|tag|id prefix`."""

from __future__ import annotations

import math
from typing import Literal

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, UsageError
from ckpt_core.format.names import check_name
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.index import Index

__all__ = ["Mode", "best_first", "candidates", "check_tag", "newest_lineage", "split_reference"]

Mode = Literal["min", "max"]
_SHORTEST_PREFIX = 4
_SHOWN = 8


def check_tag(tag: object) -> str:
    """`tag` itself, if a checkpoint may bear it. Raises UsageError, also for `latest` and the like."""
    name = check_name(tag, "a tag")
    if name in ("latest", "best") or name.startswith("step="):
        raise UsageError(
            f"{name!r} has a meaning of its own in references: choose another tag", kind="name", name=name
        )
    return name


def split_reference(text: str, experiment: str | None = None) -> tuple[str | None, str]:
    """The experiment and the rest of a reference; `experiment` where the reference names none."""
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"{text!r} is not a reference: try latest, best, step=100, a tag or an id", kind="reference"
        )
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

    Only the lineage that the reference means is fallen back to: another one is another training. Raises
    NotFoundError, which says what there is instead; CorruptionError where there were checkpoints and all
    their manifests are damaged; UsageError for an ambiguous or malformed reference.
    """
    experiment, reference = split_reference(text, experiment)
    found = index.checkpoints(experiment)
    if not found:
        raise _nothing(index, experiment, text)
    if reference in ("latest", "best"):
        names = sorted({c.experiment for c in found})
        if len(names) > 1:
            raise UsageError(
                f"{reference!r} of which experiment? there are {', '.join(names[:_SHOWN])}: "
                f"write {names[0]}@{reference}",
                kind="reference",
            )
        lineage = newest_lineage(found)
        return lineage[::-1] if reference == "latest" else best_first(lineage, metric, mode)
    for choice in (_with_step(found, reference), _tagged(found, reference), _prefixed(found, reference)):
        if choice:
            return choice
    raise NotFoundError(
        f"no checkpoint answers to {text!r}; `ckpt ls` lists what there is (latest is step "
        f"{max(found, key=lambda c: c.order).step})",
        reference=text,
    )


def newest_lineage(found: list[Checkpoint]) -> list[Checkpoint]:
    """The lineage of the newest attempt that saved, from the oldest to the newest."""
    lineage = max(found, key=lambda c: c.order).attempt.lineage
    return sorted((c for c in found if c.attempt.lineage == lineage), key=lambda c: c.order)


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
            f"no checkpoint carries the metric {metric!r}; they carry {', '.join(known) or 'none'}",
            metric=metric,
        )
    sign = 1.0 if mode == "min" else -1.0
    return sorted(carrying, key=lambda c: (sign * c.metrics[metric], c.order))


def _with_step(found: list[Checkpoint], reference: str) -> list[Checkpoint]:
    if not reference.startswith("step="):
        return []
    digits = reference.removeprefix("step=")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise UsageError(f"{reference!r} should read step=N with a whole number", kind="reference")
    step = int(digits)
    matching = [c for c in found if c.step == step]
    if not matching:
        nearest = min(found, key=lambda c: (abs(c.step - step), c.step))
        raise NotFoundError(f"no checkpoint of step {step}; the nearest is step={nearest.step}", step=step)
    _one_experiment(matching, reference)
    experiment = matching[0].experiment
    lineage = newest_lineage([c for c in found if c.experiment == experiment])[0].attempt.lineage
    return [max(matching, key=lambda c: (c.attempt.lineage == lineage, c.order))]


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
            f"{reference!r} begins {len(matching)} ids ({matching[0].id}, {matching[1].id}, ...): "
            "write more of it",
            kind="ambiguous",
        )
    return matching


def _one_experiment(matching: list[Checkpoint], reference: str) -> None:
    names = sorted({c.experiment for c in matching})
    if len(names) > 1:
        raise UsageError(
            f"{reference!r} is in several experiments: write {names[0]}@{reference}", kind="ambiguous"
        )


def _nothing(index: Index, experiment: str | None, text: str) -> CkptError:
    damaged = index.damaged(experiment)
    if damaged:
        return CorruptionError(
            f"{text!r} means nothing, as the manifest of every checkpoint is damaged: {damaged[-1][1]}",
            kind="document",
            key=damaged[-1][0].key,
            reference=text,
        )
    if experiment is None:
        return NotFoundError(f"the store has no checkpoints yet, so {text!r} means none", reference=text)
    others = sorted({c.experiment for c in index.checkpoints()})
    known = f"; it has {', '.join(others[:_SHOWN])}" if others else ""
    return NotFoundError(
        f"the store has no checkpoints of experiment {experiment!r}{known}",
        kind="experiment" if others else "checkpoint",
        experiment=experiment,
        reference=text,
    )
