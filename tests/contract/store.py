"""What a store is: the suite is shipped, so that stores of other people can inherit it as ours do."""

from __future__ import annotations

from ckpt_core.testing.stores import StoreContract

__all__ = ["StoreContract"]
