"""Keys: how they are made and read, and what is refused as one."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ckpt_core import CheckpointManager, UsageError
from ckpt_core.format.signing import SigningKey, new_key, public_keys
from ckpt_core.opening import ManagerSource

ALICE, MALLORY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED = [ALICE.public_key()]


def test_keys_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    name = new_key(tmp_path / "alice.pem")
    assert stat.S_IMODE((tmp_path / "alice.pem").stat().st_mode) == 0o600
    assert public_keys(tmp_path / "alice.pem.pub") == [name] == [SigningKey.load(tmp_path / "alice.pem").name]
    before = (tmp_path / "alice.pem").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        new_key(tmp_path / "alice.pem")
    assert (tmp_path / "alice.pem").read_bytes() == before
    (tmp_path / "alice.pem").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="never overwritten"):
        new_key(tmp_path / "alice.pem")
    assert not (tmp_path / "alice.pem").exists(), "half a pair is none"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        new_key(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_no_part_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ckpt_core.format.signing.os.fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        new_key(tmp_path / "k")
    assert list(tmp_path.iterdir()) == []
    new_key(tmp_path / "k")


def test_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPT_KEY_PASSPHRASE", raising=False)
    name = new_key(tmp_path / "k", "secret")
    assert b"ENCRYPTED" in (tmp_path / "k").read_bytes()
    with pytest.raises(UsageError, match="set CKPT_KEY_PASSPHRASE") as caught:
        SigningKey.load(tmp_path / "k")
    assert caught.value.kind == "passphrase"
    monkeypatch.setenv("CKPT_KEY_PASSPHRASE", "wrong")
    with pytest.raises(UsageError, match="passphrase is wrong"):
        SigningKey.load(tmp_path / "k")
    monkeypatch.setenv("CKPT_KEY_PASSPHRASE", "secret")
    assert SigningKey.load(tmp_path / "k").name == name


def test_others_who_can_read_a_private_key_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new_key(tmp_path / "k")
    SigningKey.load(tmp_path / "k")
    assert caplog.text == ""
    (tmp_path / "k").chmod(0o640)
    SigningKey.load(tmp_path / "k")
    assert "chmod 600" in caplog.text


def pem(key: Any, private: bool = True) -> bytes:
    if private:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "private", "says"),
    [
        (None, True, "cannot be read"), (None, False, "cannot be read"),
        (b"", True, "not a private key"), (b"\0" * 40, False, "not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", False, "not a public key"),
        (b"x" * 100_000, True, "no key file"), (b"x" * 100_000, False, "no key file"),
        (pem(ALICE), False, "it is a private one"), (pem(ALICE, private=False), True, "not a private key"),
        (pem(X25519PrivateKey.generate()), True, "not an Ed25519 key"),
        (pem(X25519PrivateKey.generate(), private=False), False, "not an Ed25519 key"),
    ],
)  # fmt: skip
def test_what_is_no_key(tmp_path: Path, content: bytes | None, private: bool, says: str) -> None:
    path = tmp_path / "k"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    option = {"signing_key": path} if private else {"trusted_keys": [path]}
    with pytest.raises(UsageError, match=says) as caught:
        CheckpointManager(tmp_path / "store", experiment="x", **option)  # type: ignore[arg-type]
    assert caught.value.kind == "key"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trusted_keys": []}, "trusted_keys is empty"), ({"trusted_keys": ()}, "trusted_keys is empty"),
        ({"trusted_keys": [3]}, "neither a public key"), ({"trusted_keys": ALICE}, "neither a public key"),
        ({"signing_key": 3}, "neither a private key"), ({"signing_key": "a\0b"}, "cannot be read"),
        ({"signing_key": MALLORY, "trusted_keys": TRUSTED}, "would refuse to load"),
    ],
)  # fmt: skip
def test_what_means_nothing(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CheckpointManager(tmp_path, experiment="x", **options)
    with pytest.raises(UsageError, match=says):
        _ = ManagerSource(tmp_path, "x", None, call="Callback", **options).manager
