"""Reactions to what happens in training and in the engine.

Knows order, isolation and time limits, and nothing of saving. Decisions about when to save and what to
keep live in `ckpt_core.policies`; who fires which event, in the manager and the session.
"""

from __future__ import annotations

from ckpt_core.hooks.base import BaseHook, FunctionHook, HookOptions, hook
from ckpt_core.hooks.context import HookContext
from ckpt_core.hooks.events import HookEvent, HookPriority
from ckpt_core.hooks.installed import installed_hooks, make_hook
from ckpt_core.hooks.manager import HookManager
from ckpt_core.hooks.results import HookFailure, HookOutcome, HookStatistics

__all__ = [
    "BaseHook",
    "FunctionHook",
    "HookContext",
    "HookEvent",
    "HookFailure",
    "HookManager",
    "HookOptions",
    "HookOutcome",
    "HookPriority",
    "HookStatistics",
    "hook",
    "installed_hooks",
    "make_hook",
]
