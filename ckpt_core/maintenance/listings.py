"""Whether an experiment's folders in the store have changed since they were last listed, told without listing."""

from __future__ import annotations

from ckpt_core.errors import StoreError
from ckpt_core.repository import layout
from ckpt_core.stores import Generation, Store

__all__ = ["SETTLED", "is_settled", "look"]

SETTLED = 2.0
"""Seconds after which an object or folder that still has the same date will not change without changing it: no
file system dates more coarsely."""


def look(store: Store, folder: str) -> Generation | None:
    """What the folders of an experiment (`folder`: its encoded name) look like that checkpoints, tags and pins
    come and go in; None where the store cannot tell."""
    words, since = [], float("-inf")
    for name in (
        f"{layout.MANIFESTS}/{folder}",
        f"{layout.REFERENCES}/{folder}/tags",
        f"{layout.REFERENCES}/{folder}/pins",
    ):
        found = store.generation(name)
        if found is None:
            return None
        words.append(found.word)
        since = max(since, found.since)
    return Generation(" ".join(words), since)


def is_settled(store: Store, looked: Generation) -> bool:
    """Whether any further change would be seen. Right after a change it might not be: two changes within one
    tick of the file system's clock bear the same date."""
    if looked.since == float("-inf"):
        return True
    try:
        return store.now() - looked.since > SETTLED
    except StoreError:  # a store that can only be read does not tell the time
        return False
