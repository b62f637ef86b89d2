"""Hooks that come with the engine and look at what is saved: at tensors, stores, checkpoints.

Each is found by its name in the entry-point group `ckpt_core.hooks`, the door that a third party's uses, and
imported when somebody names it. What hooks are, and who runs them, is `ckpt_core.hooks`.
"""

from __future__ import annotations

__all__: list[str] = []
