"""Hostile documents, packs, sidecars, keys and surroundings by the thousand: mutated in their structure, sealed again, and read.

Whatever comes out is an error of our own or a value, in bounded memory. `make fuzz` reads a million of each kind
(CKPT_FUZZ=1000000), CI a seeded few. CKPT_TEST_SEED and the number that a failure names replay one input.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ckpt_core import CkptError, clock, config
from ckpt_core.format.header import BLANK, PAGE, PREFIX, SEAL_AT, read_header
from ckpt_core.format.parity import read_parity, rebuild
from ckpt_core.format.sealed import DIGEST_LENGTH, digest_text, seal
from ckpt_core.format.signing import SigningKey, TrustedKeys, new_key
from ckpt_core.hooks.configured import read_hook_file
from ckpt_core.maintenance.chunks import damaged_chunks
from ckpt_core.maintenance.flips import unflip_sealed
from ckpt_core.maintenance.parity import protect_all
from ckpt_core.model import MetricPoint
from ckpt_core.pipeline.loading import load_state
from ckpt_core.repository import MetricSegments, References, Repository, layout
from ckpt_core.stores import MemoryStore
from ckpt_core.tree import registry
from contract.hostile_places import surroundings
from contract.store_case import ATTEMPT, CHUNK, commit, new_repository

COUNT = int(os.environ.get("CKPT_FUZZ", "400"))
SEED = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
ALICE = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
TRUSTED = TrustedKeys({ALICE.name: "alice"})
GIT = {
    "HEAD": b"ref: refs/heads/main\n",
    "refs/heads/main": b"a" * 40 + b"\n",
    "packed-refs": b"# pack-refs\n" + b"b" * 40 + b" refs/heads/x\n",
}
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0,
    "", "x", "nan", "inf", "\0", "\x1b[2J", "../../etc/passwd", "a/../b", "/", "\\", "C:\\x", "%2e%2e", "é\u202e",
    "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "A" * 43, "0" * 26, "x" * 5000,
    "packs/x", "x/y.safetensors", "../x.safetensors", [], {}, [[]], [None] * 50, {"$tensor": 2**40},
    {"$tensor": 0}, {"$tuple": []}, {"$dict": [[1, 2, 3]]}, {"$object": {"codec": "path", "value": 3}},
    {"$float": "zz"}, {"$bytes": "!!"}, {"$int": "0x" + "f" * 9000}, {"": None}, {"__metadata__": {}},
)  # fmt: skip


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def mutated(value: Any, chance: random.Random) -> Any:
    """The document with one to four members replaced, removed, doubled or exchanged, at any depth."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randrange(1, 5)):
        places = list(_places(value))
        if not places:
            break
        parent, key = chance.choice(places)
        kind = chance.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif kind == 2:
            other, from_ = chance.choice(places)
            if from_ in other if isinstance(other, dict) else from_ < len(other):
                parent[key] = json.loads(json.dumps(other[from_]))
        elif kind == 3 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = parent[key] + chance.choice((-1, 1, 4096, -4096, 2**20, 2**61))
        elif kind == 4 and isinstance(parent[key], str) and parent[key]:
            at = chance.randrange(len(parent[key]))
            parent[key] = parent[key][:at] + chance.choice("/.\\%~\0A9é") + parent[key][at + 1 :]
        elif kind == 5 and chance.random() < 0.02:
            parent[key] = deep(chance.choice((99, 101, 200)))
        else:
            parent[key] = json.loads(json.dumps(chance.choice(NASTY)))
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def scribbled(data: bytes, chance: random.Random) -> bytes:
    """The bytes with some changed, cut off, or put in twice."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(4):
            case 0:
                out[at : at + 1] = chance.randbytes(1)
            case 1:
                del out[at : at + chance.randrange(1, 40)]
            case 2:
                out[at:at] = out[: chance.randrange(1, 40)]
            case _:
                out[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x00\x10" + bytes(6)))
    return bytes(out)


CONFIG: dict[str, Any] = {
    "hooks": [
        {
            "use": "tensor-health",
            "priority": "low",
            "timeout": 5.0,
            "limits": [1, 2.5],
            "deep": {"a": {"b": [1]}},
        },
        {"use": "event-log", "events": ["after_save", "new_best"], "enabled": False, "name": "log"},
        {"use": "disk-space", "max_failures": 3, "retry_after": 60, "on_error": "raise"},
    ]
}


def as_toml(value: Any) -> str:
    """A document as TOML: whatever is no table becomes what TOML has for it, a number too large among them."""
    if not isinstance(value, dict):
        return f"x = {_inline(value)}"
    lines = []
    for key, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
            for each in inner:
                lines += [
                    f"[[{json.dumps(key)}]]",
                    *(f"{json.dumps(k)} = {_inline(v)}" for k, v in each.items()),
                ]
        else:
            lines.append(f"{json.dumps(key)} = {_inline(inner)}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        parts = []
        for inner in value:  # one frame a level: some are hundreds deep
            parts.append(_inline(inner))
        return "[" + ", ".join(parts) + "]"
    return "1979-05-27" if value is None else json.dumps(value)


class Parsers:
    """A small store, and for each kind of object how to make a hostile one and what reads it."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "ckpt.toml"
        self.store = MemoryStore()
        self.repository = new_repository(self.store)
        state = {
            "w": np.arange(3 * CHUNK // 8),
            "t": (1, 2.5, b"x" * 2000),
            "e": np.empty((0, 3)),
            "n": {"a": None},
        }
        first = commit(self.repository, state, 1)
        second = commit(self.repository, state | {"v": np.ones(5)}, 2, first.manifest)
        self.manifest = second.key
        self.pack = first.packs[0][0]
        References(self.store).set_tag("digits", "good", first.manifest.id)
        self.tag = layout.reference_key("digits", "tags", "good")
        point = MetricPoint("loss", 1, 0.5, clock.now(), 1)
        self.segment = MetricSegments(self.store).append("digits", ATTEMPT, [point])
        protect_all(self.repository, 10)
        self.signed, self.signatures = first.key, layout.signature_key(first.key)
        self.repository.signatures.add(first, ALICE)
        self.keys = folder
        new_key(folder / "k")
        self.originals = {
            key: self.store.get(key)
            for key in (self.manifest, layout.pack_key(self.pack), self.tag, self.segment, "store.json",
                        layout.parity_key(self.pack), self.signatures)
        }  # fmt: skip

    def document(self, key: str, chance: random.Random) -> bytes:
        fixed = {"id", "experiment", "step"} if key == self.manifest and chance.random() < 0.9 else set()
        original = json.loads(self.originals[key])
        del original["sha256"]
        changed = mutated({name: value for name, value in original.items() if name not in fixed}, chance)
        whole = {name: original[name] if name in fixed else changed.get(name, ...) for name in original}
        whole |= {name: value for name, value in changed.items() if name not in original}
        return seal({name: value for name, value in whole.items() if value is not ...} or {"x": 0})

    def read_manifest(self, chance: random.Random) -> None:
        self.store.put(self.manifest, self.document(self.manifest, chance))
        manifest = self.repository.read(self.manifest).manifest
        load_state(self.repository, manifest, registry, verify=chance.choice(("full", "lazy")))

    def read_reference(self, chance: random.Random) -> None:
        self.store.put(self.tag, self.document(self.tag, chance))
        list(References(self.store).all())
        References(self.store).read(self.tag)

    def read_segment(self, chance: random.Random) -> None:
        self.store.put(self.segment, self.document(self.segment, chance))
        MetricSegments(self.store).read(self.segment)

    def read_store(self, chance: random.Random) -> None:
        self.store.put("store.json", self.document("store.json", chance))
        Repository.open(self.store)

    def read_forward(self, chance: random.Random) -> None:
        rows = [[0, "A" * 43, self.pack, 4096], [4096, "B" * 43, self.pack, 8192]]
        document = {"format": 1, "pack": self.pack, "rows": rows}
        self.store.put(layout.forward_key(self.pack), seal(mutated(document, chance) or {"x": 0}))
        self.repository.forward(self.pack)

    def read_pack(self, chance: random.Random) -> None:
        data = self.originals[layout.pack_key(self.pack)]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        if chance.random() < 0.5:
            header = mutated(header, chance)
        else:
            metadata = mutated(metadata, chance)
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
        size = -(-(len(text) + 8) // PAGE) * PAGE
        blank = bytearray((size - 8).to_bytes(8, "little") + text.ljust(size - 8))
        if blank[8:SEAL_AT] == PREFIX:
            blank[SEAL_AT : SEAL_AT + DIGEST_LENGTH] = BLANK
            digest = digest_text(hashlib.sha256(bytes(blank)).digest())
            blank[SEAL_AT : SEAL_AT + DIGEST_LENGTH] = digest.encode()
        self._examine_pack(bytes(blank) + data[8 + length :])

    def _examine_pack(self, data: bytes) -> None:
        array = np.frombuffer(data, np.uint8)

        def read(offset: int, length: int) -> Any:
            assert offset >= 0
            assert length >= 0
            return array[offset : offset + length]

        damaged_chunks(read, read_header(read, len(data), "p"), "sha256")

    def read_config(self, chance: random.Random) -> None:
        """A `ckpt.toml`, changed in its structure or scribbled upon, and the hooks that it names made."""
        text = as_toml(mutated(CONFIG, chance)).encode("utf-8", "replace")
        self.config.write_bytes(scribbled(text, chance) if chance.random() < 0.3 else text)
        read_hook_file(self.config).make_all()

    def read_sidecar(self, chance: random.Random) -> None:
        data = self.originals[layout.parity_key(self.pack)]
        length = int.from_bytes(data[:8], "little")
        document = json.loads(data[8 : 8 + length])
        del document["sha256"]
        changed = seal(mutated(document, chance) or {"x": 0})
        prefix = len(changed).to_bytes(8, "little")
        self._examine_sidecar(prefix + changed + data[8 + length : -(8 + length)] + changed + prefix)

    def _examine_sidecar(self, data: bytes) -> None:
        side = np.frombuffer(data, np.uint8)
        pack = np.frombuffer(self.originals[layout.pack_key(self.pack)], np.uint8)
        parity = read_parity(lambda offset, length: side[offset : offset + length], len(data), "p")
        rebuild(
            lambda offset, length: pack[offset : offset + length],
            lambda offset, length: side[offset : offset + length],
            parity,
            None,
        )

    def read_signature(self, chance: random.Random) -> None:
        self.store.put(self.signatures, self.document(self.signatures, chance))
        committed = self.repository.read(self.signed)
        self.repository.signatures.check(committed, TRUSTED)
        load_state(self.repository, committed.manifest, registry)

    def read_key(self, chance: random.Random) -> None:
        """A file that is said to be a key: of either half, scribbled upon."""
        half = chance.choice((self.keys / "k", self.keys / "k.pub"))
        file = self.keys / "hostile"
        file.write_bytes(scribbled(half.read_bytes(), chance))
        file.chmod(0o600)
        TrustedKeys.load(file) if half.suffix else SigningKey.load(file)

    def read_surroundings(self, chance: random.Random) -> None:
        """What a save reads around it (git's files, a job's variables), and what a lease says of its process. None of
        it is ever refused: it is told, or left out."""
        git = self.keys / ".git"
        (git / "refs" / "heads").mkdir(parents=True, exist_ok=True)
        for name, text in GIT.items():
            (git / name).write_bytes(scribbled(text, chance) if chance.random() < 0.5 else text)
        with surroundings(
            self.keys, SLURM_JOB_ID=os.fsdecode(scribbled(b"4711", chance).replace(b"\0", b""))
        ):
            facts = config.provenance()
        json.dumps(facts).encode()
        assert re.fullmatch("[0-9a-f]{40,64}", facts.get("git_commit", "0" * 40))
        config.has_ended(os.fsdecode(scribbled(config.process().encode(), chance)))
        if facts.get("git_commit") != "a" * 40:
            raise CkptError("it is left out")

    def read_bytes(self, chance: random.Random) -> None:
        """Any object, scribbled upon: its digest alone must tell."""
        key = chance.choice(sorted(self.originals))
        data = scribbled(self.originals[key], chance)
        if key.endswith(".safetensors"):
            self._examine_pack(data)
        elif key.endswith(".parity"):
            self._examine_sidecar(data)
        else:
            self.store.put(key, data)
            unflip_sealed(data, trials=False)
            self.repository.read(key)


KINDS = [name for name in vars(Parsers) if name.startswith("read_")]


@pytest.fixture
def parsers(tmp_path: Path) -> Parsers:
    return Parsers(tmp_path)


def attempt(read: Callable[[random.Random], None], kind: str, number: int) -> bool:
    """Whether one input was refused."""
    try:
        read(random.Random(f"{SEED} {kind} {number}"))
    except CkptError:
        return True
    except BaseException as error:
        raise AssertionError(f"{kind}, seed {SEED}, number {number}: {error!r}") from error
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_or_read(parsers: Parsers, kind: str) -> None:
    refused = sum(attempt(getattr(parsers, kind), kind, number) for number in range(COUNT))
    print(f"{kind}: {COUNT} inputs, {refused} refused, {COUNT - refused} read, nothing else")
    assert refused > COUNT // 4


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_takes_little_memory(parsers: Parsers, kind: str) -> None:
    tracemalloc.start()
    try:
        for number in range(60):
            attempt(getattr(parsers, kind), kind, number)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20
