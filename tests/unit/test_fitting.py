"""Which weights of a checkpoint fit a model: by name, by shape, renamed, left out."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_core import StateMismatchError, WeightsReport
from ckpt_core.fitting import fit

SAVED = {"encoder.weight": (4, 4), "encoder.bias": (4,), "head.weight": (10, 4)}


def test_everything_fits() -> None:
    fitting, report = fit(SAVED, dict(SAVED))
    assert fitting == {name: name for name in SAVED}
    assert report.ok
    assert report.loaded == tuple(SAVED)
    assert str(report) == "3 weights fit"


def test_what_does_not_fit_is_named_and_refused() -> None:
    live = {"encoder.weight": (4, 4), "head.weight": (3, 4), "extra": (1,)}
    with pytest.raises(StateMismatchError) as caught:
        fit(SAVED, live)
    report: WeightsReport = caught.value.report
    assert report.missing == ("extra",)
    assert report.unexpected == ("encoder.bias",)
    assert report.misshapen == (("head.weight", (10, 4), (3, 4)),)
    assert set(caught.value.paths) == {"extra", "encoder.bias", "head.weight"}
    assert "head.weight [10, 4] -> [3, 4]" in str(caught.value)
    assert "strict=False" in str(caught.value)


def test_without_strict_what_fits_is_taken() -> None:
    fitting, report = fit(SAVED, {"encoder.weight": (4, 4), "head.weight": (3, 4)}, strict=False)
    assert fitting == {"encoder.weight": "encoder.weight"}
    assert not report.ok
    assert report.unexpected == ("encoder.bias",)


@pytest.mark.parametrize(
    ("renames", "names"),
    [
        ({"encoder": "backbone"}, ["backbone.weight", "backbone.bias", "head.weight"]),
        ({"encoder.": "backbone."}, ["backbone.weight", "backbone.bias", "head.weight"]),
        ({"": "model."}, ["model.encoder.weight", "model.encoder.bias", "model.head.weight"]),
        ({"encoder": ""}, ["weight", "bias", "head.weight"]),
        (
            {"encoder": "a", "encoder.bias": "b"},
            ["a.weight", "b", "head.weight"],
        ),
        ({"enc": "x"}, list(SAVED)),
    ],
)
def test_names_are_mapped(renames: dict[str, str | None], names: list[str]) -> None:
    live = dict(zip(names, SAVED.values(), strict=True))
    fitting, report = fit(SAVED, live, renames=renames)
    assert fitting == dict(zip(names, SAVED, strict=True))
    assert report.ok


def test_what_is_left_out_is_not_missed_by_the_checkpoint() -> None:
    fitting, report = fit(SAVED, {"encoder.weight": (4, 4), "encoder.bias": (4,)}, renames={"head": None})
    assert report.left_out == ("head.weight",)
    assert report.ok
    assert len(fitting) == 2
    assert "1 left out by renames=: head.weight" in str(report)


def test_two_that_go_to_one_name_do_not_overwrite_each_other() -> None:
    fitting, report = fit({"a": (1,), "b": (1,)}, {"a": (1,)}, strict=False, renames={"b": "a"})
    assert fitting == {"a": "a"}
    assert report.unexpected == ("b",)


def test_paths_of_slashes_are_mapped_too() -> None:
    fitting, _ = fit({"params/dense/kernel": (1,)}, {"dense/kernel": (1,)}, renames={"params": ""})
    assert fitting == {"dense/kernel": "params/dense/kernel"}


def test_only_what_is_needed_is_missing() -> None:
    _, report = fit({"a": (1,)}, {"a": (1,), "tied": (1,)}, needed={"a"})
    assert report.ok


@pytest.mark.parametrize(("saved", "live"), [(None, (3,)), ((3,), None)])
def test_what_has_no_shape_fits_by_its_name(saved: Any, live: Any) -> None:
    assert fit({"a": saved}, {"a": live})[1].ok


def test_long_reports_are_cut() -> None:
    _, report = fit({}, {f"layer.{number}": (1,) for number in range(20)}, strict=False)
    assert "and 12 more" in str(report)
