"""The catalog's suite, part two: names, lists, the newest and the best."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import ColumnElement, select

from ckpt_core.catalog import Catalog
from ckpt_core.catalog.schema import checkpoints
from ckpt_core.errors import UsageError
from ckpt_core.model import Attempt, Checkpoint, ExperimentSummary, MetricPoint
from contract.catalog_case import BEGIN, INF, NAN, CatalogCase, attempt, checkpoint, lose, point, uid

HOSTILE = (
    "Robert'); DROP TABLE checkpoints;--",
    '" OR ""="',
    "%",
    "_",
    "a%b_c",
    "\\",
    "\\' OR 1=1 --",
    "?",
    ":name",
    "%(name)s",
    "{0}",
    "../../etc/passwd",
    "line\nbreak\ttab\r",
    "\x1b[31mred",
    "\u202egnp.exe",
    "NULL",
    "\u0000".replace("\0", "") + " ",
    "🧪" * 255,
)
# Each pair is two names: no database may take them for one.
ALIKE = (("run", "Run"), ("run", "run "), ("é", "e\u0301"), ("ss", "ß"), ("a", "á"), ("i", "İ"), ("n", "n\t"))


class QueriesContract(CatalogCase):
    """Questions, and names that try to be more than names."""

    # -- names

    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
    def test_names_are_data(self, catalog: Catalog, name: str) -> None:
        decoy = checkpoint(1, metrics={"loss": 1.0}, tags=("decoy",))
        put = checkpoint(2, experiment=name, metrics={name: 1.0}, tags=(name,))
        catalog.put_checkpoint(decoy, [])
        catalog.put_checkpoint(put, [(name, 3)])
        catalog.add_metrics(name, attempt(1), [point(1, name=name)])
        assert catalog.checkpoints(name) == [put]
        assert catalog.checkpoints(name, tag=name) == [put]
        assert catalog.newest(name) == put
        assert catalog.best(name, name, "max") == [put]
        assert catalog.tags(name) == {name: put.id}
        assert catalog.packs(put.id) == [(name, 3)]
        assert catalog.metric_names(name) == [name]
        assert catalog.metric_series(name, name) == [point(1, name=name)]
        assert catalog.find_prefix(name) == []
        assert catalog.remove_tag(name, name)
        assert catalog.checkpoints("digits") == [decoy]
        assert catalog.tags("digits") == {"decoy": decoy.id}

    @pytest.mark.parametrize(("one", "other"), ALIKE, ids=ascii)
    def test_names_that_look_alike_are_two(self, catalog: Catalog, one: str, other: str) -> None:
        catalog.put_checkpoint(
            checkpoint(1, experiment=one, tags=(one, other), metrics={one: 1, other: 2}), []
        )
        catalog.put_checkpoint(checkpoint(2, experiment=other), [(one, 1), (other, 2)])
        catalog.add_metrics(one, attempt(1), [point(1, 1.0, name=one), point(1, 2.0, name=other)])
        assert {each.name for each in catalog.experiments()} == {one, other}
        assert [each.id for each in catalog.checkpoints(one)] == [uid(1)]
        assert set(catalog.tags(one)) == {one, other}
        assert set(catalog.metric_names(one)) == {one, other}
        assert sorted(catalog.packs(uid(2))) == sorted([(one, 1), (other, 2)])
        assert catalog.metric_series(one, other) == [point(1, 2.0, name=other)]

    def test_names_sort_by_code_points(self, catalog: Catalog) -> None:
        names = ["B", "a", "Z", "é", "z", "A", "_", "文", "🧪"]
        for number, name in enumerate(names):
            catalog.put_checkpoint(checkpoint(number, experiment=name), [])
        assert [each.name for each in catalog.experiments()] == sorted(names)

    @pytest.mark.parametrize(
        "bad", ["", "x" * 256, "a\0b", "\ud800"], ids=["empty", "long", "nul", "surrogate"]
    )
    def test_a_name_that_no_database_holds_is_refused(self, catalog: Catalog, bad: str) -> None:
        attempts: list[Callable[[], Any]] = [
            lambda: catalog.put_checkpoint(checkpoint(1, experiment=bad), []),
            lambda: catalog.put_checkpoint(checkpoint(1, tags=(bad,)), []),
            lambda: catalog.put_checkpoint(checkpoint(1, metrics={bad: 1.0}), []),
            lambda: catalog.put_checkpoint(checkpoint(1), [(bad * 3, 1)]),
            lambda: catalog.put_checkpoint(checkpoint(1, id=bad), []),
            lambda: catalog.put_checkpoint(checkpoint(1, key=bad * 3), []),
            lambda: catalog.put_checkpoint(checkpoint(1, digest=bad), []),
            lambda: catalog.put_checkpoint(checkpoint(1, attempt=Attempt(1, bad, "L")), []),
            lambda: catalog.put_checkpoint(checkpoint(1, attempt=Attempt(1, "A", bad)), []),
            lambda: catalog.add_metrics(bad, attempt(1), [point(1)]),
            lambda: catalog.add_metrics("digits", attempt(1), [point(1, name=bad)]),
            lambda: catalog.record_check(uid(1), bad, "ok"),
        ]
        for action in attempts:
            with pytest.raises(UsageError) as caught:
                action()
            assert caught.value.kind == "name"
        assert catalog.experiments() == []
        assert catalog.checks() == []

    @pytest.mark.parametrize("field", ["step", "logical_bytes", "written_bytes", "tensor_count"])
    def test_a_number_beyond_64_bits_is_refused(self, catalog: Catalog, field: str) -> None:
        with pytest.raises(UsageError) as caught:
            catalog.put_checkpoint(checkpoint(1, **{field: 2**63}), [])
        assert caught.value.kind == "range"
        with pytest.raises(UsageError):
            catalog.add_metrics("digits", attempt(1), [point(1), MetricPoint("loss", 2**63, 1.0, BEGIN, 1)])
        assert catalog.experiments() == []

    def test_a_moment_without_time_zone_is_refused(self, catalog: Catalog) -> None:
        naive = BEGIN.replace(tzinfo=None)
        with pytest.raises(UsageError) as caught:
            catalog.put_checkpoint(checkpoint(1, created_at=naive), [])
        assert caught.value.kind == "time"
        with pytest.raises(UsageError):
            catalog.add_metrics("digits", attempt(1), [MetricPoint("loss", 1, 1.0, naive, 1)])
        assert catalog.experiments() == []

    # -- lists

    @pytest.fixture
    def population(self, catalog: Catalog) -> list[Checkpoint]:
        """Checkpoints of two experiments in every order there is, put in no order."""
        made = []
        attempts = [
            attempt(1),
            attempt(2, lineage=1),
            attempt(2, name="x"),
            attempt(3, lineage=2),
            attempt(10),
        ]
        for number, (each, step) in enumerate(itertools.product(attempts, (5, 10, 10, 100))):
            tags = (f"tag{number}",) if number % 3 == 0 else ()
            made.append(checkpoint(500 - number, attempt=each, step=step, tags=tags))
        made += [checkpoint(1_000 + n, experiment="other", step=10, tags=(f"tag{n}",)) for n in range(3)]
        random.Random(1).shuffle(made)
        catalog.put_checkpoints((each, []) for each in made)
        return made

    def test_a_list_is_in_the_order_of_checkpoints(
        self, catalog: Catalog, population: list[Checkpoint]
    ) -> None:
        expected = sorted((c for c in population if c.experiment == "digits"), key=lambda c: c.order)
        assert catalog.checkpoints("digits") == expected
        assert catalog.checkpoints("digits", newest_first=True) == expected[::-1]
        assert catalog.checkpoints("digits", newest_first=True, limit=3) == expected[::-1][:3]
        assert catalog.checkpoints("digits", limit=4, offset=3) == expected[3:7]
        assert catalog.checkpoints("digits", offset=15) == expected[15:]
        assert catalog.checkpoints("digits", limit=0) == []
        assert catalog.newest("digits") == expected[-1]

    def test_a_list_across_experiments_is_in_the_order_of_time(
        self, catalog: Catalog, population: list[Checkpoint]
    ) -> None:
        expected = sorted(population, key=lambda c: (c.created_at, c.id))
        assert catalog.checkpoints() == expected
        assert catalog.checkpoints(newest_first=True, limit=5) == expected[::-1][:5]

    def test_conditions_add_up(self, catalog: Catalog, population: list[Checkpoint]) -> None:
        experiments = (None, "digits", "other", "unknown")
        lineages = (None, "L001", "L002", "L010", "L999")
        for chosen in itertools.product(
            experiments, lineages, (None, 5, 10, 11), (None, "tag0", "tag3", "none")
        ):
            experiment, lineage, step, tag = chosen
            expected = [
                c.id
                for c in population
                if experiment in (None, c.experiment)
                and lineage in (None, c.attempt.lineage)
                and step in (None, c.step)
                and (tag is None or tag in c.tags)
            ]
            found = catalog.checkpoints(experiment, lineage=lineage, step=step, tag=tag)
            assert sorted(c.id for c in found) == sorted(expected), chosen

    def test_ids(self, catalog: Catalog, population: list[Checkpoint]) -> None:
        assert catalog.ids("digits") == {c.id for c in population if c.experiment == "digits"}
        assert catalog.ids() == {c.id for c in population}

    def test_prefixes(self, catalog: Catalog) -> None:
        for name in ("01ABCD", "01ABCE", "01ABD", "01AB", "02", "01%BC", "01_BC"):
            catalog.put_checkpoint(checkpoint(1, id=name, experiment="e" + name[:2]), [])

        def found(prefix: str, experiment: str | None = None, limit: int = 10) -> list[str]:
            return [each.id for each in catalog.find_prefix(prefix, experiment, limit)]

        assert found("01ABC") == ["01ABCD", "01ABCE"]
        assert found("01AB", limit=2) == ["01AB", "01ABCD"]
        assert found("01ABCD") == ["01ABCD"]
        assert found("01ABCDE") == []
        assert found("01%") == ["01%BC"]
        assert found("01_") == ["01_BC"]
        assert found("0", "e02") == ["02"]
        assert found("0", "nowhere") == []
        assert found("01ab") == []
        assert found("0é") == []

    def test_experiments(self, catalog: Catalog) -> None:
        catalog.put_checkpoints(
            (checkpoint(n, attempt=attempt(1 + n // 3), step=100 - n), []) for n in range(5)
        )
        catalog.put_checkpoint(checkpoint(9, experiment="logged"), [])
        lose(catalog, [uid(9)])
        catalog.add_metrics("digits", attempt(7), [point(1, number=7)])
        catalog.forget_checkpoints([uid(0)])
        assert catalog.experiments() == [
            ExperimentSummary(
                name="digits",
                checkpoints=4,
                attempts=3,
                first_at=BEGIN + timedelta(microseconds=1),
                last_at=BEGIN + timedelta(microseconds=4),
                last_step=97,
                logical_bytes=4_010,
                written_bytes=410,
            ),
            ExperimentSummary("logged", 0, 1, None, None, None, 0, 0),
        ]

    def test_columns_of_json_are_asked_alike(self, catalog: Catalog) -> None:
        for number, value in enumerate((0.25, 0.5, 3.0, NAN)):
            metrics = {"val/loss.x": value, "é 🧪": number}
            catalog.put_checkpoint(checkpoint(number, metrics=metrics), [])
        metric = checkpoints.c.metrics["val/loss.x"]

        def found(condition: ColumnElement[bool]) -> list[str]:
            query = select(checkpoints.c.uid).where(condition).order_by(checkpoints.c.uid)
            with catalog._database.reading() as connection:
                return list(connection.scalars(query))

        assert found(metric.as_string() == "nan") == [uid(3)]
        known = checkpoints.c.step < 3
        assert found(known & (metric.as_float() < 0.4)) == [uid(0)]
        assert found(known & (metric.as_float() >= 0.5)) == [uid(1), uid(2)]
        assert found(checkpoints.c.metrics["é 🧪"].as_float() == 2) == [uid(2)]

    # -- the newest and the best

    def test_newest_is_of_the_newest_attempt_that_saved(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(9, step=900, attempt=attempt(1)), [])
        catalog.put_checkpoint(checkpoint(1, step=3, attempt=attempt(2)), [])
        catalog.put_checkpoint(checkpoint(2, step=1, attempt=attempt(2)), [])
        catalog.add_metrics("digits", attempt(3), [point(1, number=3)])
        newest = catalog.newest("digits")
        assert newest is not None
        assert newest.id == uid(1)

    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_best_agrees_with_sorting(self, catalog: Catalog, mode: Any) -> None:
        chance = random.Random(2)
        values = [-INF, -1e308, -2.5, 0.0, 1 / 3, 1.0, 1.0, 1e308, INF, NAN]
        made = [
            checkpoint(
                number,
                attempt=attempt(chance.choice((1, 2, 3)), lineage=chance.choice((1, 2))),
                step=chance.randrange(10),
                metrics={"loss": chance.choice(values)} if chance.random() < 0.9 else {"other": 1.0},
            )
            for number in chance.sample(range(300), 120)
        ]
        # An attempt is of one lineage.
        made = [
            dataclasses.replace(c, attempt=attempt(c.attempt.number, lineage=1 + c.attempt.number % 2))
            for c in made
        ]
        catalog.put_checkpoints((each, []) for each in made)
        sign = 1 if mode == "min" else -1
        for lineage in (None, "L001", "L002", "L003"):
            ranked = sorted(
                (
                    c
                    for c in made
                    if lineage in (None, c.attempt.lineage) and not math.isnan(c.metrics.get("loss", NAN))
                ),
                key=lambda c: (sign * c.metrics["loss"], c.order),
            )
            for limit in (1, 2, 7, 30, 500):
                found = catalog.best("digits", "loss", mode, lineage, limit)
                assert [c.id for c in found] == [c.id for c in ranked[:limit]], (lineage, limit)

    def test_a_tie_goes_to_the_older(self, catalog: Catalog) -> None:
        for number in (3, 1, 2):
            catalog.put_checkpoint(checkpoint(10 - number, attempt=attempt(number), metrics={"acc": 1.0}), [])
        for mode in ("min", "max"):
            assert [c.attempt.number for c in catalog.best("digits", "acc", mode, limit=3)] == [1, 2, 3]

    def test_best_is_found_in_whatever_lineage(self, catalog: Catalog) -> None:
        values = {1: (5.0, 9.0), 2: (1.0, 8.0), 3: (6.0, 7.0), 4: (2.0, 10.0)}
        made = [
            checkpoint(10 * number + turn, attempt=attempt(number), metrics={"loss": value})
            for number, pair in values.items()
            for turn, value in enumerate(pair)
        ]
        catalog.put_checkpoints((each, []) for each in made)
        ranked = sorted(made, key=lambda c: c.metrics["loss"])
        for limit in range(1, 9):
            assert catalog.best("digits", "loss", "min", limit=limit) == ranked[:limit]
            assert catalog.best("digits", "loss", "max", limit=limit) == ranked[::-1][:limit]

    def test_best_is_of_one_experiment(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1, metrics={"loss": 2.0}), [])
        catalog.put_checkpoint(checkpoint(2, experiment="other", metrics={"loss": 1.0}), [])
        assert [c.id for c in catalog.best("digits", "loss", "min")] == [uid(1)]
        assert [c.id for c in catalog.best("digits", "loss", "min", "L001")] == [uid(1)]
        assert [c.id for c in catalog.best("other", "loss", "min")] == [uid(2)]

    def test_best_carries_the_whole_checkpoint(self, catalog: Catalog) -> None:
        put = checkpoint(1, metrics={"loss": 2.0, "acc": NAN}, tags=("a",), pinned=True)
        catalog.put_checkpoint(put, [])
        assert repr(catalog.best("digits", "loss", "min")[0].tags) == "('a',)"
        assert catalog.best("digits", "acc", "max") == []
        assert catalog.best("digits", "loss", "min", limit=0) == []

    def test_best_refuses_a_mode_that_means_nothing(self, catalog: Catalog) -> None:
        with pytest.raises(UsageError) as caught:
            catalog.best("digits", "loss", "lowest")  # type: ignore[arg-type]
        assert caught.value.kind == "mode"
