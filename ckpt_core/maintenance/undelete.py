"""Bringing a forgotten checkpoint back, as long as everything that it needs is still there."""

from __future__ import annotations

from ckpt_core.errors import CkptError, NotFoundError, StoreError
from ckpt_core.maintenance.deletion import MAINTENANCE
from ckpt_core.repository import Committed, Repository, layout

__all__ = ["bring_back"]


def bring_back(repository: Repository, key: str) -> Committed:
    """Moves the manifest with this key in the trash to where it was. No prune runs meanwhile.

    Raises NotFoundError (kind `forgotten`) where it, or something that it needs, is gone for good, and then
    nothing is changed; StoreError (of kind `locked` while somebody prunes).
    """
    with repository.leases.take("undelete", lock=MAINTENANCE):
        try:
            committed = repository.read(key)
            reader = repository.reader(committed.manifest)
            try:
                reader.check_headers()
            finally:
                reader.close()
        except StoreError:
            raise
        except CkptError as error:
            raise NotFoundError(
                f"the checkpoint of {key} cannot be brought back any more: its bytes were reclaimed, or are damaged "
                f"({error})",
                kind="forgotten",
                key=key,
            ) from error
        repository.store.move(key, layout.live_key(key))
        repository.trash.drop(key)
        return repository.read(layout.live_key(key))
