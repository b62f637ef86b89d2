"""Answers of a catalog, remembered for as long as nothing in the store has changed that could change them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ckpt_core.perf.cache import CacheManager
from ckpt_core.pipeline.answers import Answers

__all__ = ["Remembered"]

_ROW = 1500
"""Bytes that a checkpoint takes, about."""


class Remembered:
    """The same answers as `answers` gives. Those about `experiment` are looked up in a cache first: `token` says what
    its folders in the store look like, and changes with them, whoever changed them."""

    def __init__(self, answers: Answers, cache: CacheManager, experiment: str, token: Hashable) -> None:
        self._answers = answers
        self._cache = cache
        self._experiment = experiment
        self._token = token

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._answers, name)

        def once(*arguments: Any, **chosen: Any) -> Any:
            if self._experiment not in (*arguments, *chosen.values()):
                return ask(*arguments, **chosen)
            key = (name, arguments, tuple(sorted(chosen.items())))
            found = self._cache.find("catalog", key, self._token, lambda: ask(*arguments, **chosen), _size)
            return list(found) if isinstance(found, list) else found  # a list is its caller's to change

        return once


def _size(found: Any) -> int:
    return _ROW * (1 + (len(found) if isinstance(found, list) else 0))
