"""The catalog's suite, part one: checkpoints written, read again, tagged, pinned, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ckpt_core.catalog import Catalog
from ckpt_core.errors import NotFoundError
from ckpt_core.model import Attempt
from contract.catalog_case import BEGIN, INF, NAN, CatalogCase, attempt, checkpoint, same, uid


class CheckpointsContract(CatalogCase):
    """What is put is what is found."""

    # -- checkpoints, written and read again

    def test_empty(self, catalog: Catalog) -> None:
        assert catalog.checkpoints() == []
        assert catalog.checkpoints("digits") == []
        assert catalog.checkpoint(uid(1)) is None
        assert catalog.newest("digits") is None
        assert catalog.best("digits", "loss", "min") == []
        assert catalog.ids("digits") == set()
        assert catalog.tags("digits") == {}
        assert catalog.packs(uid(1)) == []
        assert catalog.find_prefix("0100") == []
        assert catalog.experiments() == []
        assert catalog.metric_names("digits") == []
        assert catalog.metric_series("digits", "loss") == []
        assert catalog.checks() == []
        assert catalog.audit_log() == []
        assert catalog.verify_audit() is None

    def test_every_field_comes_back(self, catalog: Catalog) -> None:
        put = checkpoint(
            7,
            experiment="Größe 数字 🧪",
            step=2**62,
            attempt=Attempt(3, "A3", "L1", uid(2), 2**61),
            logical_bytes=2**60,
            metrics={"val_loss": 0.1 + 0.2, "tiny": 5e-324, "huge": 1.7976931348623157e308, "whole": 3.0},
            tags=("best so far", "ünïcode"),
            pinned=True,
        )
        catalog.put_checkpoint(put, [("digits/p-0-0.safetensors", 2**59), ("digits/q-0-0.safetensors", 5)])
        assert catalog.checkpoint(put.id) == put
        assert catalog.packs(put.id) == [("digits/p-0-0.safetensors", 2**59), ("digits/q-0-0.safetensors", 5)]

    def test_absent_fields_come_back_absent(self, catalog: Catalog) -> None:
        put = checkpoint(0, parent=None, attempt=Attempt(1, "A1", "A1"))
        catalog.put_checkpoint(put, [])
        assert catalog.checkpoint(put.id) == put

    def test_zero_is_not_absent(self, catalog: Catalog) -> None:
        put = checkpoint(
            0, step=0, attempt=Attempt(0, "A1", "A1", uid(3), 0), logical_bytes=0, metrics={"loss": 0.0}
        )
        catalog.put_checkpoint(put, [("empty", 0)])
        assert catalog.checkpoint(put.id) == put
        assert catalog.packs(put.id) == [("empty", 0)]

    @pytest.mark.parametrize(
        "moment",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(2038, 1, 19, 3, 14, 8, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ],
    )
    def test_moments_are_kept_to_the_microsecond(self, catalog: Catalog, moment: datetime) -> None:
        catalog.put_checkpoint(checkpoint(1, created_at=moment), [])
        found = catalog.checkpoint(uid(1))
        assert found is not None
        assert found.created_at == moment
        assert found.created_at.tzinfo is UTC

    def test_another_time_zone_is_the_same_moment(self, catalog: Catalog) -> None:
        moment = BEGIN.astimezone(timezone(timedelta(hours=5, minutes=45)))
        catalog.put_checkpoint(checkpoint(1, created_at=moment), [])
        found = catalog.checkpoint(uid(1))
        assert found is not None
        assert found.created_at.isoformat() == BEGIN.isoformat()

    def test_numbers_that_are_not_finite_come_back(self, catalog: Catalog) -> None:
        metrics = {"a": NAN, "b": INF, "c": -INF, "d": 1.5}
        catalog.put_checkpoint(checkpoint(1, metrics=metrics), [])
        found = catalog.checkpoint(uid(1))
        assert found is not None
        assert found.metrics.keys() == metrics.keys()
        assert all(same(found.metrics[name], value) for name, value in metrics.items())

    def test_putting_twice_is_putting_once(self, catalog: Catalog) -> None:
        put = checkpoint(1, metrics={"loss": 1.0}, tags=("a",), pinned=True)
        for _ in range(2):
            catalog.put_checkpoint(put, [("p", 1)])
        assert catalog.checkpoints() == [put]
        assert catalog.packs(put.id) == [("p", 1)]

    def test_putting_again_replaces_what_can_change(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(
            checkpoint(1, metrics={"loss": 1.0, "old": 2.0}, tags=("a", "b"), pinned=True),
            [("p", 1), ("q", 2)],
        )
        later = checkpoint(1, metrics={"loss": 3.0}, tags=("b", "c"), written_bytes=5)
        catalog.put_checkpoint(later, [("q", 20), ("r", 3)])
        assert catalog.checkpoint(uid(1)) == later
        assert catalog.packs(uid(1)) == [("q", 20), ("r", 3)]
        assert catalog.tags("digits") == {"b": uid(1), "c": uid(1)}
        assert catalog.best("digits", "old", "min") == []

    def test_many_are_put_in_batches_from_an_iterator(self, catalog: Catalog) -> None:
        many = [checkpoint(n, metrics={"loss": float(n)}, tags=(f"t{n}",)) for n in range(1_203)]
        assert (
            catalog.put_checkpoints((each, [(f"p{each.step}", 1), ("shared", 2)]) for each in many) == 1_203
        )
        assert catalog.checkpoints("digits") == many
        assert catalog.packs(uid(1_200)) == [("p1200", 1), ("shared", 2)]
        assert catalog.forget_checkpoints(each.id for each in many[:1_201]) == 1_201
        assert catalog.ids("digits") == {uid(1_201), uid(1_202)}

    def test_of_one_id_given_twice_the_later_counts(self, catalog: Catalog) -> None:
        catalog.put_checkpoints([(checkpoint(1, step=5), []), (checkpoint(1, step=6), [])])
        assert [each.step for each in catalog.checkpoints()] == [6]

    def test_nothing_put_is_nothing_done(self, catalog: Catalog) -> None:
        assert catalog.put_checkpoints([]) == 0
        assert catalog.forget_checkpoints([]) == 0
        assert catalog.add_metrics("digits", attempt(1), []) == 0
        assert catalog.experiments() == []

    # -- tags and pins

    def test_a_tag_moves(self, catalog: Catalog) -> None:
        catalog.put_checkpoints((checkpoint(n), []) for n in range(3))
        catalog.set_tag("digits", "good", uid(0))
        catalog.set_tag("digits", "good", uid(1))
        catalog.set_tag("digits", "also", uid(1))
        assert catalog.tags("digits") == {"also": uid(1), "good": uid(1)}
        assert [c.tags for c in catalog.checkpoints("digits")] == [(), ("also", "good"), ()]
        catalog.put_checkpoint(checkpoint(2, tags=("good",)), [])
        assert catalog.tags("digits") == {"also": uid(1), "good": uid(2)}

    def test_tags_belong_to_experiments(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1, tags=("good",)), [])
        catalog.put_checkpoint(checkpoint(2, experiment="other", tags=("good",)), [])
        assert catalog.tags("digits") == {"good": uid(1)}
        assert catalog.tags("other") == {"good": uid(2)}

    def test_forgotten_pins_do_not_count(self, catalog: Catalog) -> None:
        catalog.put_checkpoints((checkpoint(n, pinned=True), []) for n in range(2))
        catalog.forget_checkpoints([uid(0)])
        assert catalog.pinned("digits") == {uid(1)}

    def test_a_tag_is_removed_once(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1, tags=("good", "kept")), [])
        assert catalog.remove_tag("digits", "good") is True
        assert catalog.remove_tag("digits", "good") is False
        assert catalog.remove_tag("unknown", "kept") is False
        assert catalog.tags("digits") == {"kept": uid(1)}

    def test_only_a_live_checkpoint_of_the_experiment_can_be_tagged(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1), [])
        catalog.put_checkpoint(checkpoint(2, experiment="other"), [])
        catalog.put_checkpoint(checkpoint(3), [])
        catalog.forget_checkpoints([uid(3)])
        for target in (uid(2), uid(3), uid(99)):
            with pytest.raises(NotFoundError) as caught:
                catalog.set_tag("digits", "good", target)
            assert caught.value.id == target
        assert catalog.tags("digits") == {}

    def test_pins(self, catalog: Catalog) -> None:
        catalog.put_checkpoints((checkpoint(n), []) for n in range(2))
        catalog.set_pinned(uid(0), True)
        assert [c.pinned for c in catalog.checkpoints()] == [True, False]
        assert catalog.pinned("digits") == {uid(0)}
        assert catalog.pinned("other") == set()
        catalog.set_pinned(uid(0), True)
        catalog.set_pinned(uid(0), False)
        assert [c.pinned for c in catalog.checkpoints()] == [False, False]
        catalog.forget_checkpoints([uid(1)])
        for target in (uid(1), uid(99)):
            with pytest.raises(NotFoundError):
                catalog.set_pinned(target, True)

    # -- forgotten and dropped

    def test_the_forgotten_are_found_only_when_asked_for(self, catalog: Catalog) -> None:
        kept, gone = (checkpoint(n, metrics={"loss": -float(n)}, tags=(f"t{n}",)) for n in (1, 2))
        catalog.put_checkpoints([(kept, []), (gone, [("p", 1)])])
        assert catalog.forget_checkpoints([gone.id, uid(99)]) == 1
        assert catalog.forget_checkpoints([gone.id]) == 0
        assert catalog.checkpoint(gone.id) is None
        assert catalog.checkpoints() == [kept]
        assert catalog.checkpoints("digits") == [kept]
        assert catalog.checkpoints("digits", tag="t2") == []
        assert catalog.find_prefix(gone.id) == []
        assert catalog.ids("digits") == {kept.id}
        assert catalog.newest("digits") == kept
        assert catalog.best("digits", "loss", "min") == [kept]
        assert catalog.tags("digits") == {"t1": kept.id}
        assert catalog.experiments()[0].checkpoints == 1
        assert catalog.checkpoint(gone.id, include_forgotten=True) == gone
        assert catalog.checkpoints("digits", include_forgotten=True) == [kept, gone]
        assert catalog.checkpoints(include_forgotten=True) == [kept, gone]
        assert catalog.checkpoints("digits", tag="t2", include_forgotten=True) == [gone]
        assert catalog.ids("digits", include_forgotten=True) == {kept.id, gone.id}
        assert catalog.ids(include_forgotten=True) == {kept.id, gone.id}
        assert catalog.packs(gone.id) == [("p", 1)]

    def test_putting_brings_a_forgotten_one_back(self, catalog: Catalog) -> None:
        put = checkpoint(1, metrics={"loss": 1.0}, tags=("a",))
        catalog.put_checkpoint(put, [("p", 1)])
        catalog.forget_checkpoints([put.id])
        catalog.put_checkpoint(put, [("p", 1)])
        assert catalog.newest("digits") == put
        assert catalog.best("digits", "loss", "max") == [put]
        assert catalog.tags("digits") == {"a": put.id}

    def test_a_tag_leaves_a_forgotten_one_for_good_when_set_elsewhere(self, catalog: Catalog) -> None:
        catalog.put_checkpoints([(checkpoint(1, tags=("a",)), []), (checkpoint(2), [])])
        catalog.forget_checkpoints([uid(1)])
        catalog.set_tag("digits", "a", uid(2))
        assert catalog.tags("digits") == {"a": uid(2)}

    def test_packs_of_all_live_manifests(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1), [("a", 1), ("b", 1)])
        catalog.put_checkpoint(checkpoint(2, experiment="other"), [("b", 1)])
        catalog.put_checkpoint(checkpoint(3), [("c", 1)])
        catalog.put_checkpoint(checkpoint(4), [])
        catalog.forget_checkpoints([uid(3)])
        found = {key: sorted(names) for key, names in catalog.packs_by_key().items()}
        assert found == {checkpoint(1).key: ["a", "b"], checkpoint(2).key: ["b"]}

    def test_packs_that_nobody_names_any_more_go(self, catalog: Catalog) -> None:
        catalog.put_checkpoint(checkpoint(1), [("old", 1), ("shared", 1)])
        catalog.put_checkpoint(checkpoint(2), [("shared", 1)])
        catalog.put_checkpoint(checkpoint(1), [("new", 1)])
        assert catalog.packs(uid(2)) == [("shared", 1)]
        assert self.count(catalog, "packs") == 2
