"""Several real processes on one catalog: made, upgraded and written at once; and a forked one."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ckpt_core.catalog import Catalog
from contract.catalog_case import checkpoint, scripts, uid
from contract.processes import at_once


def test_processes_that_make_a_catalog_at_once_all_succeed(tmp_path: Path) -> None:
    code = """
for n in range(15):
    with Catalog.open(f"sqlite:///{sys.argv[2]}/{n}.db") as catalog:
        catalog.put_checkpoint(checkpoint(int(sys.argv[1])), [("p", 1)])
"""
    at_once(code, str(tmp_path))
    for number in range(15):
        with Catalog.open(f"sqlite:///{tmp_path}/{number}.db") as catalog:
            assert catalog.ids() == {uid(n) for n in range(4)}


def test_processes_that_upgrade_a_catalog_at_once_all_succeed(tmp_path: Path) -> None:
    for number in range(5):
        with Catalog.open(f"sqlite:///{tmp_path}/c{number}.db") as catalog:
            catalog.put_checkpoint(checkpoint(1), [])
    code = """
for n in range(5):
    database = Database.open(f"sqlite:///{sys.argv[2]}/c{n}.db")
    backup = migrate.bring_up_to_date(database, scripts=sys.argv[3], revisions=MORE)
    print(n, backup is not None)
    assert Catalog(database).ids() == {uid(1)}
    database.close()
"""
    said = "".join(at_once(code, str(tmp_path), scripts(tmp_path), processes=3)).splitlines()
    for number in range(5):
        assert said.count(f"{number} True") == 1
        assert said.count(f"{number} False") == 2
        with closing(sqlite3.connect(tmp_path / f"c{number}.db")) as connection:
            assert connection.execute("SELECT version_num FROM catalog_version").fetchall() == [("9999",)]
    assert len(os.listdir(tmp_path / "backups")) == 5


def test_processes_write_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    Catalog.open(url).close()
    code = """
me = int(sys.argv[1])
with Catalog.open(sys.argv[2]) as catalog:
    for n in range(25):
        entry = checkpoint(me * 25 + n, tags=("last",), metrics={"loss": float(n)})
        catalog.put_checkpoint(entry, [("shared", 1)])
        catalog.add_metrics("digits", attempt(1 + me), [point(n, number=1 + me)])
        catalog.audit("save", uid(n), "ok")
"""
    at_once(code, url)
    with Catalog.open(url) as catalog:
        assert catalog.ids() == {uid(n) for n in range(100)}
        assert catalog.verify_audit() is None
        assert len(catalog.audit_log()) == 100
        assert sum(len(catalog.metric_series("digits", "loss", f"L{n:03d}")) for n in range(1, 5)) == 100


def test_a_forked_child_uses_connections_of_its_own(tmp_path: Path) -> None:
    # In a process of its own: this one has threads, and a fork would copy their locks.
    code = """
import os, threading
catalog = Catalog.open(sys.argv[2])
catalog.put_checkpoint(checkpoint(0), [])
inside, leave = threading.Event(), threading.Event()
def hold():
    with catalog._database.reading():
        inside.set()
        leave.wait(60)
# A lock held by a thread that the child does not have, and a connection in use.
catalog._database._turn.acquire()
thread = threading.Thread(target=hold)
thread.start()
inside.wait(60)
parents = catalog._database.engine.pool
child = os.fork()
if child == 0:
    try:
        catalog.put_checkpoint(checkpoint(1), [])
        assert catalog._database.engine.pool is not parents
        assert catalog.ids() == {uid(0), uid(1)}
        catalog.close()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
leave.set()
thread.join()
catalog._database._turn.release()
catalog.put_checkpoint(checkpoint(2), [])
print(status, sorted(catalog.ids()) == [uid(0), uid(1), uid(2)])
catalog.close()
"""
    (said,) = at_once(code, f"sqlite:///{tmp_path}/catalog.db", processes=1)
    assert said == "0 True\n"
