"""From the options of `ckpt forget` to decisions: policies by lineage, or checkpoints named one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ckpt_core import clock, ids
from ckpt_core.cli.call import Call
from ckpt_core.cli.listing import listed
from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.model import Attempt, Checkpoint, Decision
from ckpt_core.policies import RetentionContext, RetentionPolicy, asked_policies, decide_lineages

__all__ = ["decide_all", "decide_named", "policies_from"]

_SHORTEST_PREFIX = 4


def policies_from(call: Call, keep: Mapping[str, Any]) -> list[RetentionPolicy]:
    """The policies that the `--keep-…` options stand for. Raises UsageError."""
    return asked_policies(metric=call.metric, mode=call.mode if call.mode_given else None, **keep)


def decide_all(call: Call, policies: Sequence[RetentionPolicy], experiments: Sequence[str]) -> list[Decision]:
    """What the policies say of these experiments (none named: all), lineage by lineage."""
    return decide_lineages(policies, listed(call, experiments), RetentionContext(clock.now()))


def decide_named(call: Call, references: Sequence[str], all_of: Sequence[str]) -> list[Decision]:
    """That the checkpoints named are to go. Raises UsageError for pinned ones, and where an experiment would
    be left without any though it was not named as a whole."""
    chosen = {c.id: (c, "named") for c in (_resolve(call, reference) for reference in references)}
    if all_of:
        chosen |= {c.id: (c, f"all of {c.experiment}") for c in listed(call, all_of)}
    pinned = [c for c, _ in chosen.values() if c.pinned]
    if pinned:
        raise UsageError(
            f"{pinned[0].experiment} step {pinned[0].step} ({pinned[0].id}) is pinned: `ckpt unpin` it first",
            kind="pinned",
            checkpoint=pinned[0].id,
        )
    for experiment in {c.experiment for c, _ in chosen.values()} - set(all_of):
        standing = {c.id for c in call.workspace.index.checkpoints(experiment)}
        if standing <= chosen.keys():
            raise UsageError(
                f"that would forget everything of {experiment!r}; if so, say --all-of {experiment!r}",
                kind="everything",
                experiment=experiment,
            )
    ordered = sorted(chosen.values(), key=lambda item: (item[0].experiment, *item[0].order))
    return [Decision(checkpoint, False, (reason,)) for checkpoint, reason in ordered]


def _resolve(call: Call, reference: str) -> Checkpoint:
    """As `Call.resolve`, and also a checkpoint of which only the damaged manifest is left, by its id: to be
    forgotten is all that can still be done with it."""
    try:
        return call.resolve(reference)
    except NotFoundError:
        found = [
            key for key in call.workspace.repository.manifest_keys() if key.id.startswith(reference.upper())
        ]
        if len(found) != 1 or len(reference) < _SHORTEST_PREFIX:
            raise
        (key,) = found
        attempt = Attempt(0, key.id, key.id)
        made = ids.time_of(key.id)
        return Checkpoint(key.id, unquote(key.folder), key.step, made, attempt, None, key.key, "", 0, 0, 0)
