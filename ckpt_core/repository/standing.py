"""Whether a store is there at all: a folder that somebody emptied lists as one in which nothing was ever saved."""

from __future__ import annotations

import logging
from contextlib import suppress

from ckpt_core.errors import ObjectExistsError, StoreError
from ckpt_core.format.documents import StoreDocument
from ckpt_core.format.sealed import seal
from ckpt_core.repository import layout
from ckpt_core.stores import Store

__all__ = ["put_document_back", "refuse_if_gone"]

_log = logging.getLogger("ckpt_core.repository")


def refuse_if_gone(store: Store) -> None:
    """For who lists a store that was opened, and finds nothing. Raises StoreError (kind `gone`) where it is not there
    any more."""
    if not store.exists(layout.STORE_DOCUMENT):
        raise StoreError(
            f"the store {store.url} was here and is gone: bring its disk or folder back; a manager that is "
            "opened anew begins as what its mirror says, if it has one",
            kind="gone",
            url=store.url,
        )


def put_document_back(store: Store, document: StoreDocument) -> None:
    """Puts `store.json` back where it is gone: what is acknowledged from here on is to be found again."""
    if not store.exists(layout.STORE_DOCUMENT):
        _log.warning("%s/%s was gone and is put back", store.url, layout.STORE_DOCUMENT)
        with suppress(ObjectExistsError):
            store.put_new(layout.STORE_DOCUMENT, seal(document))
