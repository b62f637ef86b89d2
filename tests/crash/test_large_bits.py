"""Single bits flipped anywhere in a store of a real size, on a real disk: found, never handed out as data, healed.

After each flip only what it touches is verified, loaded and healed, by the engine's own code: to verify all of the
store for each would take days. A small sample in CI; `make bits` flips ten thousand (CKPT_LARGE_BITS=10000).
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CorruptionError
from ckpt_core.format.documents import Manifest
from ckpt_core.maintenance.documents import Document, documents, fault_of, heal_document
from ckpt_core.maintenance.healing import heal_pack
from ckpt_core.maintenance.parity import check_sidecar, protect, protect_all
from ckpt_core.maintenance.sources import Sources
from ckpt_core.maintenance.verify import CheckpointVerifier, verify
from ckpt_core.repository import References, Repository, layout
from ckpt_core.stores import LocalStore
from contract.store_case import commit, load, new_repository, same

pytest.importorskip("zfec")

FLIPS = int(os.environ.get("CKPT_LARGE_BITS", "60"))
CHUNK = (
    128 << 10
)  # over the length up to which a single bit is undone by trial: parity or the mirror must do it
CHECKPOINTS, MEGABYTES = (32, 2.0) if FLIPS > 1000 else (6, 0.5)
PERCENT = 10


@cache
def state_of(step: int) -> dict[str, Any]:
    size = int(MEGABYTES * (1 << 20))
    return {
        "frozen": np.random.default_rng(0).integers(0, 255, size, np.uint8),
        "w": np.random.default_rng(step).integers(0, 255, size, np.uint8),
        "small": {f"t{i}": np.full(5, step + i, np.float32) for i in range(20)},
        "step": step,
    }


class Case:
    """A store with parity, and a copy of it as the mirror."""

    def __init__(self, folder: Path) -> None:
        self.root, self.copy = folder / "store", folder / "mirror"
        self.store = LocalStore(self.root)
        self.repository = new_repository(self.store, CHUNK)
        self.steps: dict[str, int] = {}
        self.manifests: dict[str, Manifest] = {}
        base = None
        for step in range(1, CHECKPOINTS + 1):
            made = commit(self.repository, state_of(step), step, base)
            self.steps[made.key], self.manifests[made.key], base = step, made.manifest, made.manifest
        References(self.store).set_tag("digits", "good", made.manifest.id)
        protect_all(self.repository, PERCENT)
        shutil.copytree(self.root, self.copy)
        self.mirror = Repository.open(LocalStore(self.copy))
        self.documents = {document.key: document for document in documents(self.repository)}
        self.files = {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
            and path.suffix in (".json", ".safetensors", ".parity")
            and path.name != "mirror.json"
        }

    def flip(self, key: str, bit: int) -> None:
        with open(self.root / key, "r+b") as file:
            file.seek(bit // 8)
            (byte,) = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))

    def sound(self, key: str) -> bool:
        return (self.root / key).read_bytes() == (self.copy / key).read_bytes()

    def put_back(self, key: str) -> None:
        shutil.copyfile(self.copy / key, self.root / key)

    # -- found ------------------------------------------------------------------------------------

    def found(self, key: str) -> bool:
        """Whether verify tells of it: `check_pack` is what it does for one pack and its parity."""
        if (document := self.document(key)) is not None:
            return fault_of(document) is not None
        return CheckpointVerifier(self.repository).check_pack(pack_of(key)) is False

    def document(self, key: str) -> Document | None:
        return self.documents.get(key)

    # -- not handed out ---------------------------------------------------------------------------

    def refused_or_right(self, key: str) -> bool:
        """Loads what touches the object; whether it was refused. What is not refused must be what was saved."""
        if key in self.steps:
            with pytest.raises(CorruptionError):
                load(self.repository, key)
            return True
        name = pack_of(key)
        for manifest_key, manifest in self.manifests.items():
            if name not in {pack.name for pack in manifest.packs}:
                continue
            try:
                loaded = load(self.repository, manifest_key)
            except CorruptionError:
                return True
            assert same(loaded, state_of(self.steps[manifest_key]))
            return False  # one that needs it tells for all
        return False

    # -- healed -----------------------------------------------------------------------------------

    def heal(self, key: str, *, mirror: bool) -> None:
        there = self.mirror if mirror else None
        if (document := self.document(key)) is not None:
            heal_document(self.store, document, there.store if there is not None else None)
        elif key.endswith(layout.PARITY_SUFFIX):
            assert check_sidecar(self.repository, pack_of(key), read_data=True) is not None
            protect(self.repository, pack_of(key), PERCENT, replace=True)
        else:
            name = pack_of(key)
            record = next(
                pack for manifest in self.manifests.values() for pack in manifest.packs if pack.name == name
            )
            if mirror:  # and not by the parity that stands beside it
                (self.root / layout.parity_key(name)).rename(self.root / "away")
            heal_pack(Sources(self.repository, there, lambda: None), name, record)
            if mirror:
                (self.root / "away").rename(self.root / layout.parity_key(name))


def pack_of(key: str) -> str:
    name = key.removeprefix(f"{layout.PACKS}/")
    return (
        name.removesuffix(layout.PARITY_SUFFIX) + ".safetensors"
        if name.endswith(layout.PARITY_SUFFIX)
        else name
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    case = Case(tmp_path_factory.mktemp("bits"))
    assert verify(case.repository).ok
    yield case
    assert verify(case.repository).ok


def test_ten_thousand_bits(case: Case) -> None:
    seed = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
    chance = random.Random(seed)
    keys, sizes = list(case.files), list(case.files.values())
    total, healed, refused = Counter[str](), Counter[str](), 0
    for number in range(FLIPS):
        # One of each kind of object first: by their sizes alone most flips are in packs.
        key = keys[number] if number < len(keys) else chance.choices(keys, sizes)[0]
        bit = chance.randrange(8 * case.files[key])
        where = f"seed={seed}: bit {bit % 8} of byte {bit // 8} of {key}"
        case.flip(key, bit)
        assert case.found(key), where
        refused += case.refused_or_right(key) if key.startswith((layout.PACKS, layout.MANIFESTS)) else 0
        source = ("parity", "mirror")[number % 2]
        case.heal(key, mirror=source == "mirror")
        total[source] += 1
        healed[source] += case.sound(key)
        if not case.sound(key):
            case.put_back(key)
    size = sum(sizes) >> 20
    shares = ", ".join(f"{healed[s]} of {total[s]} healed with the {s}" for s in total)
    print(f"seed={seed}: {FLIPS} bits of {size} MB in {len(keys)} objects flipped, all found; "
          f"{refused} loads refused, none wrong; {shares}")  # fmt: skip
    assert healed["mirror"] == total["mirror"]
    assert healed["parity"] > 0.9 * total["parity"]
