"""The catalog's suite, part five: moved from SQLite and back, backed up, put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core.catalog import Catalog, copying, migrate
from ckpt_core.catalog.engine import Database
from ckpt_core.errors import UsageError
from contract.catalog_case import CatalogCase, attempt, checkpoint, everything, lose, point, uid
from contract.catalog_migrations import fill

MINE, THEIRS = "01MINE", "01THEIRS"


class CopiesContract(CatalogCase):
    """`url` is an empty catalog of the kind that is tested."""

    def test_from_sqlite_and_back(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(copying, "_BATCH", 3)
        first, last = f"sqlite:///{tmp_path}/first.db", f"sqlite:///{tmp_path}/last.db"
        with Catalog.open(first, store=MINE) as catalog:
            fill(catalog)
            catalog.put_checkpoints((checkpoint(n, metrics={"loss": n / 3}), []) for n in range(100, 110))
            before = everything(catalog)
            facts = catalog.experiment_facts()
        with Catalog.open(url, store=THEIRS) as catalog:  # its numbers are taken
            fill(catalog)
            catalog.put_checkpoint(checkpoint(50), [])
            others = everything(catalog)
        for source, target in ((first, url), (url, last)):
            with copying.opened(source) as origin, copying.opened(target) as there:
                assert copying.replaced(origin, there) == []
                rows = copying.copy(origin, there)
                assert rows["checkpoints"] == (14 if source == first else 19)
            with Catalog.open(target, store=MINE) as catalog:
                assert everything(catalog) == before
                assert catalog.experiment_facts() == facts
                assert catalog.verify_audit() is None
            with Catalog.open(target, store=THEIRS) as catalog:
                assert everything(catalog) == others

    def test_a_copy_replaces_and_can_be_written_to(self, url: str, tmp_path: Path) -> None:
        source = f"sqlite:///{tmp_path}/catalog.db"
        for place, number in ((source, 1), (url, 2)):
            with Catalog.open(place, store=MINE) as catalog:
                catalog.put_checkpoint(checkpoint(number, metrics={"loss": 1.0}, tags=("a",)), [("p", 1)])
                catalog.audit("save", uid(number), "ok")
        with copying.opened(source) as origin, copying.opened(url) as there:
            assert copying.replaced(origin, there) == [MINE]
            for _ in range(2):
                assert copying.copy(origin, there)["tags"] == 1
        with Catalog.open(url, store=MINE) as catalog:
            assert catalog.ids() == {uid(1)}
            fill(catalog)
            catalog.add_metrics("digits", attempt(2), [point(1, number=2)])
            assert [entry.id for entry in catalog.audit_log()] == [4, 3, 2, 1]
            assert catalog.verify_audit() is None

    def test_what_cannot_be_copied(self, url: str, tmp_path: Path) -> None:
        with Catalog.open(url) as catalog:
            catalog.audit("save", "x", "ok")
        with copying.opened(url) as origin, copying.opened(f"sqlite:///{tmp_path}/catalog.db") as there:
            with pytest.raises(UsageError, match="which store it is of"):
                copying.copy(origin, there)
            with pytest.raises(UsageError, match="to itself"):
                copying.copy(origin, origin)

    def test_a_backup_and_its_return(self, url: str, tmp_path: Path) -> None:
        path = tmp_path / "store" / "catalog.db"
        path.parent.mkdir()
        with Catalog.open(url, store=THEIRS) as catalog:
            fill(catalog)
            others = everything(catalog)
        with Catalog.open(url, store=MINE) as catalog:
            fill(catalog)
            before = everything(catalog)
            database = catalog._database
            made = copying.back_up(database, MINE, path, "manual")
            assert made.parent == path.parent / "backups"
            lose(catalog, [uid(0), uid(2)])
            catalog.audit("forget", "all", "ok")
            assert copying.restore(database, MINE, path) == made
            assert everything(catalog) == before
            assert catalog.verify_audit() is None
        with Catalog.open(url, store=THEIRS) as catalog:
            assert everything(catalog) == others

    def test_a_backup_of_an_earlier_revision(self, url: str, tmp_path: Path) -> None:
        """As an SQLite catalog left it that has grown into one on a server since."""
        path = tmp_path / "catalog.db"
        with Catalog.open(f"sqlite:///{path}", store=MINE) as catalog:
            fill(catalog)
            before = everything(catalog)
        database = Database.open(f"sqlite:///{path}")
        migrate.take_back(database, "0001")
        database.close()
        from ckpt_core.catalog import backups

        made = backups.back_up(path, "manual")
        held = made.read_bytes()
        with Catalog.open(url, store=MINE) as catalog:
            assert copying.restore(catalog._database, MINE, path, made.name) == made
            assert everything(catalog) == before
        assert made.read_bytes() == held
