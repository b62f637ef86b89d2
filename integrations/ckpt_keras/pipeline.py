"""A `tf.data` pipeline that TensorFlow iterates by itself: its position, and what of it cannot be restored.

Positions are counted: iterators made, as each gives a shuffle its next order, and batches since. That is exact
where the pipeline is the same again, which takes seeds. Keras' own pipeline over arrays is seeded here where the
program has set no seed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core import UsageError

__all__ = ["Pipeline", "doubts"]

_log = logging.getLogger("ckpt_core.keras.data")


class Pipeline:
    """The pipeline of one epoch iterator of Keras. `arrays`: it is Keras' own, over arrays that it shuffles."""

    def __init__(self, epochs: Any, name: str, *, arrays: bool) -> None:
        self.name = name
        self._epochs = epochs
        self._strategy = epochs._distribute_strategy
        self._arrays = arrays
        self._base: int | None = None
        self._fixed: int | None = None
        if arrays and _global_seed() is None:
            self._base = int.from_bytes(os.urandom(3), "big")
        self.made = 0
        self._skip = 0
        self._last: Any = None
        self._used = True
        for doubt in [] if arrays else doubts(epochs.data_adapter.get_tf_dataset()):
            _log.warning("%s: %s", name, doubt)

    def __iter__(self) -> Iterator[Any]:
        """An iterator, as Keras asks for one."""
        if self._base is not None and not self._used and not self._skip:
            return self._last  # type: ignore[no-any-return]  # Keras asks twice, and each takes a new pipeline
        self.made += 1
        self._used = False
        skip, self._skip = self._skip, 0
        self._last = iter(self._dataset(skip))
        return self._last  # type: ignore[no-any-return]

    def delivering(self) -> None:
        """A batch is about to be asked of the last iterator."""
        self._used = True

    def position(self, delivered: int) -> dict[str, Any]:
        """Where it stands when so many batches of the last iterator have been trained on."""
        return {"made": self.made, "delivered": delivered, "base": self._base, "seed": _global_seed()}

    def resume(self, position: Mapping[str, Any]) -> None:
        """Have the next iterator go on where `position` was taken."""
        begun = position["delivered"] > 0
        if self._arrays and position["base"] is None:
            self._fixed = position[
                "seed"
            ]  # whatever it is now: the pipeline is Keras', and can be made again
        elif position["seed"] != _global_seed() and not self._arrays:
            _log.warning(
                "%s was shuffled by TensorFlow's seed %s, and now by %s: the data will not be the same. Call "
                "keras.utils.set_random_seed with the same number before the data is made",
                self.name, position["seed"], _global_seed(),
            )  # fmt: skip
        self._base = position["base"]
        wanted = position["made"] - (1 if begun else 0)
        if self._base is None:
            for _ in range(self.made, wanted):
                iter(self._dataset(0))
        self.made = wanted
        self._skip = position["delivered"]
        self._used = True
        if begun:
            _log.info("%s: going to batch %d by skipping to it", self.name, position["delivered"])

    def _dataset(self, skip: int) -> Any:
        whole = self._epochs._distributed_dataset
        seed = self._fixed if self._base is None else self._base + self.made
        if seed is None and (not skip or hasattr(whole, "skip")):
            return whole.skip(skip) if skip else whole
        with _Seed(seed):
            dataset = self._epochs.data_adapter.get_tf_dataset()
        if skip and not hasattr(dataset, "skip"):
            raise UsageError(
                f"{self.name} is distributed already and cannot be gone on with in the midst of an epoch: give fit "
                "the tf.data.Dataset itself, or save at the end of epochs only",
                kind="data",
            )
        return self._strategy.experimental_distribute_dataset(dataset.skip(skip) if skip else dataset)


class _Seed:
    """TensorFlow's global seed, if one is given, for as long as a pipeline is made."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        at = _context()
        self._before = at._seed
        at._seed = self._before if self._seed is None else self._seed

    def __exit__(self, *_: object) -> None:
        _context()._seed = self._before


def _context() -> Any:
    from tensorflow.python.eager import context

    return context.context()


def _global_seed() -> int | None:
    seed = _context()._seed
    return None if seed is None else int(seed)


def doubts(dataset: Any) -> list[str]:
    """Why a pipeline may not give the same batches again, in words; nothing where it does."""
    found: dict[str, None] = {}
    _look(dataset, found, cached=False)
    if dataset.options().deterministic is False:
        found["it is not deterministic (tf.data.Options.deterministic): no two runs are the same"] = None
    return list(found)


def _look(dataset: Any, found: dict[str, None], cached: bool) -> None:
    name = type(dataset).__name__.strip("_")
    if hasattr(dataset, "_seed2"):
        if cached and getattr(dataset, "_reshuffle_each_iteration", True):
            found[
                "it keeps a shuffled order in a cache, which a new process fills with another one: put cache() "
                "before shuffle()"
            ] = None
        if int(dataset._seed) == 0 and int(dataset._seed2) == 0:
            found[
                f"{name} has no seed, and its order cannot be restored: batches of the present epoch may come twice "
                "or never after a resume. Call keras.utils.set_random_seed before the data is made"
            ] = None
    for function in dataset._functions() if hasattr(dataset, "_functions") else ():
        for operation in function.function.graph.get_operations():
            _look_at(operation, name, found)
    for below in dataset._inputs():
        _look(below, found, cached or name.startswith("CacheDataset"))


def _look_at(operation: Any, name: str, found: dict[str, None]) -> None:
    from tensorflow.python.framework.config import is_op_determinism_enabled

    if "PyFunc" in operation.type or operation.type == "GeneratorDataset":
        found[
            "it runs Python code, whose position and random state are counted again from the beginning of the pass "
            "and not restored"
        ] = None
    if operation.op_def is None or not operation.op_def.is_stateful or "seed2" not in operation.node_def.attr:
        return
    if operation.get_attr("seed") == 0 and operation.get_attr("seed2") == 0:
        found[f"{operation.type} in {name} has no seed, and what it draws cannot be restored"] = None
    elif name.startswith("Parallel") and not is_op_determinism_enabled():
        found[
            f"{operation.type} in {name} draws in an order that is chance: use stateless random operations, or "
            "tf.config.experimental.enable_op_determinism()"
        ] = None
