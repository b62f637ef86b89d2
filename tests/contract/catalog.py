"""What a catalog is, on whatever database: the suite that each of them inherits.

A concrete class gives `url`, and `execute` where the database can be reached around the catalog.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckpt_core.catalog import Catalog
from ckpt_core.catalog.stores import enter
from ckpt_core.errors import CatalogError, UsageError
from contract.catalog_case import attempt, checkpoint, everything, point, uid
from contract.catalog_checkpoints import CheckpointsContract
from contract.catalog_experiments import ExperimentsContract
from contract.catalog_history import HistoryContract
from contract.catalog_queries import QueriesContract


class CatalogContract(CheckpointsContract, QueriesContract, HistoryContract, ExperimentsContract):
    """The whole suite."""

    # -- rebuilding

    def test_rebuild_replaces_what_the_store_can_tell_again(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1, metrics={"loss": 1.0}, tags=("a",)), [("p", 1)])
        catalog.put_checkpoint(checkpoint(2, experiment="stale"), [])
        catalog.add_metrics("digits", attempt(1), [point(1)])
        catalog.record_check(uid(1), "full", "ok")
        catalog.audit("save", uid(1), "ok")
        anew = [checkpoint(n, metrics={"acc": float(n)}, tags=(f"t{n}",)) for n in (5, 6, 7)]
        with catalog.rebuild() as rebuild:
            assert rebuild.put_checkpoints((each, [("q", 2)]) for each in anew) == 3
            assert rebuild.forget_checkpoints([uid(6)]) == 1
            assert rebuild.add_metrics("digits", attempt(2), [point(2, number=2)]) == 1
        assert catalog.checkpoints() == [anew[0], anew[2]]
        assert catalog.checkpoint(uid(6), include_forgotten=True) == anew[1]
        assert catalog.tags("digits") == {"t5": uid(5), "t7": uid(7)}
        assert [e.name for e in catalog.experiments()] == ["digits"]
        assert catalog.metric_names("digits") == ["acc", "loss"]
        assert catalog.metric_names("digits", logged=True) == ["loss"]
        assert catalog.metric_series("digits", "loss") == [point(2, number=2)]
        assert self.count(catalog, "packs") == 1
        assert [c.checkpoint for c in catalog.checks()] == [uid(1)]
        assert [e.subject for e in catalog.audit_log()] == [uid(1)]
        assert catalog.verify_audit() is None

    def test_a_rebuild_that_fails_changes_nothing(self, catalog: Catalog) -> None:
        put = checkpoint(1, metrics={"loss": 1.0}, tags=("a",))
        catalog.put_checkpoint(put, [("p", 1)])
        with pytest.raises(ZeroDivisionError), catalog.rebuild() as rebuild:
            rebuild.put_checkpoints((checkpoint(n), [("q", 1 // (3 - n))]) for n in range(5))
        assert catalog.checkpoints() == [put]
        assert catalog.packs(put.id) == [("p", 1)]
        with pytest.raises(UsageError), catalog.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(2), []), (checkpoint(3, id=""), [])])
        assert catalog.checkpoints() == [put]

    def test_others_see_the_old_contents_until_a_rebuild_ends(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1), [])
        with ThreadPoolExecutor(1) as pool, catalog.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(2), [])])
            seen = pool.submit(lambda: catalog.ids())
            if not catalog._database._one_connection:
                assert seen.result(timeout=60) == {uid(1)}
        assert seen.result(timeout=60) in ({uid(1)}, {uid(2)})
        assert catalog.ids() == {uid(2)}

    # -- stores

    def test_stores_that_share_a_database_do_not_see_each_other(self, catalog: Catalog, url: str) -> None:
        """The same names, ids and packs in both, as in a copy of a store."""
        catalog.put_checkpoint(checkpoint(1, metrics={"loss": 1.0}, tags=("a",), pinned=True), [("p", 1)])
        catalog.add_metrics("digits", attempt(1), [point(1)])
        catalog.record_check(uid(1), "full", "ok")
        catalog.record_pack_check("p", "ok", 1)
        catalog.audit("save", uid(1), "ok")
        catalog.note_listing("digits", "word")
        catalog.set_experiment_tag("digits", "good")
        database = catalog._database
        mine = database.store
        theirs = enter(database, "01OTHER")  # takes over what is nobody's
        assert theirs == mine
        assert enter(database, "01OTHER") == theirs
        theirs = enter(database, "01THIRD")
        assert theirs != mine
        with pytest.raises(UsageError, match="01OTHER, 01THIRD") as caught:
            enter(database, None)
        assert caught.value.kind == "store"
        before = everything(catalog)

        database.store = theirs
        nothing = [*everything(catalog), catalog.experiment_facts(), catalog.experiment_tags()]
        assert not any(nothing), nothing
        assert catalog.listing_word("digits") is None
        catalog.put_checkpoints(
            (checkpoint(n, metrics={"loss": -n}, tags=("a",)), [("p", 9)]) for n in (1, 2)
        )
        catalog.add_metrics("digits", attempt(1), [point(1, 9.0), point(2, 9.0)])
        assert [catalog.audit("forget", uid(1), "ok") for _ in range(3)] == [1, 2, 3]
        catalog.record_check(uid(1), "full", "damaged")
        catalog.note_listing("digits", "other")
        catalog.set_pinned(uid(1), True)
        assert catalog.verify_audit() is None
        assert catalog.packs(uid(1)) == [("p", 9)]

        database.store = mine
        assert everything(catalog) == before
        catalog.forget_checkpoints([uid(1)])
        with catalog.rebuild():
            pass
        assert catalog.ids() == set()
        assert [entry.event for entry in catalog.audit_log()] == ["save"]

        database.store = theirs
        assert catalog.ids() == {uid(1), uid(2)}
        assert catalog.pinned("digits") == {uid(1)}
        assert catalog.tags("digits") == {"a": uid(2)}
        assert [p.value for p in catalog.metric_series("digits", "loss")] == [9.0, 9.0]
        assert catalog.listing_word("digits") == "other"
        assert catalog.packs_by_key() == {checkpoint(n).key: ["p"] for n in (1, 2)}
        assert catalog.verify_audit() is None

    # -- threads

    def test_threads_write_at_once(self, catalog: Catalog) -> None:
        threads, rounds = 8, 12
        start = threading.Barrier(threads)

        def work(thread: int) -> None:
            start.wait(timeout=60)
            for turn in range(rounds):
                number = thread * rounds + turn
                mine = checkpoint(
                    number, attempt=attempt(1 + thread), metrics={"loss": float(number)}, tags=("last",)
                )
                catalog.put_checkpoint(mine, [("shared", 1), (f"p{number}", 1)])
                catalog.add_metrics("digits", attempt(1 + thread), [point(turn, number=1 + thread)])
                catalog.audit("save", mine.id, "ok")
                assert catalog.checkpoint(mine.id) is not None
                assert catalog.newest("digits") is not None
                catalog.record_check(mine.id, "full", "ok")

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, thread) for thread in range(threads)]:
                done.result(timeout=120)
        assert catalog.ids("digits") == {uid(n) for n in range(threads * rounds)}
        assert len(catalog.tags("digits")) == 1
        assert len(catalog.audit_log()) == len(catalog.checks()) == threads * rounds
        assert catalog.verify_audit() is None
        assert all(
            len(catalog.metric_series("digits", "loss", f"L{1 + n:03d}")) == rounds for n in range(threads)
        )
        assert [c.metrics["loss"] for c in catalog.best("digits", "loss", "max")] == [threads * rounds - 1]

    # -- open and closed

    def test_a_closed_catalog_says_so(self, url: str) -> None:
        with Catalog.open(url) as catalog:
            catalog.put_checkpoint(checkpoint(1), [])
        catalog.close()
        for action in (lambda: catalog.ids(), lambda: catalog.put_checkpoint(checkpoint(2), [])):
            with pytest.raises(CatalogError) as caught:
                action()
            assert caught.value.kind == "closed"
