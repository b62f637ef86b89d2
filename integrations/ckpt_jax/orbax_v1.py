"""Orbax's handlers of v1, watched over. They cannot be subclassed: each twin holds one and passes calls on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import orbax.checkpoint.experimental.v1 as ocp
from etils import epath

from ckpt_jax.orbax_watch import Watch

__all__ = ["context"]


class _Watched:
    """A handler of v1 that passes everything on to one of class `stock`, and tells `watch`."""

    stock: type
    watch: Watch

    def __init__(self, **options: Any) -> None:
        self._inner: Any = self.stock(**options)

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        folder = epath.Path(directory.path)
        self.watch.saving(folder)
        try:
            background = await self._inner.save(directory, checkpointable)
        except BaseException as error:
            self.watch.failed(folder, error)
            raise
        self.watch.staged(folder)
        return _Background(background, self._finish, folder)

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        folder = epath.Path(directory)
        checkpoint = await asyncio.to_thread(self.watch.loading, folder)
        try:
            background = await self._inner.load(directory, abstract_checkpointable)
        except Exception as error:
            self.watch.load_failed(folder, checkpoint, error)
            raise

        async def finish() -> Any:
            try:
                item = await background
            except Exception as error:
                self.watch.load_failed(folder, checkpoint, error)
                raise
            self.watch.loaded(folder, checkpoint)
            return item

        return finish()

    async def metadata(self, directory: Any) -> Any:
        return await self._inner.metadata(directory)

    def is_handleable(self, checkpointable: Any) -> bool:
        return bool(self._inner.is_handleable(checkpointable))

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        answer: bool | None = self._inner.is_abstract_handleable(abstract_checkpointable)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _finish(self, background: Awaitable[None], folder: epath.Path) -> None:
        try:
            await background
            if self.watch.is_primary:
                await asyncio.to_thread(self.watch.written, folder)
        except BaseException as error:
            self.watch.failed(folder, error)
            raise


class _Background:
    """What a handler leaves to be done in the background. Orbax may cancel its `commit_futures`."""

    def __init__(
        self,
        inner: Any,
        finish: Callable[[Any, epath.Path], Awaitable[None]],
        folder: epath.Path,
    ) -> None:
        self._inner = inner
        self._finish = finish
        self._folder = folder
        self.commit_futures = list(getattr(inner, "commit_futures", ()))

    def __await__(self) -> Generator[Any, None, None]:
        return self._finish(self._inner, self._folder).__await__()


def _twin(stock: type, watch: Watch) -> type:
    """A class, since Orbax makes the instances. It bears the stock name, which is written to the files."""
    names = {
        "stock": stock,
        "watch": watch,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
    }
    return type(stock.__name__, (_Watched,), names)


def context(watch: Watch, base: Any = None) -> Any:
    """A context like `base` (the present one), in which every handler of Orbax's own is watched over."""
    made = ocp.Context(base)
    everybody = made.checkpointables.registry
    registry = ocp.handlers.local_registry(include_global_registry=False)
    twins: dict[type, type] = {}
    for stock, name in everybody.get_all_entries():
        kind = stock
        if stock.__module__.startswith("orbax."):
            kind = twins.setdefault(stock, _twin(stock, watch))
        secondary = everybody.get_secondary_typestrs(stock) or None
        registry.add(kind, checkpointable_name=name, secondary_typestrs=secondary)
    made.checkpointables.registry = registry
    return made
