"""What a loader is made of, so that another process knows it again, or says in what it differs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_torch.iterators import is_plain

__all__ = ["describe", "of_samples", "roots", "warn_of_differences"]

_log = logging.getLogger("ckpt_core.torch.data")


def of_samples(paths: Iterable[str]) -> set[str]:
    """Those of `paths` that samples may depend on; a sampler is walked again in any case."""
    return {path for path in paths if path.startswith(("dataset", "collate_fn", "loader"))}


def roots(loader: Any) -> dict[str, object]:
    if not is_plain(loader):
        return {"loader": loader}
    names = ("dataset", "collate_fn", "sampler", "batch_sampler", "generator")
    return {name: getattr(loader, name) for name in names}


def describe(loader: Any) -> dict[str, Any]:
    """What must not differ between the process that saved and the one that resumes."""
    if not is_plain(loader):
        return {"type": type(loader).__name__}
    try:
        samples: int | None = len(loader.dataset)
    except TypeError:
        samples = None
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    return {
        "type": type(loader).__name__,
        "samples": samples,
        "batch_size": getattr(sampler, "batch_size", loader.batch_size),
        "drop_last": getattr(sampler, "drop_last", loader.drop_last),
        "sampler": type(getattr(sampler, "sampler", sampler)).__name__,
        "num_workers": loader.num_workers,
        "persistent_workers": loader.persistent_workers,
        "in_order": getattr(loader, "in_order", True),
    }


def warn_of_differences(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differences = [
        f"{key} was {saved[key]!r}, is {now.get(key)!r}" for key in saved if saved[key] != now.get(key)
    ]
    if differences:
        _log.warning(
            "%s differs from the one that the checkpoint was made with (%s): the data will not be the same "
            "as in an uninterrupted run", name, "; ".join(differences),
        )  # fmt: skip
    if not now.get("in_order", True):
        _log.warning("%s hands out batches as they come (in_order=False): no two runs are the same", name)
