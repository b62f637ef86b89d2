"""`ckpt keys`, `ckpt sign`, and `--trusted-key` of the commands that read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ckpt_core.format.signing import SigningKey
from cli.calls import Call, ids


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CKPT_SIGNING_KEY", "CKPT_TRUSTED_KEYS", "CKPT_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


def test_keys_are_made_and_told_without_a_store(ckpt: Call) -> None:
    made = ckpt("keys", "new", "a.pem", "--json", at=None).data
    assert made == {
        "private": os.path.abspath("a.pem"),
        "public": os.path.abspath("a.pem.pub"),
        "key": made["key"],
    }
    assert stat.S_IMODE(Path("a.pem").stat().st_mode) == 0o600
    assert ckpt("keys", "show", "a.pem.pub", at=None).out == f"{made['key']}\n"
    assert ckpt("keys", "show", "a.pem.pub", "--json", at=None).data == {
        "file": "a.pem.pub",
        "keys": [made["key"]],
    }
    for line, says in (
        (("new", "a.pem"), "never overwritten"),
        (("show", "a.pem"), "it is a private one"),
        (("show", "nowhere"), "cannot be read"),
        (("show", "a.pem.pub", "--passphrase"), "takes no passphrase"),
        (("new", "b.pem", "--passphrase"), "no terminal to ask"),
    ):
        answer = ckpt("keys", *line, at=None)
        assert (answer.code, says in answer.err) == (2, True), answer
    assert not Path("b.pem").exists()


def test_a_passphrase_of_the_environment(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_KEY_PASSPHRASE", "secret")
    key = ckpt("keys", "new", "a.pem", "--passphrase", "-q", at=None).out.strip()
    assert SigningKey.load("a.pem").name == key
    assert ckpt("sign", "latest", "--key", "a.pem", "-q", at=None).code == 10
    assert ckpt("sign", "digits@latest", "--key", "a.pem").out == f"signed 1 checkpoint as {key}\n"
    monkeypatch.delenv("CKPT_KEY_PASSPHRASE")
    assert "set CKPT_KEY_PASSPHRASE" in ckpt("sign", "digits@latest", "--key", "a.pem").err


def test_what_is_signed_is_read(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.pem", "b.pem"):
        ckpt("keys", "new", name, at=None)
    alice, bob = ("--trusted-key", "a.pem.pub"), ("--trusted-key", "b.pem.pub")
    answer = ckpt("restore", "mnist@latest", "out.safetensors", *alice)
    assert (answer.code, "is not signed" in answer.err, Path("out.safetensors").exists()) == (4, True, False)
    assert ckpt("cat", "mnist@latest", *alice, "--json").error["kind"] == "unsigned"
    found = ids(ckpt, "mnist")
    assert ckpt("sign", "mnist@step=20", "--key", "a.pem", "--json").data["signed"] == [found[1]]
    monkeypatch.setenv("CKPT_SIGNING_KEY", "a.pem")
    assert ckpt("sign", "mnist@step=30", "mnist@latest", "-q").out.split() == [found[-1]]
    assert ckpt("restore", "mnist@latest", "out.safetensors", *alice).code == 0
    assert ckpt("cat", "mnist@step=20", "epoch", *alice).out == "0\n"
    assert ckpt("diff", "mnist@step=20", "mnist@latest", *alice).code == 0
    assert "not signed" in ckpt("diff", "mnist@step=10", "mnist@latest", *alice).err
    refused = ckpt("cat", "mnist@step=20", *bob)
    assert (refused.code, "nobody who is trusted" in refused.err) == (4, True)
    assert ckpt("cat", "mnist@step=20", *bob, *alice).code == 0
    monkeypatch.setenv("CKPT_TRUSTED_KEYS", f"a.pem.pub{os.pathsep}b.pem.pub")
    assert ckpt("cat", "mnist@step=20").code == 0
    assert ckpt("cat", "mnist@step=10").code == 4
    assert ckpt("cat", "mnist@best", "--metric", "val_loss").code == 0, "the best of what is signed"


def test_verify_tells_who_is_not_signed(ckpt: Call) -> None:
    ckpt("keys", "new", "a.pem", at=None)
    alice = ("--trusted-key", "a.pem.pub")
    one = ids(ckpt, "mnist")[0]
    ckpt("sign", one, "--key", "a.pem")
    assert ckpt("verify", one, *alice).code == 0
    answer = ckpt("verify", "--headers-only", *alice)
    assert answer.code == 4
    assert "`ckpt sign` signs what you know to be yours" in answer.out
    assert one not in ckpt("verify", "-q", *alice).out.split()
    assert ckpt("sign", "--all", "--key", "a.pem").out.startswith("signed 10 checkpoints as ")
    assert ckpt("verify", *alice).code == 0


def test_show_tells_who_signed(ckpt: Call, store: Path) -> None:
    key = ckpt("keys", "new", "a.pem", "-q", at=None).out.strip()
    assert ckpt("show", "mnist@latest", "--json").data["signatures"] == []
    ckpt("sign", "mnist@latest", "--key", "a.pem")
    assert f"signed by   {key}: it fits\n" in ckpt("show", "mnist@latest").out
    told = ckpt("show", "mnist@latest", "--trusted-key", "a.pem.pub", "--json").data["signatures"]
    assert told == [{"key": key, "fits": True, "trusted": "a.pem.pub"}]
    (signatures,) = store.glob("signatures/mnist/*.json")
    signatures.rename(signatures.with_name(next(iter(store.glob("checkpoints/mnist/*20-*"))).name))
    assert "moved or copied" in ckpt("show", "mnist@step=20").err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["latest"], "sign with which key"), ([], "name the checkpoints"),
        (["latest", "--all"], "name the checkpoints"), (["latest", "--key", "nowhere"], "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(ckpt: Call, line: list[str], says: str) -> None:
    answer = ckpt("sign", *line)
    assert answer.code == 2
    assert says in answer.err


def test_a_trusted_key_that_is_none_is_told_before_anything_is_read(
    process: Callable[..., CompletedProcess[str]],
) -> None:
    done = process("cat", "mnist@latest", environment={"CKPT_TRUSTED_KEYS": "nowhere.pub"})
    assert done.returncode == 2
    assert "nowhere.pub" in done.stderr
