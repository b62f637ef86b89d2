"""What was read and checked when, pack by pack: so that a check can go on where the last one ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, final

from ckpt_core import clock
from ckpt_core.errors import CkptError

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["IntegrityTracker"]

_log = logging.getLogger("ckpt_core.maintenance")
_NEVER = datetime.min.replace(tzinfo=UTC)


@final
class IntegrityTracker:
    """Remembers in the catalog when each pack was last read. Without a usable catalog it remembers for itself.

    `catalog` opens the catalog. For one thread at a time.
    """

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog
        self._ids: dict[str, int] = {}
        self._checked: dict[str, datetime] = {}
        try:
            for check in catalog().pack_checks():
                self._ids[check.pack], self._checked[check.pack] = check.id, check.at
        except CkptError as error:
            self._forgetful(error)

    def last_checked(self, pack: str) -> datetime | None:
        """When every byte of a pack was last read; None where that is not known."""
        return self._checked.get(pack)

    def oldest_first(self, packs: Iterable[str]) -> list[str]:
        """Packs that were never read, then those that were read longest ago."""
        return sorted(packs, key=lambda pack: (self._checked.get(pack, _NEVER), pack))

    def record(self, pack: str, outcome: str, bytes_checked: int) -> None:
        """Remembers that every byte of a pack was read just now. `outcome`: `ok` or `damaged`."""
        self._checked[pack] = clock.now()
        try:
            self._ids[pack] = self._catalog().record_pack_check(
                pack, outcome, bytes_checked, self._ids.get(pack)
            )
        except CkptError as error:
            self._forgetful(error)

    @staticmethod
    def _forgetful(error: CkptError) -> None:
        _log.warning("what is checked is not remembered, as the catalog cannot be used: %s", error)
