"""Bringing the catalog in line with what the store holds of attempts and experiments' tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_core.format.names import encode_name
from ckpt_core.model import AttemptFacts
from ckpt_core.repository import ExperimentRecords, last_words
from ckpt_core.repository.layout import experiment_tag_key, parse_attempt_key, parse_experiment_tag_key

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["synchronise_experiments"]


def synchronise_experiments(records: ExperimentRecords, catalog: Catalog) -> None:
    """Adds to the catalog what attempts have told and it lacks, and makes the tags of experiments the same.

    Costs a listing where nothing differs. Raises CatalogError, StoreError.
    """
    keys = list(records.keys())
    known = {(encode_name(name), attempt): word for (name, attempt), word in catalog.known_attempts().items()}
    fresh: list[AttemptFacts] = []
    for place, (start, word) in last_words(keys).items():
        said = parse_attempt_key(word) if word is not None else None
        if place not in known or known[place] != (said.word if said is not None else None):
            facts = records.attempt(start, word)
            if facts is not None:
                fresh.append(facts)
    if fresh:
        catalog.put_attempts(fresh)
    had = {
        experiment_tag_key(experiment, tag): (experiment, tag)
        for experiment, tag in catalog.experiment_tags()
    }
    standing = {key for key in keys if parse_experiment_tag_key(key) is not None}
    for key in sorted(had.keys() - standing):
        catalog.remove_experiment_tag(*had[key])
    for key in sorted(standing - had.keys()):
        found = records.tag(key)
        if found is not None:
            catalog.set_experiment_tag(*found)
