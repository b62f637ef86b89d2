"""The catalog's suite, part three: metric series, checks, the audit trail."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import clock
from ckpt_core.catalog import Catalog, audit
from ckpt_core.errors import UsageError
from contract.catalog_case import BEGIN, INF, NAN, CatalogCase, attempt, checkpoint, point, same, uid


class HistoryContract(CatalogCase):
    """What was logged, checked and done."""

    # -- metric series

    @pytest.mark.parametrize("value", [0.1 + 0.2, -1e-320, 1.7976931348623157e308, NAN, INF, -INF, 7])
    def test_a_value_comes_back_to_the_bit(self, catalog: Catalog, value: float) -> None:
        assert catalog.add_metrics("digits", attempt(1), [point(3, value)]) == 1
        (found,) = catalog.metric_series("digits", "loss")
        assert same(found.value, value)
        assert dataclasses.replace(found, value=0.0) == point(3, 0.0)

    def test_a_point_logged_again_is_replaced(self, catalog: Catalog) -> None:
        catalog.add_metrics("digits", attempt(1), [point(1, 1.0), point(2, NAN), point(1, 3.0)])
        assert next(p.value for p in catalog.metric_series("digits", "loss")) == 3.0
        catalog.add_metrics("digits", attempt(1), [point(1, NAN), point(2, 5.0)])
        first, second = catalog.metric_series("digits", "loss")
        assert math.isnan(first.value)
        assert second.value == 5.0

    def test_of_a_step_the_newest_attempt_counts(self, catalog: Catalog) -> None:
        first, second, stranger = attempt(1), attempt(2, lineage=1), attempt(3)
        catalog.add_metrics("digits", second, [point(step, 2.0, number=2) for step in (3, 4)])
        catalog.add_metrics("digits", first, [point(step, 1.0) for step in (1, 2, 3, 5)])
        found = catalog.metric_series("digits", "loss")
        assert [(p.step, p.value, p.attempt) for p in found] == [
            (1, 1.0, 1),
            (2, 1.0, 1),
            (3, 2.0, 2),
            (4, 2.0, 2),
            (5, 1.0, 1),
        ]
        catalog.add_metrics("digits", stranger, [point(9, 3.0, name="other", number=3)])
        assert catalog.metric_series("digits", "loss") == []
        assert [p.step for p in catalog.metric_series("digits", "loss", "L001")] == [1, 2, 3, 4, 5]
        assert [p.step for p in catalog.metric_series("digits", "other")] == [9]
        assert catalog.metric_series("digits", "loss", "L999") == []

    def test_an_attempt_that_only_saved_does_not_hide_the_series(self, catalog: Catalog) -> None:
        catalog.add_metrics("digits", attempt(1), [point(1)])
        catalog.put_checkpoint(checkpoint(1, attempt=attempt(2), metrics={"loss": 1.0}), [])
        assert catalog.metric_series("digits", "loss") == [point(1)]

    def test_attempts_of_one_number_are_two(self, catalog: Catalog) -> None:
        catalog.add_metrics("digits", attempt(1, name="b"), [point(1, 2.0)])
        catalog.add_metrics("digits", attempt(1, name="a"), [point(1, 1.0), point(2, 1.0)])
        assert [p.value for p in catalog.metric_series("digits", "loss", "L001")] == [2.0, 1.0]

    def test_metric_names(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1, metrics={"c": 1.0}), [])
        catalog.add_metrics("digits", attempt(1), [point(1, name="b"), point(1, name="a")])
        catalog.add_metrics("other", attempt(1), [point(1, name="d")])
        assert catalog.metric_names("digits") == ["a", "b", "c"]

    def test_points_of_another_attempt_are_refused(self, catalog: Catalog) -> None:
        with pytest.raises(UsageError) as caught:
            catalog.add_metrics("digits", attempt(2), [point(1, number=2), point(2, number=1)])
        assert caught.value.kind == "attempt"
        assert catalog.metric_series("digits", "loss") == []

    def test_many_points_from_an_iterator(self, catalog: Catalog) -> None:
        total = 25_000
        assert (
            catalog.add_metrics("digits", attempt(1), (point(step, step / 7) for step in range(total)))
            == total
        )
        series = catalog.metric_series("digits", "loss")
        assert [p.step for p in series] == list(range(total))
        assert series[24_321].value == 24_321 / 7

    # -- checks

    def test_checks(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock, "now", lambda: BEGIN)
        catalog.record_check(
            uid(1), "full", "ok", {"seconds": 1.5, "odd": NAN, "nested": {"a": [1, None]}}, 2**40
        )
        catalog.record_check(None, "scrub", "corrupt", bytes_checked=3)
        catalog.record_check(uid(1), "lazy", "ok")
        assert [(c.checkpoint, c.kind, c.outcome, c.bytes_checked) for c in catalog.checks()] == [
            (uid(1), "lazy", "ok", 0),
            (None, "scrub", "corrupt", 3),
            (uid(1), "full", "ok", 2**40),
        ]
        assert [c.kind for c in catalog.checks(uid(1))] == ["lazy", "full"]
        assert [c.kind for c in catalog.checks(limit=1)] == ["lazy"]
        assert catalog.checks(uid(1))[1].detail == {"seconds": 1.5, "odd": "nan", "nested": {"a": [1, None]}}
        assert {c.at for c in catalog.checks()} == {BEGIN}

    # -- the audit trail

    def test_audit(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock, "now", lambda: BEGIN)
        assert catalog.audit("save", uid(1), "ok", {"bytes": 3}, actor="me@here:1") == 1
        assert catalog.audit("forget", uid(1), "failed") == 2
        newest, oldest = catalog.audit_log()
        assert (oldest.id, oldest.at, oldest.actor, oldest.event) == (1, BEGIN, "me@here:1", "save")
        assert (oldest.subject, oldest.outcome, oldest.detail) == (uid(1), "ok", {"bytes": 3})
        assert newest.detail == {}
        assert newest.hash != oldest.hash
        assert catalog.audit_log(limit=1) == [newest]
        assert catalog.verify_audit() is None

    def test_entries_of_some_events(self, catalog: Catalog) -> None:
        for number in range(6):
            catalog.audit("save" if number % 2 else "hooks", "a" if number < 4 else "b", "ok")
        catalog.audit("hook", "a", "left-out")

        def ids(*asked: Any) -> list[int]:
            return [entry.id for entry in catalog.audit_log(*asked)]

        assert ids(None, ["hooks"]) == [5, 3, 1]
        assert ids(2, ["hooks", "hook"]) == [7, 5]
        assert ids(None, ["hooks", "hook"]) == ids(9, ("hook", "hooks", "hook")) == [7, 5, 3, 1]
        assert ids(1, ["hooks"], "a") == [3]
        assert ids(None, [], "b") == [6, 5]
        assert ids(1, ["Hooks"]) == ids(1, ["hooks"], "A") == []
        assert (catalog.audit_count(), catalog.audit_count(["hook", "hooks"])) == (7, 4)

    def test_the_actor_is_this_process(self, catalog: Catalog) -> None:
        catalog.audit("save", "x", "ok")
        user, _, rest = catalog.audit_log()[0].actor.partition("@")
        host, _, pid = rest.partition(":")
        assert user
        assert host
        assert pid.isdecimal()

    def test_audit_takes_whatever_it_is_given(self, catalog: Catalog) -> None:
        detail = {
            "nan": NAN,
            "lone": "\ud800",
            "nul": "a\0b",
            "path": Path("x"),
            "big": 2**70,
            5: (1, 2),
            "e": ValueError("no"),
        }
        catalog.audit("e" * 500, "s\0\udfff" + "🧪" * 100_000, "o" * 500, detail, actor="a" * 500)
        (entry,) = catalog.audit_log()
        assert entry.event == "e" * 64
        assert entry.subject == "s\\x00\\udfff" + "🧪" * 100_000
        assert entry.detail == {
            "nan": "nan",
            "lone": "\\ud800",
            "nul": "a\\x00b",
            "path": "x",
            "big": str(2**70),
            "5": [1, 2],
            "e": "no",
        }
        assert catalog.verify_audit() is None

    @pytest.mark.parametrize(
        ("statement", "broken"),
        [
            ("UPDATE audit_log SET actor = 'nobody' WHERE id = 3", 3),
            ("UPDATE audit_log SET event = 'other' WHERE id = 3", 3),
            ("UPDATE audit_log SET subject = 'other' WHERE id = 3", 3),
            ("UPDATE audit_log SET outcome = 'failed' WHERE id = 3", 3),
            ("UPDATE audit_log SET at = at + 1 WHERE id = 3", 3),
            ("""UPDATE audit_log SET detail = '{"n": 3}' WHERE id = 3""", 3),
            ("UPDATE audit_log SET detail = 'no JSON' WHERE id = 5", 5),
            ("UPDATE audit_log SET previous_hash = hash WHERE id = 3", 3),
            ("UPDATE audit_log SET hash = previous_hash WHERE id = 3", 3),
            ("DELETE FROM audit_log WHERE id = 1", 1),
            ("DELETE FROM audit_log WHERE id = 3", 3),
            ("DELETE FROM audit_log WHERE id = 5", 5),
            ("DELETE FROM audit_log WHERE id >= 3", 3),
            ("DELETE FROM audit_log", 1),
            ("UPDATE audit_log SET id = 6 WHERE id = 5", 5),
            ("DELETE FROM audit_head", 6),
            ("UPDATE audit_head SET last_id = 4", 5),
            (
                "INSERT INTO audit_log (store_id, id, at, actor, event, subject, outcome, detail, previous_hash, hash) "
                "SELECT store_id, 6, at, actor, event, subject, outcome, detail, hash, hash FROM audit_log WHERE id = 5",
                6,
            ),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_tampering_shows(self, catalog: Catalog, statement: str, broken: int) -> None:
        for number in range(5):
            catalog.audit("save", f"s{number}", "ok", {"n": number})
        assert catalog.verify_audit() is None
        self.execute(catalog, statement.replace(":", r"\:"))
        assert catalog.verify_audit() == broken
        assert catalog.audit_log() is not None

    def test_a_long_trail_verifies(self, catalog: Catalog) -> None:
        with catalog._database.writing() as connection:
            for number in range(1_050):
                audit.append(connection, "save", str(number), "ok", {}, "me")
        assert catalog.verify_audit() is None
        self.execute(catalog, "UPDATE audit_log SET subject = 'x' WHERE id = 1040")
        assert catalog.verify_audit() == 1_040
