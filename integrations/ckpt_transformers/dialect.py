"""The words that Trainer's users know, as arguments, metrics and policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ckpt_core import KeepBest, KeepLast, UsageError
from ckpt_core.policies import AnyOf, RetentionPolicy, SavePolicy, save_policy_from

__all__ = ["arguments_for", "completed", "metric_of", "one_of", "policy_of", "retention_of"]


def one_of(**named: Any) -> Any:
    """The value of two names for the same thing. Raises UsageError where both are given and differ."""
    given = {name: value for name, value in named.items() if value is not None}
    if len(set(map(repr, given.values()))) > 1:
        said = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise UsageError(f"{said} are the same thing: give one of them", kind="option")
    return next(iter(given.values()), None)


def completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, and what follows from it as it does in TrainingArguments."""
    given = {name: value for name, value in said.items() if value is not None}
    if "metric_for_best_model" in given:
        given.setdefault("greater_is_better", not given["metric_for_best_model"].endswith("loss"))
    return given


def policy_of(
    save_policy: SavePolicy | None,
    every_n_steps: int | None,
    every_n_epochs: int | None,
    every_minutes: float | None,
) -> SavePolicy | None:
    """A policy of the callback's own; None where it is the arguments that say when to save."""
    if every_n_steps is None and every_n_epochs is None and every_minutes is None:
        return save_policy
    shortcuts = save_policy_from(every_n_steps, every_n_epochs, every_minutes)
    return shortcuts if save_policy is None else AnyOf(save_policy, shortcuts)


def arguments_for(args: Any, given: Mapping[str, Any], *, own_policy: bool, owns_saving: bool) -> Any:
    """TrainingArguments as they hold while training: with what was given to the callback instead.

    With a policy of its own, what they say about when to save does not count; where the callback owns the
    saving, Trainer deletes no folders. A copy: the user's own stay as they are.
    """
    changes = dict(given)
    if own_policy and owns_saving:
        changes["save_strategy"] = "no"
    if owns_saving:
        changes["save_total_limit"] = None
    if "save_strategy" in changes:
        changes["save_strategy"] = type(args.save_strategy)(changes["save_strategy"])
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def metric_of(args: Any, given: Mapping[str, Any]) -> tuple[str, Literal["min", "max"]]:
    """The metric by which `best` goes, by the name that it has in logs, and whether lower is better."""
    name = given.get("metric_for_best_model", getattr(args, "metric_for_best_model", None))
    greater = given.get("greater_is_better", getattr(args, "greater_is_better", None))
    if name is None:
        return "eval_loss", "min"
    return name if name.startswith("eval_") else f"eval_{name}", "max" if greater else "min"


def retention_of(limit: int | None, retention: Sequence[RetentionPolicy]) -> tuple[RetentionPolicy, ...]:
    """What to keep: `save_total_limit` are the newest, and the best is kept besides. Nothing said: everything."""
    if limit is None or limit <= 0:
        return tuple(retention)
    return (*retention, KeepLast(limit), KeepBest(1))
