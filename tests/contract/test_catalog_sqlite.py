"""The catalog on SQLite, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

for part in ("", "_case", "_checkpoints", "_copies", "_history", "_migrations", "_queries"):
    pytest.register_assert_rewrite(f"contract.catalog{part}")

from contract.catalog import CatalogContract  # noqa: E402
from contract.catalog_copies import CopiesContract  # noqa: E402
from contract.catalog_migrations import MigrationsContract  # noqa: E402


class TestSqliteFile(CatalogContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/catalog.db"


class TestSqliteMemory(CatalogContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return "sqlite://"


class TestSqliteMigrations(MigrationsContract):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/catalog.db"


class TestSqliteCopies(CopiesContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/tested.db"
