"""How names chosen by people (experiments, tags) become parts of keys, and which names may be chosen."""

from __future__ import annotations

import hashlib
import unicodedata
from urllib.parse import quote

from ckpt_core.errors import UsageError

__all__ = ["check_asked", "check_name", "check_tag", "encode_name", "fault_in_stored"]

_LONGEST = 255
_LONGEST_ENCODED = 160  # leaves room beside it in file names of 255 bytes
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_UNASSIGNED = frozenset({"Cn", "Co"})


def check_name(name: object, what: str) -> str:
    """`name` itself, if an experiment or a tag may bear it. Raises UsageError, which says what is wrong."""
    if not isinstance(name, str):
        raise UsageError(f"{what} must be a string, not {type(name).__name__}", kind="name", name=name)
    fault = _fault(name, _UNPRINTABLE | _UNASSIGNED)
    if fault:
        raise UsageError(f"{what} {name!a} {fault}: choose another name", kind="name", name=name)
    return name


def check_tag(tag: object) -> str:
    """`tag` itself, if it may be one: a name that means nothing else where a reference is asked for."""
    name = check_name(tag, "a tag")
    if name in ("latest", "best") or name.startswith("step="):
        raise UsageError(
            f"{name!r} has a meaning of its own in references: choose another tag", kind="name", name=name
        )
    return name


def check_asked(name: object, what: str) -> str:
    """`name` itself, if anything in a store may bear it. Raises UsageError."""
    if not isinstance(name, str):
        raise UsageError(f"{what} must be a string, not {type(name).__name__}", kind="name", name=name)
    fault = fault_in_stored(name)
    if fault:
        raise UsageError(f"{what} {name!a} {fault}: there is none in any store", kind="name", name=name)
    return name


def fault_in_stored(name: str) -> str | None:
    """What is wrong with a name that a document of a store holds; None where nothing is.

    Characters that this Python's Unicode does not know are let pass: they may be new ones.
    """
    return _fault(name, _UNPRINTABLE)


def _fault(name: str, banned: frozenset[str]) -> str | None:
    if not name or name.strip() != name:
        return "is empty, or begins or ends with a space"
    if len(name) > _LONGEST:
        return f"is longer than {_LONGEST} characters"
    if name.startswith((".", "-")):
        return f"begins with {name[0]!r}"
    for character in name:
        if character in "/\\@":
            return f"contains {character!r}"
        if unicodedata.category(character) in banned:
            return f"contains the unprintable character U+{ord(character):04X}"
    return None


def encode_name(name: str) -> str:
    """`name` as one part of a key: ASCII letters, digits and `-_.`, the rest percent-encoded.

    A long one is cut and ends with `~` and a part of its SHA-256. Upper case stays, so two names may differ
    by case alone.
    """
    data = name.encode(errors="surrogatepass")
    encoded = quote(data, safe="").replace("~", "%7E")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) <= _LONGEST_ENCODED:
        return encoded
    return f"{encoded[: _LONGEST_ENCODED - 24]}~{hashlib.sha256(data).hexdigest()[:20]}"
