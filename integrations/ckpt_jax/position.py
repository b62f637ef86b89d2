"""Where a training loop stands: its counts, the position of its data, the random state of the host.

When it is taken and what is saved with it is `checkpointer.py`'s.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ckpt_core import UsageError
from ckpt_jax.data import Feed
from ckpt_jax.streams import global_streams

__all__ = ["Position"]

_log = logging.getLogger("ckpt_core.jax")


class Position:
    """The counts of a loop, and its data by name. `between`: no epoch has begun that is not over.

    `over` counts the passes over each data in which this epoch has trained, and which have come to their end:
    a loop that is resumed in that epoch comes by there again, and has to `skip` them.
    """

    def __init__(self, data: Any) -> None:
        named = dict(data) if isinstance(data, Mapping) else {} if data is None else {"train": data}
        self.feeds = {name: Feed(each, name) for name, each in named.items()}
        self.step = 0
        self.epoch = 0
        self.between = True
        self.over: Counter[str] = Counter()
        self.skip: Counter[str] = Counter()
        self._rng: Mapping[str, Any] | None = None

    def here(self) -> dict[str, Any]:
        """This instant, as a state. Cheap enough to be asked before each batch."""
        rng = self._rng
        if rng is None:
            rng = {name: stream.read() for name, stream in global_streams().items()}
        return {
            "loop": {
                "step": self.step,
                "epoch": self.epoch,
                "between": self.between,
                "over": dict(self.over),
            },
            "rng": rng,
            "data": {name: feed.position(between=self.between) for name, feed in self.feeds.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `here` gave; the random state follows with `restore_rng`."""
        loop = state["loop"]
        self.step, self.epoch, self.between = loop["step"], loop["epoch"], loop["between"]
        self.over, self.skip = Counter(loop["over"]), Counter(loop["over"])
        for name, position in state["data"].items():
            if name in self.feeds:
                self.feeds[name].resume(position)
            else:
                _log.warning("the position of data %r is in the checkpoint, but no such data is here", name)
        self._rng = state["rng"]

    def restore_rng(self) -> None:
        """When the first batch or epoch begins: what was drawn while everything was set up is undone."""
        if self._rng is None:
            return
        streams = global_streams()
        for name, state in self._rng.items():
            if name in streams:
                streams[name].write(state)
            else:
                _log.warning("the random state of %s is in the checkpoint, but cannot be restored here", name)
        self._rng = None

    def end_epoch(self) -> None:
        """The epoch is over."""
        self.epoch += 1
        self.between = True
        self.over.clear()
        self.skip.clear()

    def skips(self, feed: Feed) -> bool:
        """Whether the pass over this data that is about to begin has been made before the loop was resumed."""
        if self.skip[feed.name] == 0:
            return False
        self.skip[feed.name] -= 1
        return True

    def find(self, name: str | None) -> Feed:
        """The data of that name, or (None) the only one. Raises UsageError."""
        if name is None and len(self.feeds) == 1:
            return next(iter(self.feeds.values()))
        if name is not None and name in self.feeds:
            return self.feeds[name]
        known = ", ".join(self.feeds) or "there are none"
        raise UsageError(
            f"which data? give the checkpointer data=..., or name one of those it has ({known})", kind="data"
        )
