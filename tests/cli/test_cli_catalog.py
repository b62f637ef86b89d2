"""`ckpt catalog`: backups are listed, made, and put back."""

from __future__ import annotations

from pathlib import Path

from ckpt_core.catalog.schema import HEAD
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


def test_it_is_moved_to_another_database(ckpt: Call, store: Path, tmp_path: Path) -> None:
    listed = ckpt("ls", "--all", "-q").out
    source, target = f"sqlite:///{store}/catalog.db", f"sqlite:///{tmp_path}/team.db"
    answer = ckpt("catalog", "copy", source, target, "--json")
    assert answer.code == 0, answer.err
    assert answer.data["rows"]["checkpoints"] == len(listed.split())
    assert ckpt("ls", "--all", "-q", "--catalog", target).out == listed
    assert ckpt("audit", "--json", "--catalog", target).data["entries"][0]["event"] == "copy-catalog"
    assert "CKPT_CATALOG" in ckpt("catalog", "copy", source, target, "--yes").out
    assert ckpt("audit", "--verify", "--catalog", target).code == 0
    assert ckpt("catalog", "copy", source).code == 2
    assert ckpt("catalog", "copy", source, source).code == 2


def test_its_tables_go_back_and_forth(ckpt: Call, store: Path) -> None:
    listed = ckpt("ls", "--all", "-q").out
    assert "nothing to do" in ckpt("catalog", "migrate").out
    answer = ckpt("catalog", "migrate", "0001", "--yes", "--json")
    assert answer.code == 0, answer.err
    assert (answer.data["to"], Path(answer.data["backup"]).exists()) == ("0001", True)
    answer = ckpt("catalog", "migrate", "--json")
    assert (answer.data["from"], answer.data["to"]) == ("0001", HEAD)
    assert ckpt("ls", "--all", "-q").out == listed
    assert ckpt("catalog", "migrate", "9999").code == 2
