"""The catalog on SQLite, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.catalog import CatalogContract
from contract.catalog_copies import CopiesContract
from contract.catalog_migrations import MigrationsContract


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
