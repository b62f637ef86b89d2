"""Where each kind of object stands in a store. Keys are made and taken apart here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckpt_core import ids
from ckpt_core.format.names import encode_name

__all__ = [
    "DOCUMENT_LIMIT",
    "EXPERIMENTS",
    "FORWARD_SUFFIX",
    "GRACE_SUFFIX",
    "HEALING",
    "LEASES",
    "MANIFESTS",
    "METRICS",
    "MIRROR_DOCUMENT",
    "PACKS",
    "PARITY_SUFFIX",
    "QUARANTINE",
    "REFERENCES",
    "SIGNATURES",
    "STORE_DOCUMENT",
    "TRASH",
    "WITHDRAWN",
    "AttemptKey",
    "ExperimentTagKey",
    "ManifestKey",
    "ReferenceKey",
    "attempt_key",
    "attempt_word_key",
    "experiment_tag_key",
    "forward_key",
    "grace_key",
    "granted_key",
    "lease_key",
    "live_key",
    "manifest_key",
    "manifest_names",
    "pack_key",
    "pack_name",
    "pack_owner",
    "parity_key",
    "parse_attempt_key",
    "parse_experiment_tag_key",
    "parse_manifest_key",
    "parse_reference_key",
    "quarantine_key",
    "reference_key",
    "segment_key",
    "segments_folder",
    "signature_key",
    "signed_key",
    "trash_key",
    "withdrawn_key",
]

DOCUMENT_LIMIT = 1 << 30
"""Bytes of a document, over which it is not read."""

STORE_DOCUMENT = "store.json"
MIRROR_DOCUMENT = "mirror.json"
MANIFESTS = "checkpoints"
PACKS = "packs"
TRASH = "trash"
REFERENCES = "refs"
METRICS = "metrics"
SIGNATURES = "signatures"
EXPERIMENTS = "experiments"
LEASES = "leases"
FORWARD_SUFFIX = ".forward.json"
GRACE_SUFFIX = ".grace.json"
PARITY_SUFFIX = ".parity"
QUARANTINE = "quarantine"
HEALING = f"{QUARANTINE}/healing"
"""Where a repair writes what it heals, until it is proved and takes the damaged object's place."""
WITHDRAWN = f"{TRASH}/{PACKS}"
"""Where a pack waits between being taken out of circulation and being deleted."""


class ManifestKey(NamedTuple):
    """A manifest's key taken apart. `folder` is the experiment's name as `encode_name` writes it."""

    key: str
    folder: str
    step: int
    id: str


def manifest_key(experiment: str, step: int, checkpoint: str) -> str:
    """`checkpoints/<experiment>/<12-digit step>-<checkpoint id>.json`."""
    return f"{MANIFESTS}/{encode_name(experiment)}/{step:012d}-{checkpoint}.json"


def manifest_names(steps: Mapping[str, int]) -> dict[str, str]:
    """The last parts of the keys of these checkpoints' manifests, and whose each is; `steps` by their ids."""
    return {f"{step:012d}-{checkpoint}.json": checkpoint for checkpoint, step in steps.items()}


def parse_manifest_key(key: str) -> ManifestKey | None:
    """The parts of a manifest's key (published, in the trash or in quarantine); None for any other object."""
    parts = key.removeprefix(f"{QUARANTINE}/").split("/")
    if len(parts) != 3 or parts[0] not in (MANIFESTS, TRASH) or not parts[2].endswith(".json"):
        return None
    step, _, checkpoint = parts[2][:-5].partition("-")
    if not (step.isdecimal() and step.isascii() and len(step) >= 12 and ids.is_ulid(checkpoint)):
        return None
    return ManifestKey(key, parts[1], int(step), checkpoint)


class ReferenceKey(NamedTuple):
    """A reference's key taken apart. `folder` and `name` are as `encode_name` writes them."""

    key: str
    folder: str
    kind: str
    name: str


def reference_key(experiment: str, kind: str, name: str) -> str:
    """`refs/<experiment>/<kind>/<name>.json`."""
    return f"{REFERENCES}/{encode_name(experiment)}/{kind}/{encode_name(name)}.json"


def parse_reference_key(key: str) -> ReferenceKey | None:
    """The parts of a tag's or pin's key; None for any other object."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != REFERENCES or parts[2] not in ("tags", "pins"):
        return None
    name = parts[3].removesuffix(".json")
    return ReferenceKey(key, parts[1], parts[2], name) if name != parts[3] else None


def segment_key(experiment: str, attempt: int) -> str:
    """`metrics/<experiment>/<6-digit attempt>-<new id>.json`."""
    return f"{segments_folder(experiment)}/{attempt:06d}-{ids.new_ulid()}.json"


def segments_folder(experiment: str) -> str:
    """Where the metric segments of an experiment are."""
    return f"{METRICS}/{encode_name(experiment)}"


def signature_key(key: str) -> str:
    """Where the signatures of the checkpoint lie whose manifest has this key, be it in the trash or in quarantine."""
    return f"{SIGNATURES}/{key.removeprefix(f'{QUARANTINE}/').partition('/')[2]}"


def signed_key(key: str) -> str:
    """The manifest, where it is not forgotten, that signatures are of."""
    return MANIFESTS + key[len(SIGNATURES) :]


class AttemptKey(NamedTuple):
    """The key of an attempt's beginning, or (with `word`) of what it said later, taken apart."""

    key: str
    folder: str
    number: int
    id: str
    word: str | None


def attempt_key(experiment: str, number: int, attempt: str) -> str:
    """`experiments/<experiment>/attempts/<6-digit number>-<attempt id>.json`."""
    return f"{EXPERIMENTS}/{encode_name(experiment)}/attempts/{number:06d}-{attempt}.json"


def attempt_word_key(experiment: str, number: int, attempt: str) -> str:
    """`experiments/<experiment>/attempts/<6-digit number>-<attempt id>-<new id>.json`."""
    beginning = attempt_key(experiment, number, attempt).removesuffix(".json")
    return f"{beginning}-{ids.new_ulid()}.json"


def parse_attempt_key(key: str) -> AttemptKey | None:
    """The parts of the key of an attempt's document; None for any other object."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != EXPERIMENTS or parts[2] != "attempts" or not parts[3].endswith(".json"):
        return None
    number, *named = parts[3][:-5].split("-")
    if not (number.isdecimal() and number.isascii() and 6 <= len(number) <= 19 and 1 <= len(named) <= 2):
        return None
    if not all(ids.is_ulid(each) for each in named):
        return None
    return AttemptKey(key, parts[1], int(number), named[0], named[1] if len(named) == 2 else None)


class ExperimentTagKey(NamedTuple):
    """The key of an experiment's tag taken apart. `folder` and `name` are as `encode_name` writes them."""

    key: str
    folder: str
    name: str


def experiment_tag_key(experiment: str, tag: str) -> str:
    """`experiments/<experiment>/tags/<tag>.json`."""
    return f"{EXPERIMENTS}/{encode_name(experiment)}/tags/{encode_name(tag)}.json"


def parse_experiment_tag_key(key: str) -> ExperimentTagKey | None:
    """The parts of the key of an experiment's tag; None for any other object."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != EXPERIMENTS or parts[2] != "tags" or not parts[3].endswith(".json"):
        return None
    return ExperimentTagKey(key, parts[1], parts[3][:-5])


def trash_key(key: str) -> str:
    """Where a forgotten manifest waits for prune."""
    return TRASH + key[len(MANIFESTS) :]


def live_key(key: str) -> str:
    """Where a manifest in the trash stood before it was forgotten."""
    return MANIFESTS + key[len(TRASH) :]


def grace_key(key: str) -> str:
    """The note of grace beside a manifest in the trash."""
    return key.removesuffix(".json") + GRACE_SUFFIX


def granted_key(key: str) -> str:
    """The manifest in the trash that a note of grace is about."""
    return key.removesuffix(GRACE_SUFFIX) + ".json"


def quarantine_key(key: str) -> str:
    """Where a damaged object waits for what can heal it."""
    return f"{QUARANTINE}/{key}"


def pack_name(experiment: str, owner: str, rank: int, number: int) -> str:
    """A pack's name below `packs/`, as manifests give it."""
    return f"{encode_name(experiment)}/{owner}-{rank}-{number}.safetensors"


def pack_owner(name: str) -> str:
    """The id of the checkpoint that a pack was first written for."""
    return name.rpartition("/")[2][:26]


def lease_key(lease: str) -> str:
    """`leases/<lease id>.json`."""
    return f"{LEASES}/{lease}.json"


def withdrawn_key(name: str) -> str:
    """The key of a pack that prune has taken out of circulation."""
    return f"{WITHDRAWN}/{name}"


def pack_key(name: str) -> str:
    """The key of a pack."""
    return f"{PACKS}/{name}"


def forward_key(name: str) -> str:
    """The key of what stands in place of a pack that was rewritten."""
    return f"{PACKS}/{name}{FORWARD_SUFFIX}"


def parity_key(name: str) -> str:
    """The key of a pack's sidecar."""
    return f"{PACKS}/{name.removesuffix('.safetensors')}{PARITY_SUFFIX}"
