"""`ckpt catalog`: backups are listed, made, and put back."""

from __future__ import annotations

from pathlib import Path

from cli.calls import Call


def test_a_backup_is_made_and_put_back(ckpt: Call, store: Path) -> None:
    assert "there is no backup" in ckpt("catalog", "list").out
    answer = ckpt("catalog", "backup", "--json")
    assert answer.code == 0
    name = answer.data["name"]
    assert ckpt("catalog", "list", "-q").out.split() == [name]
    assert name in ckpt("catalog", "list").out
    listed = ckpt("ls", "--all", "-q").out
    (store / "catalog.db").write_bytes(b"not a database")
    for suffix in ("-wal", "-shm"):
        (store / f"catalog.db{suffix}").unlink(missing_ok=True)
    answer = ckpt("catalog", "restore", name)
    assert answer.code == 0, answer.err
    assert "in line with the store" in answer.out
    assert ckpt("ls", "--all", "-q").out == listed
    assert ckpt("audit", "--verify").code == 0
    assert ckpt("audit", "--json").data["entries"][0]["event"] == "restore-catalog"
    assert "ok" in ckpt("doctor").out


def test_what_cannot_be_meant(ckpt: Call, store: Path) -> None:
    assert ckpt("catalog").code == 2
    assert ckpt("catalog", "backup", "name").code == 2
    assert ckpt("catalog", "restore").code == 1
    assert ckpt("catalog", "list", "--catalog", "sqlite://").code == 2
