"""The catalog's suite, part four: what attempts tell of themselves, configurations, tags of experiments."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from ckpt_core.catalog import Catalog
from ckpt_core.configuration import conditions
from ckpt_core.errors import UsageError
from ckpt_core.model import AttemptFacts
from contract.catalog_case import BEGIN, CatalogCase, attempt, checkpoint, point, uid

WIDE = "\U0001f9ea" * 255
CONFIG = {
    "optimizer": {"name": "adamw", "lr": 3e-4, "betas": [0.9, 0.999]},
    "epochs": 10,
    "amp": True,
    "note": None,
    "Ünï": "naïve ",
}


def facts(number: int = 1, experiment: str = "digits", **changes: Any) -> AttemptFacts:
    made = AttemptFacts(
        experiment=experiment,
        attempt=attempt(number),
        started_at=BEGIN + timedelta(microseconds=number),
        config=CONFIG,
        environment={"host": "here", "git_dirty": False, "packages": {"numpy": "2.0"}},
        process="boot/pid/1/2",
        lease=uid(70 + number),
    )
    return dataclasses.replace(made, **changes)


class ExperimentsContract(CatalogCase):
    """Experiments beyond their checkpoints."""

    def asked(self, catalog: Catalog, *texts: str) -> list[str]:
        return [found.name for found in catalog.experiment_facts(conditions=conditions(texts))]

    def test_facts_come_back(self, catalog: Catalog) -> None:
        ended = facts(
            2, origin=WIDE, word=uid(80), outcome="failed", reason="a\nb'\"é", ended_at=BEGIN, config=None
        )
        catalog.put_attempts([facts(1), ended])
        (found,) = catalog.experiment_facts()
        assert (found.name, found.tags, found.attempts) == ("digits", (), (facts(1), ended))

    def test_facts_are_overwritten_and_their_values_with_them(self, catalog: Catalog) -> None:
        catalog.put_attempts([facts(1)])
        said = facts(1, config={"lr": 1}, word=uid(81), outcome="finished", ended_at=BEGIN)
        catalog.put_attempts([said])
        assert catalog.experiment_facts("digits")[0].attempts == (said,)
        assert self.asked(catalog, "lr=1") == ["digits"]
        assert self.asked(catalog, "epochs=10") == []
        assert catalog.known_attempts() == {("digits", "A001"): uid(81)}

    def test_attempts_of_an_earlier_version_have_no_facts(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1), [])
        catalog.put_attempts([AttemptFacts("digits", attempt(1))])
        assert catalog.known_attempts() == {}
        assert catalog.experiment_facts("digits")[0].attempts == (AttemptFacts("digits", attempt(1)),)
        catalog.put_attempts([facts(1)])
        assert catalog.experiment_facts("digits")[0].attempts == (facts(1),)
        assert catalog.checkpoint(uid(1)) == checkpoint(1)

    def test_attempts_are_in_order_also_where_numbers_are_the_same(self, catalog: Catalog) -> None:
        made = [facts(3), facts(1), dataclasses.replace(facts(1), attempt=attempt(1, name="b"))]
        catalog.put_attempts(made)
        assert [each.attempt.id for each in catalog.experiment_facts()[0].attempts] == [
            "A001",
            "A001b",
            "A003",
        ]

    def test_names_of_255_characters(self, catalog: Catalog) -> None:
        config = {"k" * 200: {WIDE[:54]: WIDE}}
        catalog.put_attempts([facts(1, WIDE, config=config)])
        catalog.set_experiment_tag(WIDE, WIDE)
        (found,) = catalog.experiment_facts(WIDE, tags=[WIDE])
        assert (found.name, found.tags, found.attempts[0].config) == (WIDE, (WIDE,), config)
        path = f"{'k' * 200}.{WIDE[:54]}"
        assert self.asked(catalog, f"{path}={WIDE}") == [WIDE]
        assert self.asked(catalog, f"{path}={WIDE[1:]}") == []
        assert self.asked(catalog, f"{path[:-1]}={WIDE}") == []

    def test_what_is_too_long_to_ask_about_is_kept_all_the_same(self, catalog: Catalog) -> None:
        config = {"prompt": "x" * 100_000, "p" * 300: 1}
        catalog.put_attempts([facts(1, config=config)])
        assert catalog.experiment_facts()[0].attempts[0].config == config

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("optimizer.lr=0.0003", True),
            ("optimizer.lr = 3e-4", True),
            ("optimizer.lr=0.00030001", False),
            ("optimizer.lr>0.0003", False),
            ("optimizer.lr>=0.0003", True),
            ("optimizer.lr<0.001", True),
            ("optimizer.lr<=0.0002", False),
            ("optimizer.lr!=0.0003", False),
            ("optimizer.lr!=adamw", True),
            ("optimizer.betas.1=0.999", True),
            ("optimizer.name=adamw", True),
            ("optimizer.name=AdamW", False),
            ("optimizer.name=adamw ", True),
            ('optimizer.name="adamw "', False),
            ("optimizer.name>adam", True),
            ("optimizer.name<adamx", True),
            ("Ünï='naïve '", False),
            ('Ünï="naïve "', True),
            ('ünï="naïve "', False),
            ("Ünï=naive", False),
            ("epochs=10", True),
            ("epochs=10.0", True),
            ('epochs="10"', False),
            ("amp=true", True),
            ("amp=True", True),
            ("amp=1", False),
            ("amp!=false", True),
            ("epochs=true", False),
            ("note=null", True),
            ("note=None", True),
            ("note!=null", False),
            ("note!=3", True),
            ("missing=null", False),
            ("missing!=1", False),
            ("optimizer=adamw", False),
        ],
    )
    def test_a_configuration_value_is_asked_about_alike_everywhere(
        self, catalog: Catalog, text: str, found: bool
    ) -> None:
        catalog.put_attempts(
            [facts(1), facts(1, "other", config={"other": 1}), facts(1, "none", config=None)]
        )
        assert self.asked(catalog, text) == (["digits"] if found else [])
        assert all(condition.holds(CONFIG) for condition in conditions(text)) is found

    def test_conditions_and_tags_together(self, catalog: Catalog) -> None:
        for name, rate in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
            catalog.put_attempts([facts(1, name, config={"lr": rate, "depth": 3})])
            catalog.set_experiment_tag(name, "all")
        catalog.set_experiment_tag("b", "chosen")
        assert self.asked(catalog, "lr>0.1", "lr<0.3", "depth=3") == ["b"]
        assert self.asked(catalog, "lr>0.1", "depth=4") == []
        tagged = catalog.experiment_facts(tags=["all", "chosen"])
        assert [(each.name, each.tags) for each in tagged] == [("b", ("all", "chosen"))]
        assert catalog.experiment_facts("a", tags=["chosen"]) == []
        assert catalog.experiment_facts("nowhere") == []

    def test_tags_of_experiments(self, catalog: Catalog) -> None:
        catalog.set_experiment_tag("digits", "b")
        catalog.set_experiment_tag("digits", "b")
        catalog.set_experiment_tag("digits", "B")
        catalog.set_experiment_tag("other", "b")
        assert catalog.experiment_tags() == {("digits", "b"), ("digits", "B"), ("other", "b")}
        catalog.remove_experiment_tag("digits", "b")
        catalog.remove_experiment_tag("digits", "b")
        assert catalog.experiment_facts("digits")[0].tags == ("B",)
        assert [each.name for each in catalog.experiment_facts(tags=["b"])] == ["other"]
        with pytest.raises(UsageError):
            catalog.set_experiment_tag("digits", "x" * 256)

    def test_a_rebuild_replaces_attempts_and_tags(self, catalog: Catalog) -> None:
        catalog.put_attempts([facts(1), facts(1, "stale")])
        catalog.set_experiment_tag("stale", "old")
        catalog.add_metrics("digits", attempt(1), [point(1)])
        with catalog.rebuild() as rebuild:
            rebuild.put_attempts([facts(2)])
            rebuild.set_experiment_tag("digits", "new")
        (found,) = catalog.experiment_facts()
        assert (found.name, found.tags, found.attempts) == ("digits", ("new",), (facts(2),))
        assert self.count(catalog, "config_values") == 8

    def test_many_at_once(self, catalog: Catalog) -> None:
        catalog.put_attempts(facts(1 + n % 3, f"e{n // 3:04d}", config={"n": n}) for n in range(1500))
        assert len(catalog.experiment_facts()) == 500
        assert self.asked(catalog, "n>=1497") == ["e0499"]
