"""Servers that die and come back, transactions in each other's way, many processes, secrets: on each server."""

from __future__ import annotations

import gc
import logging
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import URL, Connection, text

from ckpt_core import CheckpointManager
from ckpt_core.catalog import Catalog, migrate
from ckpt_core.catalog.engine import Database
from ckpt_core.cli.program import program
from ckpt_core.errors import CatalogError, UsageError
from contract.catalog_case import attempt, checkpoint, emptied, point, uid
from contract.processes import forked
from contract.servers import Server

SECRET = "s3cr3t/:@%"

# PyMySQL leaves the socket to the garbage collector where nobody listens at a path.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket fd=.*family=1:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """What is left to the collector goes while its warnings are expected, not in a later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def place(server: Server) -> URL:
    return server.new_database()


@pytest.fixture
def url(place: URL) -> str:
    return emptied(place.render_as_string(hide_password=False))


@pytest.fixture
def mortal(server: Server, url: str) -> Iterator[Server]:
    """A server that may be killed; alive again afterwards."""
    if not server.own:
        pytest.skip(f"the server of {server.variable} is not ours to kill")
    yield server
    if not server.alive:
        server.start()


# -- it dies, and comes back


def test_a_server_that_was_killed_and_came_back(url: str, mortal: Server) -> None:
    with Catalog.open(url, timeout=5) as catalog:
        with ExitStack() as held:  # many connections in the pool, each dead afterwards
            for _ in range(4):
                held.enter_context(catalog._database.reading())
        catalog.put_checkpoint(checkpoint(1), [])
        mortal.kill()
        for action in (lambda: catalog.ids(), lambda: catalog.put_checkpoint(checkpoint(2), [])):
            with pytest.raises(CatalogError) as caught:
                action()
            assert caught.value.kind == "unavailable"
        mortal.start()
        with ThreadPoolExecutor(4) as pool:
            assert [pool.submit(catalog.ids).result(60) for _ in range(6)] == [{uid(1)}] * 6
        catalog.put_checkpoint(checkpoint(2), [])
        assert catalog.ids() == {uid(1), uid(2)}


def test_killed_in_the_middle_of_a_transaction(url: str, mortal: Server) -> None:
    with Catalog.open(url, timeout=5) as catalog:
        catalog.put_checkpoint(checkpoint(1), [])
        with pytest.raises(CatalogError) as caught, catalog.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(2), [])])
            mortal.kill()
            rebuild.put_checkpoints([(checkpoint(3), [])])
        assert caught.value.kind == "unavailable"
        mortal.start()
        assert catalog.ids() == {uid(1)}
        with catalog.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(4), [])])
        assert catalog.ids() == {uid(4)}


def test_saves_go_on_while_it_is_away(
    url: str, mortal: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager(tmp_path / "store", experiment="x", catalog=url) as manager:

        def save(step: int) -> None:
            manager.log({"loss": 1.0 / step}, step=step)
            manager.save({"w": [float(step)]}, step=step, metrics={"loss": 1.0 / step}, wait=True)

        save(1)
        mortal.kill()
        save(2)
        manager.tag("latest", "while-away")
        save(3)
        assert [found.step for found in manager.checkpoints()] == [1, 2, 3]
        assert manager.load("latest") == {"w": [3.0]}
        mortal.start()
        save(4)
        assert [found.step for found in manager.checkpoints()] == [1, 2, 3, 4]
        assert manager.failures == []
    assert "going on without the catalog" in caplog.text
    assert "the catalog is back" in caplog.text
    with Catalog.open(url) as catalog:
        assert [found.step for found in catalog.checkpoints("x")] == [1, 2, 3, 4]
        assert [found.tags for found in catalog.checkpoints("x")][1] == ("while-away",)
        assert [found.step for found in catalog.best("x", "loss", "min")] == [4]
        assert catalog.verify_audit() is None


# -- in each other's way


def test_of_two_transactions_in_a_deadlock_both_are_made(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with Catalog.open(url) as catalog:
        catalog.put_checkpoints((checkpoint(n, experiment=f"e{n}"), []) for n in (1, 2))
    both = threading.Barrier(2)
    tried = {1: 0, 2: 0}

    def work(connection: Connection, first: int, second: int) -> None:
        tried[first] += 1
        change = text("UPDATE checkpoints SET step = step + 10 WHERE uid = :uid")
        connection.execute(change, {"uid": uid(first)})
        if tried[first] == 1:
            both.wait(60)
        connection.execute(change, {"uid": uid(second)})

    # Without a store, so that neither waits for the other's whole transaction.
    one, other = Database.open(url), Database.open(url)
    with caplog.at_level(logging.INFO, "ckpt_core.catalog"), ThreadPoolExecutor(2) as pool:
        for done in (pool.submit(one.write, work, 1, 2), pool.submit(other.write, work, 2, 1)):
            done.result(60)
    one.close()
    other.close()
    assert sorted(tried.values()) == [1, 2]
    assert "once more" in caplog.text
    with Catalog.open(url) as catalog:
        assert sorted(found.step for found in catalog.checkpoints()) == [21, 22]


def test_a_transaction_that_cannot_be_ordered_is_tried_again(postgresql: Server) -> None:
    url = postgresql.new_database().render_as_string(hide_password=False)
    tried = 0

    def work(connection: Connection, times: int) -> int:
        nonlocal tried
        tried += 1
        if tried <= times:
            connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")
        return tried

    with Catalog.open(url) as catalog:
        assert catalog._database.write(work, 3) == 4
        tried = 0
        with pytest.raises(CatalogError) as caught:
            catalog._database.write(work, 1_000)
        assert caught.value.kind == "locked"
        assert tried == 10


def test_who_waits_too_long_for_another_writer_is_told(url: str) -> None:
    with Catalog.open(url) as one, Catalog.open(url, timeout=0.2) as other:
        with one.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(1), [])])
            with pytest.raises(CatalogError) as caught:
                other.put_checkpoint(checkpoint(2), [])
            assert caught.value.kind == "locked"
            assert other.ids() == set()
        other.put_checkpoint(checkpoint(2), [])
        assert other.ids() == {uid(1), uid(2)}


def test_stores_do_not_wait_for_each_other(postgresql: Server) -> None:
    """MariaDB locks the gaps between rows, too."""
    url = postgresql.new_database().render_as_string(hide_password=False)
    with Catalog.open(url, store="01A") as one, Catalog.open(url, store="01B", timeout=0.2) as other:
        one.put_checkpoint(checkpoint(1), [])
        with one.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(1), [])])
            other.put_checkpoint(checkpoint(1), [])
            other.add_metrics("digits", attempt(1), [point(1)])
        assert one.ids() == other.ids() == {uid(1)}


# -- many processes


def test_processes_make_and_upgrade_it_at_once(server: Server) -> None:
    fresh = server.new_database().render_as_string(hide_password=False)
    code = """
with Catalog.open(sys.argv[2]) as catalog:
    catalog.put_checkpoint(checkpoint(int(sys.argv[1])), [("p", 1)])
"""
    forked(code, fresh, processes=4)
    database = Database.open(fresh)
    migrate.take_back(database, "0001")
    database.close()
    forked(code.replace("int(sys.argv[1])", "int(sys.argv[1]) + 10"), fresh, processes=4)
    with Catalog.open(fresh) as catalog:
        assert catalog.ids() == {uid(number + more) for number in range(4) for more in (0, 10)}


def test_eight_training_processes_share_a_catalog(url: str, tmp_path: Path) -> None:
    code = """
me = int(sys.argv[1])
with CheckpointManager(sys.argv[3], experiment=f"run {me % 4}", catalog=sys.argv[2]) as manager:
    for step in range(3):
        manager.log({"loss": float(me)}, step=step)
        manager.save({"w": [float(me), float(step)]}, step=step, metrics={"loss": float(me)}, wait=True)
        manager.tag("latest", f"of {me}")
    assert manager.failures == []
"""
    with CheckpointManager(tmp_path / "store", experiment="first", catalog=url) as manager:
        manager.save({"w": [0.0]}, step=0, wait=True)
    forked(code, url, str(tmp_path / "store"), processes=8)
    with Catalog.open(url) as catalog:
        assert [each.checkpoints for each in catalog.experiments()] == [1, 6, 6, 6, 6]
        for number in range(4):
            assert set(catalog.tags(f"run {number}")) <= {f"of {number}", f"of {number + 4}"}
            assert catalog.best(f"run {number}", "loss", "min")[0].metrics == {"loss": float(number)}
        assert catalog.verify_audit() is None


# -- secrets


@pytest.mark.parametrize("how", ["of the user", "an option"])
def test_a_password_is_nowhere(
    place: URL, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is not there, asked in every way."""
    gone = place.set(host="127.0.0.1", port=1).difference_update_query(["host", "unix_socket"])
    if how == "an option":
        given = gone.update_query_dict({"password": SECRET})
    else:
        given = gone.set(password=SECRET)
    url = given.render_as_string(hide_password=False)
    told = []
    with pytest.raises(CatalogError) as caught:
        Catalog.open(url, timeout=2)
    told.append("".join(traceback.format_exception(caught.value)))
    told.append(f"{caught.value!r} {caught.value.facts}")
    with caplog.at_level(logging.DEBUG):
        with CheckpointManager(tmp_path / "store", experiment="x", catalog=url) as manager:
            manager.save({"w": [1.0]}, step=1, wait=True)
        told.append(caplog.text)
    runner = CliRunner()
    for command in (["ls"], ["doctor"], ["reindex"], ["catalog", "backup"], ["catalog", "copy", url, url]):
        for more in ([], ["--json"], ["--debug"]):
            store = ["--store", str(tmp_path / "store"), "--catalog", url]
            answer = runner.invoke(program, [*command, *store, *more])
            told.append(answer.output)
    escaped = url[url.index("s3cr3t") :][: len("s3cr3t")]
    assert "127.0.0.1" in "".join(told)
    assert [each for each in told if SECRET in each or escaped in each] == []


@pytest.mark.parametrize(
    "bad", ["postgresql://me:s3cr3t@host:port/x", "mysql+pymysql://me:s3cr3t/x@:y/z", "s3cr3t"]
)
def test_a_url_that_is_none_is_not_repeated(bad: str) -> None:
    with pytest.raises((UsageError, CatalogError)) as caught:
        Catalog.open(bad, timeout=2)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
