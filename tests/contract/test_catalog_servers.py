"""The catalog's suite on the servers that teams have."""

from __future__ import annotations

import pytest

from contract.catalog import CatalogContract
from contract.catalog_case import emptied
from contract.catalog_copies import CopiesContract
from contract.catalog_migrations import MigrationsContract
from contract.catalog_plans import MySQLPlans, PostgreSQLPlans
from contract.servers import MariaDB, PostgreSQL


@pytest.fixture(scope="module")
def in_postgresql(postgresql: PostgreSQL) -> str:
    return postgresql.new_database().render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def in_mariadb(mariadb: MariaDB) -> str:
    return mariadb.new_database().render_as_string(hide_password=False)


class TestPostgreSQL(CatalogContract):
    @pytest.fixture
    def url(self, in_postgresql: str) -> str:
        return emptied(in_postgresql)


class TestMariaDB(CatalogContract):
    @pytest.fixture
    def url(self, in_mariadb: str) -> str:
        return emptied(in_mariadb)


class TestPostgreSQLMigrations(MigrationsContract):
    @pytest.fixture
    def fresh(self, postgresql: PostgreSQL) -> str:
        return postgresql.new_database().render_as_string(hide_password=False)


class TestMariaDBMigrations(MigrationsContract):
    @pytest.fixture
    def fresh(self, mariadb: MariaDB) -> str:
        return mariadb.new_database().render_as_string(hide_password=False)


class TestPostgreSQLPlans(PostgreSQLPlans):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, postgresql: PostgreSQL) -> str:
        return postgresql.new_database().render_as_string(hide_password=False)


class TestMariaDBPlans(MySQLPlans):
    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, mariadb: MariaDB) -> str:
        return mariadb.new_database().render_as_string(hide_password=False)


class TestPostgreSQLCopies(CopiesContract):
    @pytest.fixture
    def url(self, in_postgresql: str) -> str:
        return emptied(in_postgresql)


class TestMariaDBCopies(CopiesContract):
    @pytest.fixture
    def url(self, in_mariadb: str) -> str:
        return emptied(in_mariadb)
