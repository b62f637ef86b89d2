"""`docs/format.md` is complete and true: its tables against the code, its hand checks against real stores."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import string
import subprocess
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ckpt_core import CheckpointManager, clock, ids
from ckpt_core.config import provenance
from ckpt_core.format import documents
from ckpt_core.format.names import encode_name
from ckpt_core.format.sealed import FORMAT, seal
from ckpt_core.repository.layout import withdrawn_key
from ckpt_core.repository.repository import CHUNK_BYTES
from ckpt_core.repository.writer import MAX_PACKS
from ckpt_core.stores import LocalStore
from ckpt_core.tree import dtypes
from ckpt_core.tree.builtin import register_builtin
from ckpt_core.tree.codecs import CodecRegistry
from ckpt_core.tree.nodes import INLINE_BYTES, MAX_DEPTH, TAGS

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
STRUCTS = [
    each
    for name in documents.__all__
    if isinstance(each := getattr(documents, name), type) and issubclass(each, msgspec.Struct)
]
HEADINGS = {
    "StoreDocument": "`store.json`",
    "Manifest": "Manifest",
    "AttemptRecord": "Attempt",
    "AttemptStart": "Attempt start",
    "AttemptWord": "Attempt word",
    "ExperimentTag": "Experiment tag",
    "TensorRecord": "Tensor record",
    "Shard": "Shard",
    "Chunk": "Chunk",
    "PackRecord": "Pack record",
    "Reference": "Reference",
    "SignatureDocument": "Signatures",
    "SignatureRow": "Signature",
    "MetricSegment": "Metric segment",
    "MetricRow": "Metric row",
    "Forward": "Forward",
    "ForwardRow": "Forward row",
    "ParityDocument": "Parity",
    "MirrorDocument": "`mirror.json`",
    "MirrorNote": "Mirror note",
    "Grace": "Grace",
    "Lease": "Lease",
}


def section(heading):
    """The text below a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert found, f"the page has no section {heading!r}"
    return found[1]


def rows(heading):
    """The cells of each row of a section's tables, without the heads."""
    lines = section(heading).splitlines()
    tables = [line for n, line in enumerate(lines) if line.startswith("|") and not _is_head(lines, n)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in tables]


def _is_head(lines, n):
    return any(line.startswith("|--") for line in lines[n : n + 2])


def words(cell):
    return re.findall(r"`([^`]+)`", cell)


def block(language, containing):
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in code]
    assert len(found) == 1
    return found[0]


def test_every_document_has_a_section():
    assert HEADINGS.keys() == {each.__name__ for each in STRUCTS}


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_member_of_every_document_stands_in_its_table(struct):
    named = [row[0].strip("`") for row in rows(HEADINGS[struct.__name__])]
    array = struct.__struct_config__.array_like
    assert named == list(struct.__struct_fields__), "the members, in the order in which they are written"
    assert ("An array of" in section(HEADINGS[struct.__name__])) == array


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_optional_members_are_said_to_be(struct):
    optional = {row[0].strip("`") for row in rows(HEADINGS[struct.__name__]) if "; optional, " in row[2]}
    left_out = struct.__struct_config__.omit_defaults
    expected = [f.name for f in msgspec.structs.fields(struct) if left_out and not f.required]
    assert optional == set(expected)


def test_every_member_of_the_writer_has_a_row():
    named = {word for row in rows("Writer") for word in words(row[0])}
    assert provenance().keys() <= named
    assert {"job", "git_commit", "reason"} <= named


def test_every_tag_of_the_tree_has_a_row():
    tagged = [row[0].strip("`") for row in rows("The tree of the state") if row[0].startswith("`$")]
    assert sorted(tagged) == sorted(TAGS)


def test_every_codec_has_a_row():
    fresh = CodecRegistry()
    register_builtin(fresh)
    named = [w for row in rows("The tree of the state") if "$" not in row[0] for w in words(row[0])]
    assert {name for name in named if not name.startswith("torch.")} == fresh._object_names.keys()
    assert fresh._tensor_names.keys() <= set(words(rows("Tensor record")[-1][2]))


def test_every_dtype_has_a_row_with_its_bits():
    bits_of: dict[str, int] = {}
    as_bytes, others = set(), []
    for names, bits, _, stored in rows("Element types"):
        numbers = [int(number) for number in bits.split(", ")] if bits else []
        for n, name in enumerate(words(names)):
            if not numbers:
                others.append(name.replace("\\|", "|"))
                continue
            bits_of[name] = numbers[n % len(numbers)]
            if stored == "`U8`":
                as_bytes.add(name)
    assert bits_of == dtypes.SAFETENSORS_BITS | dtypes._OWN_BITS
    assert as_bytes == dtypes._OWN_BITS.keys()
    examples = [name for name in others if name != "ml:"]
    assert len(examples) >= 8
    for name in examples:
        assert dtypes.name_of_numpy(dtypes.numpy_dtype(name)) == name


def test_numbers_of_the_page_are_those_of_the_code():
    assert f"**format {FORMAT}**" in PAGE
    assert f"{CHUNK_BYTES} unless" in section("`store.json`")
    assert f"at most {INLINE_BYTES} bytes" in PAGE
    assert f"at most {MAX_PACKS};" in section("Manifest")
    assert f"at most {MAX_DEPTH} deep" in PAGE


@pytest.mark.parametrize(
    "name", ["digits", "a b", "100%", "ä~x_y-z.t", "名前", "x" * 160, "x" * 161, "é" * 255, "CON", "a:b*c?"]
)
def test_names_are_encoded_as_the_page_says(name):
    plain = string.ascii_letters + string.digits + "-_."
    expected = "".join(chr(b) if chr(b) in plain else f"%{b:02X}" for b in name.encode())
    if len(expected) > 160:
        expected = expected[:136] + "~" + hashlib.sha256(name.encode()).hexdigest()[:20]
    assert encode_name(name) == expected


@pytest.fixture
def store(tmp_path):
    """A store with chunks of one page that has every kind of object, and one checkpoint in several packs."""
    root = tmp_path / "store"
    document = documents.StoreDocument(
        store_id=ids.new_ulid(), chunk_bytes=4096, created_at=clock.to_text(clock.now())
    )
    LocalStore(root).put_new("store.json", seal(document))
    rng = np.random.default_rng(0)
    state = {
        "large": rng.integers(0, 255, 3 << 20, np.uint8),
        "rows": rng.standard_normal((1000, 3)),
        "complex": rng.standard_normal(300) + 1j,
        "empty": np.empty((0, 2), np.float32),
    }
    with CheckpointManager(
        root, experiment="a b", parity=10, signing_key=Ed25519PrivateKey.generate()
    ) as manager:
        manager.save(state, step=1, tags=["ö"], wait=True)
        state["large"][8192:] += 1
        manager.log({"loss": float("nan")}, step=2)
        manager.save(state, step=2, metrics={"loss": float("inf")}, wait=True)
        state["rows"][500] += 1
        manager.save(state, step=3, tags=["last"], wait=True)
        manager.forget("step=1", grace=0)
        manager.prune()  # leaves a forward for the first pack, of which little is in use
        manager.save(state, step=3, wait=True)
        manager.pin("last")
        manager.tracker.tag("a b", "ö")
        manager.forget("step=2")
    return root


def keys_of(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_every_object_of_a_store_is_in_the_list_and_of_every_kind_there_is_one(store):
    listed = re.search(r"<store>/\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    patterns = {}
    for line in listed:
        key = re.split(r" {2,}", line.strip())[0]
        pattern = re.escape(key)
        for part, stands_for in {
            "<experiment>": "a%20b", "<tag>": r"(%C3%B6|last)", "<step>": r"\d{12}", "<attempt>": r"\d{6}",
            "<rank>": "0", "<n>": "0", "<k>": "1", "<checkpoint id>": "@", "<segment id>": "@", "<attempt id>": "@", "<word id>": "@",
            "<pack>": "@-0-0(-r1)?.safetensors", "<same>": "@-0-0(-r1)?",
        }.items():  # fmt: skip
            pattern = pattern.replace(re.escape(part), stands_for)
        pattern = pattern.replace("@", "[0-9A-HJKMNP-TV-Z]{26}")
        patterns[key] = re.compile(pattern + (".*" if key.endswith("/") else ""))
    found = {}
    for key in keys_of(store):
        matching = [name for name, pattern in patterns.items() if pattern.fullmatch(key)]
        if key not in ("catalog.db-wal", "catalog.db-shm"):
            assert matching, f"{key} is not in the page's list"
            found.setdefault(matching[0], []).append(key)
    # a crash in a prune, a save that is running
    passing = {"trash/packs/<experiment>/<pack>", "leases/<lease id>.json"}
    passing |= {"trash/mirror/<key>", "quarantine/<key>", "quarantine/healing/", "mirror.json"}
    assert patterns.keys() - found.keys() == passing
    assert withdrawn_key("x").startswith("trash/packs/")


def by_hand():
    """The functions that the page defines, in a namespace that has nothing else."""
    namespace: dict[str, object] = {}
    reading = block("python", "def read_document")
    exec(reading[: reading.index("\n\n\ndocuments =")], namespace)
    verifying = block("python", "def verify_pack")
    exec(verifying[: verifying.index("\n\n\nfor pack")], namespace)
    return SimpleNamespace(**namespace)


def test_the_hand_checks_are_short_and_need_the_standard_library_only():
    code = block("python", "def read_document") + block("python", "def verify_pack")
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported <= {"base64", "hashlib", "json", "pathlib"}
    function = code[code.index("def verify_pack") : code.index("\n\n\nfor pack")]
    assert len(function.splitlines()) <= 16


def test_packs_and_documents_verify_by_hand(store):
    hand = by_hand()
    packs = [key for key in keys_of(store) if key.endswith(".safetensors")]
    papers = [key for key in keys_of(store) if key.endswith(".json")]
    assert len(packs) >= 3
    assert len(papers) >= 8
    for key in packs:
        hand.verify_pack(store / key)
    for key in papers:
        assert hand.read_document(store / key)["format"] == 1


def test_every_flipped_byte_is_found_by_hand(store, tmp_path):
    hand = by_hand()
    pack = min((store / "packs").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    paper = next((store / "checkpoints").rglob("*.json"))
    rng = np.random.default_rng(1)
    for path, check in ((pack, hand.verify_pack), (paper, hand.read_document)):
        data = path.read_bytes()
        hurt = tmp_path / path.name
        hurt.write_bytes(data)
        check(hurt)  # so what is raised below is for the damage
        for at in [*range(200), *rng.integers(0, len(data), 300), *range(len(data) - 60, len(data))]:
            hurt.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :])
            # The page's functions raise whatever a damaged file provokes; what matters is that they raise.
            with pytest.raises(Exception):  # noqa: B017, PT011
                check(hurt)
        for cut in (data[:-1], data + b"\0"):
            hurt.write_bytes(cut)
            with pytest.raises(Exception):  # noqa: B017, PT011
                check(hurt)


def test_the_shell_check_of_a_document_tells_a_good_one_from_a_bad_one(store, tmp_path):
    script = block("bash", "sha256sum")

    def printed():
        done = subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    expected, written = printed()
    assert re.fullmatch("[0-9a-f]{64}", expected)
    assert expected == written
    manifest = sorted((store / "checkpoints").rglob("*.json"))[0]
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"step":', b'"stop":'))
    expected, written = printed()
    assert expected != written


def test_every_key_of_a_packs_metadata_has_a_row(store):
    written: set[str] = set()
    for path in (store / "packs").rglob("*.safetensors"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written |= header["__metadata__"].keys()
    assert [row[0].strip("`") for row in rows("Packs")] == [
        "ckpt.sha256", "ckpt.format", "ckpt.checkpoint", "ckpt.digest", "ckpt.chunk_bytes", "ckpt.digests",
        "ckpt.tensors",
    ]  # fmt: skip
    assert written == {row[0].strip("`") for row in rows("Packs")}
