"""Who signed which checkpoint: a small sealed object for each that somebody signed.

It bears the name of the manifest and lies in a folder of its own, so a manifest can go to the trash, to quarantine and
back, and be copied, without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, final

from ckpt_core.errors import CorruptionError, ObjectNotFoundError, SignatureError
from ckpt_core.format.documents import Manifest, SignatureDocument, SignatureRow
from ckpt_core.format.names import encode_name
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.format.signing import SigningKey, TrustedKeys, fits, message
from ckpt_core.repository import layout
from ckpt_core.repository.spare import Spare
from ckpt_core.stores import ObjectInfo, Store

__all__ = ["Signatures", "Signed"]

_LIMIT = 1 << 16


class Signed(Protocol):
    """A manifest, its key, and the digest at its end."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def key(self) -> str: ...
    @property
    def digest(self) -> str: ...


@final
class Signatures:
    """The signatures in a store. Thread-safe, but for two that add to the same one (who does so holds a lock)."""

    def __init__(self, store: Store, store_id: str) -> None:
        self._store = store
        self._store_id = store_id

    def add(self, committed: Signed, key: SigningKey) -> None:
        """Signs a checkpoint, or one that is about to be published. Durable when this returns; may be repeated.

        Signatures of others stay, unless they are damaged. Raises StoreError, MissingExtraError.
        """
        signed = SignatureRow(key.name, key.sign(self._message(committed)))
        try:
            others = [row for row in self.of(committed) if row.key != key.name]
        except CorruptionError:
            others = []
        document = SignatureDocument(
            experiment=committed.manifest.experiment,
            checkpoint=committed.manifest.id,
            signatures=(*others, signed),
        )
        self._store.put(layout.signature_key(committed.key), seal(document))

    def of(self, committed: Signed) -> tuple[SignatureRow, ...]:
        """What lies there as the signatures of a checkpoint: none of them is checked. Raises CorruptionError,
        FormatError, StoreError."""
        return _rows(self._store, layout.signature_key(committed.key))

    def fits(self, committed: Signed, row: SignatureRow) -> bool:
        """Whether a signature is one of this very checkpoint by the key that it names. Raises MissingExtraError."""
        return fits(row.signature, row.key, self._message(committed))

    def check(self, committed: Signed, trusted: TrustedKeys, spare: Spare | None = None) -> str:
        """The trusted key by which a checkpoint is signed, as it is. Raises SignatureError, StoreError,
        MissingExtraError. Where the signatures are damaged or lost, those in the spare store count, if there is one.
        """
        manifest, key = committed.manifest, layout.signature_key(committed.key)
        facts = {"checkpoint": manifest.id, "step": manifest.step, "key": committed.key}
        name = f"checkpoint {manifest.id} (step {manifest.step} of {manifest.experiment!r})"
        try:
            rows = self._found(key, spare)
        except ObjectNotFoundError:
            raise SignatureError(
                f"{name} is not signed, and only what a trusted key signed is loaded. If you know that it is yours, "
                "`ckpt sign` it",
                kind="unsigned",
                **facts,
            ) from None
        except CorruptionError as error:
            raise SignatureError(
                f"the signatures of {name} are damaged: `ckpt repair`, or, if you know that it is yours, `ckpt sign` "
                f"it again ({error})",
                kind="unsigned",
                **facts,
            ) from error
        own = list(trusted.of(row.key for row in rows))
        for row in rows:
            if row.key in trusted and self.fits(committed, row):
                return row.key
        if own:
            raise SignatureError(
                f"the signature of {name} by {', '.join(own)} does not fit: the checkpoint is not what was signed, or "
                "the signature is that of another one, or of another store. Do not load it before you know who "
                "wrote to the store",
                kind="forged",
                **facts,
            )
        raise SignatureError(
            f"{name} is signed by {', '.join(row.key for row in rows[:3])}, and by nobody who is trusted: trust that "
            "key, or `ckpt sign` it with one of yours if you know where it is from",
            kind="untrusted",
            **facts,
        )

    def read(self, key: str) -> SignatureDocument:
        """The object under a key. Raises CorruptionError, FormatError, ObjectNotFoundError."""
        return _document(self._store, key)

    def infos(self) -> Iterator[ObjectInfo]:
        """All that lies where signatures do."""
        return self._store.list(layout.SIGNATURES)

    def drop(self, key: str) -> None:
        """Removes the signatures of a checkpoint, by the key of its manifest; none is no error."""
        self._store.delete(layout.signature_key(key))

    def settle(self, key: str) -> None:
        """Removes them if its manifest stands nowhere: not outside, nor in the trash, nor in quarantine."""
        signatures = layout.signature_key(key)
        live = layout.signed_key(signatures)
        places = (live, layout.trash_key(live), layout.quarantine_key(live))
        if self._store.exists(signatures) and not any(map(self._store.exists, places)):
            self._store.delete(signatures)

    def _message(self, committed: Signed) -> bytes:
        return message(self._store_id, committed.manifest.id, committed.digest)

    def _found(self, key: str, spare: Spare | None) -> tuple[SignatureRow, ...]:
        try:
            return _document(self._store, key).signatures
        except (CorruptionError, ObjectNotFoundError) as error:
            if spare is None:
                raise
            return spare.instead(error, lambda store: _document(store, key).signatures)


def _rows(store: Store, key: str) -> tuple[SignatureRow, ...]:
    try:
        return _document(store, key).signatures
    except ObjectNotFoundError:
        return ()


def _document(store: Store, key: str) -> SignatureDocument:
    found = unseal(store.get(key, limit=_LIMIT), SignatureDocument, key)
    parsed = layout.parse_manifest_key(layout.signed_key(key))
    if parsed is None or (parsed.folder, parsed.id) != (encode_name(found.experiment), found.checkpoint):
        raise CorruptionError(
            f"{key} is of another checkpoint: it was moved or copied", kind="document", key=key
        )
    return found
