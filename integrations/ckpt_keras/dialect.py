"""The words that Keras' users know, as save and retention policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ckpt_core import AnyOf, EveryEpochs, KeepBest, KeepLast, OnImprovement, UsageError
from ckpt_core.policies import RetentionPolicy, SavePolicy, save_policy_from

__all__ = ["mode_of", "retention_of", "save_policy_of"]

Mode = Literal["min", "max"]
_SMALL = ("loss", "error", "divergence", "entropy", "hinge", "poisson", "perplexity", "logcosh")
_SMALL_WHOLE = {"mse", "mae", "mape", "msle", "rmse", "kld"}
_GREAT = (
    "acc", "auc", "precision", "recall", "f1", "fbeta", "fmeasure", "iou", "dice", "bleu", "rouge", "r2", "similarity",
    "sensitivity", "specificity", "positives", "negatives", "score",
)  # fmt: skip


def mode_of(mode: str | None, monitor: str | None) -> Mode:
    """Whether the best is the least or the greatest; "auto" goes by the metric's name, as Keras does.

    Raises UsageError where the name does not say, and for another word.
    """
    if mode in ("min", "max"):
        return "max" if mode == "max" else "min"
    if mode not in (None, "auto"):
        raise UsageError(f'mode={mode!r}; give "auto", "min" or "max"', kind="mode")
    if monitor is None:
        return "min"
    name = monitor.removeprefix("val_").lower()
    if name in _SMALL_WHOLE or any(part in name for part in _SMALL):
        return "min"
    if name.startswith(("false_positives", "false_negatives")):
        return "min"
    if any(part in name for part in _GREAT):
        return "max"
    raise UsageError(
        f'whether {monitor!r} is better when it is small or great, its name does not say: give mode="min" or "max"',
        kind="mode",
    )


def save_policy_of(
    *,
    monitor: str | None,
    mode: Mode,
    save_freq: Any,
    every_n_steps: int | None,
    every_n_epochs: int | None,
    every_minutes: float | None,
    save_policy: SavePolicy | None,
) -> SavePolicy:
    """When to save. With nothing said: at the end of every epoch, and with `monitor` whenever it improves."""
    if save_freq is not None:
        if isinstance(save_freq, bool) or (save_freq != "epoch" and not isinstance(save_freq, int)):
            raise UsageError(
                f'save_freq={save_freq!r}; give "epoch" or a number of batches', kind="save_freq"
            )
        if save_freq == "epoch" and every_n_epochs is not None:
            raise UsageError("save_freq and every_n_epochs say the same thing: give one of them")
        if save_freq != "epoch" and every_n_steps is not None:
            raise UsageError("save_freq and every_n_steps say the same thing: give one of them")
        every_n_epochs = 1 if save_freq == "epoch" else every_n_epochs
        every_n_steps = save_freq if save_freq != "epoch" else every_n_steps
    if any(each is not None for each in (every_n_steps, every_n_epochs, every_minutes)):
        shortcuts = save_policy_from(every_n_steps, every_n_epochs, every_minutes)
        return shortcuts if save_policy is None else AnyOf(save_policy, shortcuts)
    if save_policy is not None:
        return save_policy
    if monitor is None:
        return EveryEpochs(1)
    return AnyOf(EveryEpochs(1), OnImprovement(monitor, mode))


def retention_of(save_best_only: bool, retention: Sequence[RetentionPolicy]) -> tuple[RetentionPolicy, ...]:
    """What to keep. With nothing said: everything. The newest is always kept, or nothing could be resumed."""
    return (*retention, KeepBest(1), KeepLast(1)) if save_best_only else tuple(retention)
