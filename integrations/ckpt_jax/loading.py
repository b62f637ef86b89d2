"""A checkpoint read into the structure, dtypes and shardings of a pytree: of each array only what is needed here.

What a pytree is made of is `pytrees.py`'s; how an array is put together from shards, `shards.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_core import CheckpointManager, CheckpointReader, CorruptionError, NotFoundError, UsageError
from ckpt_core.errors import CkptError
from ckpt_core.hooks import HookContext, HookEvent, HookOutcome
from ckpt_core.model import Checkpoint, TensorSpec
from ckpt_core.tree import (
    Selection,
    UnsupportedValueError,
    dtypes,
    rebuild,
    rebuild_like,
    registry,
    tensor_paths,
    walk,
    wanted_tensors,
)
from ckpt_core.tree.compare import mismatch
from ckpt_core.tree.nodes import children
from ckpt_jax.codec import exact, is_key, to_dtype
from ckpt_jax.pytrees import as_state, fill
from ckpt_jax.shards import Box, HostArray, place

__all__ = ["Reading", "finished", "load", "read"]

_log = logging.getLogger("ckpt_core.jax")
_THREADS = max(1, min(8, os.cpu_count() or 1))
_ZEROS: dict[str, Any] = {"i": 0, "f": 0.0, "c": 0j}
_Struct: Any = jax.ShapeDtypeStruct
_EVERYTHING = Selection(None)
T = TypeVar("T")


def load(manager: CheckpointManager, ref: str = "latest", *, like: Any, path: str = "state") -> Any:
    """The pytree at `path` of a checkpoint, in the structure, dtypes and shardings of `like`.

    The leaves of `like` are arrays, or `jax.ShapeDtypeStruct`s with a sharding: each device's part is read
    and put there, so that no device needs memory for another's part. nnx objects in it are updated in
    place. `path` is where a pytree stands in the checkpoint: `"state"` is that of a JaxCheckpointer, `""`
    the top. Where `latest` or `best` is damaged, the next one that verifies is loaded.

    Raises NotFoundError, CorruptionError, StateMismatchError (names the paths).
    """
    return read(manager, ref, lambda reading: reading.pytree(path, like))


def read(manager: CheckpointManager, ref: str, work: Callable[[Reading], T]) -> T:
    """What `work` makes of the checkpoint that `ref` means, with the events around it.

    `work` is called again with an older one where `latest` or `best` proves to be damaged.
    """
    checkpoint = manager.resolve(ref)
    damaged = manager.workspace.index.damaged(checkpoint.experiment)
    if any(key.id > checkpoint.id for key, _ in damaged):
        manager.load(ref, include=[], framework="numpy")  # reads nothing, but tells of what it passes over
    try:
        return _read(manager, checkpoint, work)
    except CorruptionError as error:
        _log.error("%s: %s", ref, error)
        manager.load(ref, framework="numpy")  # says what is damaged, and looks for one that is not
        assert manager.loaded is not None
        if manager.loaded.id == checkpoint.id:
            raise
        return _read(manager, manager.loaded, work)


def _read(manager: CheckpointManager, checkpoint: Checkpoint, work: Callable[[Reading], T]) -> T:
    def fire(event: HookEvent, **facts: Any) -> HookOutcome:
        context = HookContext(
            event, experiment=checkpoint.experiment, step=checkpoint.step, attempt=checkpoint.attempt,
            checkpoint=checkpoint, metrics=checkpoint.metrics, **facts,
        )  # fmt: skip
        return manager.hooks.fire(context)

    outcome = fire(HookEvent.BEFORE_LOAD)
    if outcome.vetoed:
        raise UsageError(f"the load was vetoed by {'; '.join(outcome.reasons)}", kind="vetoed")
    try:
        with manager.open(f"{checkpoint.experiment}@{checkpoint.id}", framework="numpy") as reader:
            result = work(Reading(reader))
    except CkptError as error:
        fire(HookEvent.LOAD_FAILED, error=error)
        raise
    manager.loaded = checkpoint
    fire(HookEvent.AFTER_LOAD)
    return result


class Reading:
    """One checkpoint while it is read."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.checkpoint: Checkpoint = reader.checkpoint
        self._reader = reader
        self._tree = reader.manifest.state
        self._paths = {index: path for path, index in tensor_paths(self._tree).items()}

    def plain(self, names: Iterable[str]) -> dict[str, Any]:
        """The members of the top with these names, in plain containers. Those that are absent are left out."""
        tree = {name: self._tree[name] for name in names if name in self._tree}
        state: dict[str, Any] = rebuild(tree, lambda index, _: self._value(index, None), registry)
        return state

    def pytree(self, path: str, like: Any, weak: Collection[str] | None = None) -> Any:
        """What stands at `path`, in the structure, dtypes and shardings of `like`.

        `weak`: the paths of the arrays that were of a weak type, as Python's numbers are to JAX; None where
        only `like` can tell. Raises StateMismatchError, NotFoundError.
        """
        node, steps = self.node(path), _steps(path)
        template = as_state(like, self._adapted(node))
        for step in reversed(steps):
            node, template = {step: node}, {step: template}
        wanted = wanted_tensors(node, template, registry, _EVERYTHING, plain=False)
        found = dict(zip([(i, id(to)) for i, to in wanted], self.arrays(wanted), strict=True))
        state = rebuild_like(node, template, lambda index, to: found[index, id(to)], registry)
        for step in steps:
            state = state[step]
        return fill(like, state, _Finish(weak), path or None)

    def arrays(self, wanted: Sequence[tuple[int, Any]]) -> list[Any]:
        """Tensors by index, each in the dtype and sharding of the array or struct beside it; where that is
        None, as it was saved. Those that are asked for twice are read once. Raises StateMismatchError."""
        self._check(wanted)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-read") as pool:
            jobs: dict[tuple[int, int], Future[Any]] = {}
            for index, target in wanted:
                if (index, id(target)) not in jobs:
                    jobs[index, id(target)] = pool.submit(self._value, index, target)
            try:
                return [jobs[index, id(target)].result() for index, target in wanted]
            finally:
                for job in jobs.values():
                    job.cancel()

    def node(self, path: str) -> Any:
        """The node of the tree at a path. Raises NotFoundError."""
        node, here = self._tree, None
        steps = _steps(path)
        for number in range(len(steps)):
            here = "/".join(steps[: number + 1])
            below = dict(children(node, here.rpartition("/")[0] or None) or ())
            if here not in below:
                known = ", ".join(str(child) for child in below)
                raise NotFoundError(
                    f"the checkpoint has no {here!r}; there is {known}", kind="path", path=path
                )
            node = below[here]
        return node

    def _adapted(self, node: Any) -> Callable[[str | None, Any], Any]:
        """What a leaf of `like` must be for the engine to compare it: a number may have become an array.

        A counter that begins as Python's 0 is an array as soon as a jitted function has returned it.
        """
        saved = dict(walk(node))

        def adapt(path: str | None, leaf: Any) -> Any:
            there = saved.get(path or "")
            index = there.get("$tensor") if isinstance(there, dict) else None
            if index is not None and isinstance(leaf, (bool, int, float, complex)):
                spec = self.spec(index)
                return leaf if spec.shape else _Struct(spec.shape, dtypes.numpy_dtype(spec.dtype))
            scalar = (
                isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) and not leaf.shape and not is_key(leaf)
            )
            return 0 if scalar and isinstance(there, (bool, int, float)) else leaf

        return adapt

    def _check(self, wanted: Sequence[tuple[int, Any]]) -> None:
        differences = []
        for index, target in wanted:
            if target is None:
                continue
            saved, shape, dtype = self.spec(index), tuple(target.shape), np.dtype(target.dtype)
            name = dtypes.name_of_numpy(dtype)
            if saved.shape != shape:
                has = f"saved with shape {list(saved.shape)}, like= has {list(shape)}"
            elif name is None or not dtypes.can_cast(saved.dtype, name):
                has = f"saved as {saved.dtype}, like= has {dtype}"
            else:
                continue
            differences.append(f"{self._paths[index]}: {has}")
        if differences:
            raise mismatch(differences, kind="tensors")

    def spec(self, index: int) -> TensorSpec:
        """Element type and shape of a tensor."""
        record = self._reader.manifest.tensors[index]
        return TensorSpec(record.dtype, tuple(record.shape))

    def _value(self, index: int, target: Any) -> Any:
        """A tensor as `target` is; where that is None, as it was saved."""
        tensor = self._reader.tensor(self._paths[index])
        if target is None:
            host = np.ascontiguousarray(tensor.read())
            kind = self._reader.manifest.tensors[index].kind
            return registry.tensor_named(kind).wrap(self.spec(index), host.reshape(-1).view(np.uint8))
        try:
            if isinstance(target, np.ndarray):
                return to_dtype(np.asarray(tensor.read()), target.dtype)
            with exact(np.dtype(target.dtype)):
                return place(target, _Rows(tensor, np.dtype(target.dtype)))
        except UnsupportedValueError as error:
            raise mismatch([f"{self._paths[index]}: {error}"], kind="values") from error


class _Rows:
    """Reads boxes of a stored tensor. Those of the same rows, one after the other, share one reading."""

    def __init__(self, tensor: Any, dtype: np.dtype[Any]) -> None:
        self._tensor = tensor
        self._dtype = dtype
        self._rows: tuple[tuple[int, int], HostArray] | None = None

    def __call__(self, box: Box) -> HostArray:
        if not box:
            return to_dtype(np.asarray(self._tensor.read()), self._dtype)
        if self._rows is None or self._rows[0] != box[0]:
            self._rows = None  # let go of the old ones before the new ones are there
            self._rows = box[0], to_dtype(np.asarray(self._tensor[slice(*box[0])]), self._dtype)
        return self._rows[1][(slice(None), *(slice(*ends) for ends in box[1:]))]


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step]


def finished(like: Any, value: Any) -> Any:
    """A loaded array with what neither bytes nor dtype can say, from the one that it takes the place of."""
    return _Finish(None)(None, like, value)


class _Finish:
    """The last touch to each leaf: what neither bytes nor dtype can say."""

    def __init__(self, weak: Collection[str] | None) -> None:
        self._weak = weak

    def __call__(self, path: str | None, like: Any, value: Any) -> Any:
        if not isinstance(value, jax.Array):
            return value
        if is_key(value):
            return _key_like(path, like, value)
        known = self._weak is not None
        weak = (path or "") in (self._weak or ()) if known else _is_weak(like)
        return _weakened(value) if weak and not value.weak_type else value


def _key_like(path: str | None, like: Any, key: jax.Array) -> jax.Array:
    if not is_key(like) or like.dtype != key.dtype or like.shape != key.shape:
        has = f"{like.dtype}{list(like.shape)}" if hasattr(like, "dtype") else type(like).__name__
        what = f"saved as random keys {key.dtype}{list(key.shape)}, like= has {has}"
        raise mismatch([f"{path or 'the top'}: {what}"])
    where = like.sharding
    free = where is None or (isinstance(like, jax.Array) and not like.committed)
    return key if free else jax.device_put(key, where)


def _is_weak(like: Any) -> bool:
    return isinstance(like, (int, float, complex)) or bool(getattr(like, "weak_type", False))


def _weakened(value: jax.Array) -> jax.Array:
    """The same array of a weak type, which gives way to that of others in arithmetic.

    An array that is made of a Python number has it, and keeps it when its elements are set.
    """
    zeros = jnp.full(value.shape, _ZEROS.get(value.dtype.kind, False))
    if zeros.dtype != value.dtype or not zeros.weak_type:
        return value
    weak = zeros.at[...].set(value)
    return jax.device_put(weak, value.sharding) if value.committed else weak
