"""When to save and what to keep: small frozen rules that decide and never act.

None reads a clock, a store or a catalog; all they judge by is passed in. Saving is the manager's work,
forgetting that of maintenance. `SavePolicyHook` carries a save policy to the training events.
"""

from __future__ import annotations

from ckpt_core.policies.asked import asked_policies
from ckpt_core.policies.capacity import KeepWithinBytes, parse_bytes
from ckpt_core.policies.learning_rate import OnLearningRateDrop
from ckpt_core.policies.loss import OnLossSpike
from ckpt_core.policies.metric import OnImprovement, OnPlateau
from ckpt_core.policies.overhead import WithinOverhead
from ckpt_core.policies.retention import (
    KeepAll,
    KeepBest,
    KeepLast,
    KeepTagged,
    LastingPolicy,
    RetentionContext,
    RetentionPolicy,
    decide,
    decide_lineages,
    worth_remembering,
)
from ckpt_core.policies.save import (
    AnyOf,
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    Keep,
    Never,
    Progress,
    SavePolicy,
    save_policy_from,
)
from ckpt_core.policies.save_hook import SavePolicyHook
from ckpt_core.policies.signals import OnSignal
from ckpt_core.policies.thinning import KeepEvery, KeepSpaced

__all__ = [
    "AnyOf",
    "EveryEpochs",
    "EveryMinutes",
    "EverySteps",
    "Keep",
    "KeepAll",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepSpaced",
    "KeepTagged",
    "KeepWithinBytes",
    "LastingPolicy",
    "Never",
    "OnImprovement",
    "OnLearningRateDrop",
    "OnLossSpike",
    "OnPlateau",
    "OnSignal",
    "Progress",
    "RetentionContext",
    "RetentionPolicy",
    "SavePolicy",
    "SavePolicyHook",
    "WithinOverhead",
    "asked_policies",
    "decide",
    "decide_lineages",
    "parse_bytes",
    "save_policy_from",
    "worth_remembering",
]
