"""Which leaves of a state to load."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from ckpt_core.errors import StateMismatchError, UsageError
from ckpt_core.tree.nodes import walk

__all__ = ["Selection"]

_SHOWN = 8


class Selection:
    """Paths, whole subtrees, or shell patterns over paths. None selects all, an empty list nothing."""

    def __init__(self, patterns: str | Sequence[str] | None) -> None:
        self.everything = patterns is None
        given: Any = () if patterns is None else patterns
        self.patterns = tuple(given) if isinstance(given, (list, tuple, set, frozenset)) else (given,)
        if not all(isinstance(pattern, str) for pattern in self.patterns):
            raise UsageError("include= takes paths or patterns, as ['model/*', 'epoch']", kind="option")

    def __contains__(self, path: str) -> bool:
        return self.everything or any(
            path == p or path.startswith(p.rstrip("/") + "/") or fnmatch.fnmatchcase(path, p)
            for p in self.patterns
        )

    def check(self, tree: Any) -> None:
        """Raises StateMismatchError for a pattern that selects nothing: most likely a typing error."""
        if self.everything:
            return
        paths = [path for path, _ in walk(tree)]
        for pattern in self.patterns:
            chosen = Selection(pattern)
            if not any(path in chosen for path in paths):
                raise StateMismatchError(
                    f"nothing in the checkpoint matches {pattern!r}; it has {', '.join(paths[:_SHOWN])} ...",
                    kind="include",
                    paths=(pattern,),
                )
