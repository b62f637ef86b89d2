"""Only what a trusted key signed: checked where a checkpoint is about to be read, and nowhere else.

What is deleted, listed or retained is decided without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, final

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, SignatureError, UsageError
from ckpt_core.format.documents import Manifest
from ckpt_core.format.signing import SigningKey, TrustedKeys
from ckpt_core.maintenance.deletion import MAINTENANCE
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.answers import Answers, Listed
from ckpt_core.pipeline.resolve import Mode, candidates
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import Repository, Verify, layout
from ckpt_core.repository.layout import ManifestKey, parse_manifest_key

__all__ = ["Readable", "keys_of", "sign", "standing_manifest", "trusted_manifest"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.load")


def keys_of(signing_key: Any, trusted_keys: Any) -> tuple[SigningKey | None, TrustedKeys | None]:
    """The keys that a manager was given. Raises UsageError (kind `key`), MissingExtraError."""
    own = None if signing_key is None else SigningKey.load(signing_key)
    trusted = None if trusted_keys is None else TrustedKeys.load(trusted_keys)
    if own is not None and trusted is not None and own.name not in trusted:
        raise UsageError(
            f"what signing_key= signs, this manager would refuse to load: add its public key {own.name} to "
            "trusted_keys=",
            kind="key",
        )
    return own, trusted


def trusted_manifest(repository: Repository, checkpoint: Checkpoint, verify: Verify = "full") -> Manifest:
    """The manifest of a checkpoint that is about to be read; where only trusted keys count, if one of them signed it.

    Raises SignatureError, UsageError where no byte is to be checked, and as `Repository.read`.
    """
    trusted = repository.trusted
    if trusted is not None and verify == "off":
        raise UsageError(
            "verify='off' checks no byte, so no signature would count: leave it out", kind="option"
        )
    committed = repository.read(checkpoint.key)
    if trusted is not None:
        repository.signatures.check(committed, trusted, repository.spare)
    return committed.manifest


def standing_manifest(workspace: Workspace, checkpoint: Checkpoint, verify: Verify = "lazy") -> Manifest:
    """The same, remembered for as long as it stands unchanged; not where only trusted keys count: who asks for
    signatures wants to see what stands there now."""
    if workspace.repository.trusted is None:
        return workspace.manifests.read(checkpoint.key).manifest
    return trusted_manifest(workspace.repository, checkpoint, verify)


@final
class Readable:
    """What references mean to somebody who is about to read.

    Without trusted keys, what the index says. With them it is as if there were nothing else than what they signed,
    and the manifests answer, not the catalog: to alter that is to say what is best.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._index = workspace.index
        self._repository = workspace.repository
        self._signed: set[str] = set()  # keys of manifests; one without a signature may get it yet

    def candidates(
        self, ref: str, *, experiment: str | None, metric: str | None = None, mode: Mode = "min"
    ) -> Iterator[Checkpoint]:
        """As `resolve.candidates`. Raises SignatureError for what there is, and nobody trusted signed."""
        if self._repository.trusted is None:
            return candidates(self._index, ref, experiment=experiment, metric=metric, mode=mode)
        try:
            return candidates(self, ref, experiment=experiment, metric=metric, mode=mode)
        except (NotFoundError, CorruptionError):
            there = next(candidates(self._index, ref, experiment=experiment, metric=metric, mode=mode))
            trusted_manifest(self._repository, there)
            raise

    def passed_over(
        self, chosen: Checkpoint, ref: str, *, experiment: str | None, metric: str | None, mode: Mode
    ) -> list[tuple[ManifestKey, CkptError]]:
        """What would have been read in the place of `chosen`, had a trusted key signed it."""
        if self._repository.trusted is None:
            return []
        try:
            first = next(candidates(self._index, ref, experiment=experiment, metric=metric, mode=mode))
        except CkptError:
            return []  # what nobody signed may make it mean too much: it is as if that were not there
        try:
            if first.id != chosen.id:
                trusted_manifest(self._repository, first)
        except SignatureError as error:
            parsed = parse_manifest_key(first.key)
            return [(parsed, error)] if parsed is not None else []
        except CkptError:
            pass  # damage is told by those who read
        return []

    # -- what `resolve.candidates` asks --------------------------------------------------------------------

    def synchronise(self, experiment: str | None = None) -> None:
        """There is nothing to be kept in line."""

    def ask(self, question: Callable[[Answers], T], experiment: str | None = None) -> T:
        """What the manifests that a trusted key signed answer."""
        found = self._index.standing(experiment)
        return question(Listed([checkpoint for checkpoint in found if self._is_signed(checkpoint)]))

    def damaged(self, experiment: str | None = None) -> list[tuple[ManifestKey, CkptError]]:
        """Manifests that cannot be read."""
        return self._index.damaged(experiment)

    def refuse_if_gone(self) -> None:
        """As the index does."""
        self._index.refuse_if_gone()

    def _is_signed(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.key not in self._signed:
            try:
                trusted_manifest(self._repository, checkpoint)
            except (SignatureError, CorruptionError, NotFoundError) as error:
                _log.debug("%s", error)
                return False
            self._signed.add(checkpoint.key)
        return True


def sign(workspace: Workspace, checkpoint: Checkpoint, key: SigningKey) -> None:
    """Signs a checkpoint as it stands. Durable when this returns. Raises StoreError (of kind `locked` while somebody
    prunes or signs), NotFoundError, CorruptionError."""
    repository = workspace.repository
    facts = {"experiment": checkpoint.experiment, "step": checkpoint.step, "key": key.name}
    with (
        repository.leases.take("sign", lock=MAINTENANCE),
        workspace.audited("sign", checkpoint.id, **facts),
    ):
        repository.signatures.add(repository.read(checkpoint.key), key)
    if workspace.mirror is not None:
        workspace.mirror.note(layout.signature_key(checkpoint.key))
