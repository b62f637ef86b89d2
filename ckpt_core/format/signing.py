"""Ed25519 keys, and what they sign: that the manifest with this digest is that checkpoint of this store.

Keys are files that other programs make and read, too: PEM, PKCS #8 for the private ones. Where signatures lie is the
repository's to know. The library is `cryptography`, imported when there is a key.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard, final

from ckpt_core.config import environment
from ckpt_core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["PASSPHRASE", "KeyFiles", "SigningKey", "TrustedKeys", "fits", "message", "new_key", "public_keys"]

PASSPHRASE = "CKPT_KEY_PASSPHRASE"
"""The environment variable with the passphrase of a private key."""

KeyFiles: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Ed25519PublicKey]"
"""Public keys: a file of one or several, or a sequence of files and of key objects of `cryptography`."""

_LIMIT = 1 << 16
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_log = logging.getLogger("ckpt_core.format")


def message(store: str, checkpoint: str, manifest: str) -> bytes:
    """What is signed: the ids of a store and of a checkpoint in it, and the digest at the end of its manifest."""
    return f"ckpt-core signed checkpoint 1\nstore {store}\ncheckpoint {checkpoint}\nmanifest {manifest}\n".encode()


def fits(signature: str, key: str, signed: bytes) -> bool:
    """Whether the owner of a public key made this signature of these bytes. Raises MissingExtraError."""
    from_bytes = _library().ed25519.Ed25519PublicKey.from_public_bytes
    try:
        from_bytes(_raw(key)).verify(_raw(signature), signed)
    except Exception:  # InvalidSignature, or no point of the curve: in any case nobody's signature
        return False
    return True


@final
class SigningKey:
    """A private key. `name` is its public key, as signatures name it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.name = _text(private.public_key().public_bytes_raw())

    @classmethod
    def load(
        cls, given: str | os.PathLike[str] | Ed25519PrivateKey, passphrase: str | None = None
    ) -> SigningKey:
        """From a file, or a key object of `cryptography` (which a key service may have made).

        The passphrase of an encrypted file is CKPT_KEY_PASSPHRASE's unless it is given. Raises UsageError (kind
        `key`; kind `passphrase` where only that is missing), MissingExtraError.
        """
        library = _library()
        if isinstance(given, library.ed25519.Ed25519PrivateKey):
            return cls(given)
        if not _is_path(given):
            raise UsageError(f"{given!r} is neither a private key nor the path of one", kind="key")
        path = os.fspath(given)
        data = _read(path, "the signing key", private=True)
        secret = passphrase or environment(PASSPHRASE)
        try:
            found = library.serialization.load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            if secret is None:
                raise UsageError(
                    f"the key {path} is encrypted: set {PASSPHRASE}", kind="passphrase", path=path
                ) from None
            try:
                found = library.serialization.load_pem_private_key(data, secret.encode())
            except Exception as error:
                raise UsageError(
                    f"the key {path} cannot be decrypted: the passphrase is wrong", kind="key", path=path
                ) from error
        except Exception as error:
            raise _no_key(path, "a private key in PEM", "`ckpt keys new` makes one") from error
        if not isinstance(found, library.ed25519.Ed25519PrivateKey):
            raise _no_key(path, "an Ed25519 key", "`ckpt keys new` makes one")
        return cls(found)

    def sign(self, signed: bytes) -> str:
        """The signature of these bytes, in base64url."""
        return _text(self._private.sign(signed))


@final
class TrustedKeys:
    """The public keys of whom to trust, each with the file that it is from."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = dict(keys)

    @classmethod
    def load(cls, given: object) -> Self:
        """From files of one public key or several, from key objects of `cryptography`, or a sequence of both.

        Raises UsageError (kind `key`) for a file without any, and for an empty sequence; MissingExtraError.
        """
        each = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else [given]
        keys: dict[str, str] = {}
        for one in each:
            keys |= dict.fromkeys(public_keys(one), os.fspath(one) if _is_path(one) else "an object")
        if not keys:
            raise UsageError(
                "trusted_keys is empty, and so nobody is trusted: name a public key, or leave it out",
                kind="key",
            )
        return cls(keys)

    def __contains__(self, key: object) -> bool:
        return key in self.keys

    def of(self, names: Iterable[str]) -> Iterator[str]:
        """Those of the names that are trusted."""
        return (name for name in names if name in self.keys)


def public_keys(given: object) -> list[str]:
    """The public keys in a PEM file, or that of a key object. Raises UsageError (kind `key`), MissingExtraError."""
    library = _library()
    if isinstance(given, library.ed25519.Ed25519PublicKey):
        return [_text(given.public_bytes_raw())]
    if not _is_path(given):
        raise UsageError(f"{given!r} is neither a public key nor the path of one", kind="key")
    path = os.fspath(given)
    data = _read(path, "the trusted key")
    if b"PRIVATE KEY-----" in data:
        raise _no_key(
            path, "a public key: it is a private one", f"trust {path}.pub, and give this one to nobody"
        )
    found: list[str] = []
    for block in _PUBLIC.findall(data):
        try:
            key = library.serialization.load_pem_public_key(block)
        except Exception as error:
            raise _no_key(path, "a public key in PEM", "`ckpt keys new` makes one") from error
        if not isinstance(key, library.ed25519.Ed25519PublicKey):
            raise _no_key(path, "an Ed25519 key", "`ckpt keys new` makes one")
        found.append(_text(key.public_bytes_raw()))
    if not found:
        raise _no_key(path, "a public key in PEM", "`ckpt keys new` makes one")
    return found


def new_key(path: str | os.PathLike[str], passphrase: str | None = None) -> str:
    """Makes a pair of keys: `path`, which only its owner can read, and `path`.pub. Returns the public key.

    Raises UsageError (kind `exists`) where a file is there already, (kind `key`) where none can be written;
    MissingExtraError.
    """
    library = _library()
    serialization = library.serialization
    private = library.ed25519.Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    open_ = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    place = os.fspath(path)
    _write_new(place, secret, 0o600)
    try:
        _write_new(f"{place}.pub", open_, 0o666)
    except BaseException:
        with suppress(OSError):
            os.unlink(place)
        raise
    return _text(private.public_key().public_bytes_raw())


class _Library:
    """What is used of `cryptography`."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        self.serialization: Any = serialization
        self.ed25519: Any = ed25519


def _library() -> _Library:
    try:
        return _Library()
    except ImportError as error:
        raise MissingExtraError(
            "signatures need cryptography: pip install 'ckpt-core[sign]'", extra="sign"
        ) from error


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _is_path(given: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(given, (str, os.PathLike))


def _no_key(path: str, what: str, then: str) -> UsageError:
    return UsageError(f"{path} is not {what}; {then}", kind="key", path=path)


def _read(path: str, what: str, *, private: bool = False) -> bytes:
    """What a key file holds. A named pipe or a device is none, and neither holds the reader up nor floods it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT:
                raise UsageError(f"{what} {path} is no key file", kind="key", path=path)
            if private and stat.S_IMODE(status.st_mode) & 0o077:
                _log.warning("others than its owner can read %s %s: chmod 600 it", what, path)
            return os.read(fd, _LIMIT)
        finally:
            os.close(fd)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{what} {path!r} cannot be read: {reason}", kind="key", path=str(path)) from error


def _write_new(path: str, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is there already, and a key is never overwritten: choose another name",
            kind="exists",
            path=path,
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {error}", kind="key", path=path) from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError as error:
        with suppress(OSError):
            os.unlink(path)
        raise UsageError(f"{path} cannot be written: {error}", kind="key", path=path) from error
