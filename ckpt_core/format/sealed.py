"""JSON documents that carry their own SHA-256 as the last member: manifests, references, metric segments.

`{"a":1,"sha256":"<43 characters>"}`: the digest, base64url without padding, is taken over every byte
before `,"sha256":`. A flipped bit anywhere in such a document is found by reading it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from ckpt_core.errors import CorruptionError, FormatError

__all__ = [
    "COMPRESSED_FORMAT",
    "DIGEST_LENGTH",
    "FORMAT",
    "digest_bytes",
    "digest_text",
    "seal",
    "seal_digest",
    "unseal",
]

FORMAT = 1
"""The format of whatever a reader of format 1 can read."""

COMPRESSED_FORMAT = 2
"""That of manifests and packs with compressed chunks, which are in all else as in format 1."""

DIGEST_LENGTH = 43
"""Characters of a SHA-256 in base64url without padding."""

_KEY = b',"sha256":"'
_TAIL = len(_KEY) + DIGEST_LENGTH + 2

T = TypeVar("T")


def digest_text(digest: bytes) -> str:
    """32 bytes of a digest as the format writes them."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def digest_bytes(text: str) -> bytes | None:
    """The 32 bytes that the format writes as this text; None where no digest is written so."""
    try:
        digest = base64.urlsafe_b64decode(f"{text}=")
    except ValueError:
        return None
    return digest if len(text) == DIGEST_LENGTH and digest_text(digest) == text else None


def seal(document: msgspec.Struct | dict[str, Any]) -> bytes:
    """The document as JSON without white space, closed by its own digest."""
    body = msgspec.json.encode(document).removesuffix(b"}")
    assert len(body) > 1, "a sealed document is a JSON object with members"
    return body + _KEY + digest_text(hashlib.sha256(body).digest()).encode() + b'"}'


def seal_digest(data: bytes) -> str:
    """The digest at the end of a sealed document, which is not checked here."""
    return data[-(DIGEST_LENGTH + 2) : -2].decode(errors="replace")


def unseal(data: bytes, kind: type[T], where: str, newest: int = FORMAT) -> T:
    """The document in `data`. Raises CorruptionError where it is not what was written; FormatError where
    it is, but of a format beyond `newest`. `where` names it in messages."""
    body, tail = data[:-_TAIL], data[-_TAIL:]
    if len(data) <= _TAIL or not tail.startswith(_KEY) or not tail.endswith(b'"}'):
        _corrupt(where, "it is cut short or not a document of this engine")
    if seal_digest(data) != digest_text(hashlib.sha256(body).digest()):
        _corrupt(where, "its SHA-256 does not match")
    try:
        version = msgspec.json.decode(body + b"}", type=_Versioned).format
        if version > newest:
            raise FormatError(
                f"{where} is of format {version}; this version of ckpt-core reads up to {newest}: upgrade it",
                format=version,
                key=where,
            )
        return msgspec.json.decode(body + b"}", type=kind)
    except FormatError:
        raise
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CorruptionError(f"{where} is damaged: {error}", kind="document", key=where) from error


class _Versioned(msgspec.Struct):
    format: Annotated[int, msgspec.Meta(ge=1)]


def _corrupt(where: str, reason: str) -> NoReturn:
    raise CorruptionError(f"{where} is damaged: {reason}", kind="document", key=where)
