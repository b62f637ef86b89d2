"""Orbax's own handlers of v0, watched over: they write and read exactly what they did before."""

from __future__ import annotations

from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_args

from ckpt_core import UsageError
from ckpt_jax.orbax_watch import Watch

__all__ = ["handler", "registry"]


class _Watched:
    """Before a stock handler in the order of methods. `watch` is told what the handler does."""

    watch: Watch

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        folder = _folder(directory)
        self.watch.saving(folder)
        try:
            futures = await super().async_save(directory, *args, **kwargs)  # type: ignore[misc]
        except BaseException as error:
            self.watch.failed(folder, error)
            raise
        self.watch.staged(folder)
        return [_WatchedFuture(future, self.watch, folder) for future in futures or ()]

    def finalize(self, directory: Any) -> None:
        folder = _folder(directory)
        try:
            super().finalize(directory)  # type: ignore[misc]
            self.watch.written(folder)
        except BaseException as error:
            self.watch.failed(folder, error)
            raise

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        folder = epath.Path(directory)
        checkpoint = self.watch.loading(folder)
        try:
            item = super().restore(directory, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self.watch.load_failed(folder, checkpoint, error)
            raise
        self.watch.loaded(folder, checkpoint)
        return item

    def close(self) -> None:
        self.watch.wait()
        super().close()  # type: ignore[misc]


class _WatchedFuture:
    """One of Orbax's futures. Whoever asks for its result tells us when there is none."""

    def __init__(self, future: Any, watch: Watch, folder: epath.Path) -> None:
        self._future = future
        self._watch = watch
        self._folder = folder

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout=timeout)
        except BaseException as error:
            self._watch.failed(self._folder, error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)


def _make(stock: type) -> tuple[type, tuple[type, type]]:
    """A watched twin of a stock handler, with arguments of its own beside the stock ones.

    A bare `restore(step)` asks for the arguments that are registered for the handler's class, and finds none
    for a class that shares them. In the files stands the stock name, so that Orbax alone can read them.
    """
    save, restore = checkpoint_args.get_registered_args_cls(stock)
    twin = type(f"Watched{stock.__name__}", (_Watched, stock), {"__module__": __name__})
    pair = tuple(
        checkpoint_args.register_with_handler(twin, **{f"for_{use}": True})(
            type(f"Watched{arguments.__name__}", (arguments,), {"__module__": __name__})
        )
        for use, arguments in (("save", save), ("restore", restore))
    )
    return twin, (pair[0], pair[1])


_STOCK = (
    ocp.StandardCheckpointHandler,
    ocp.PyTreeCheckpointHandler,
    ocp.JsonCheckpointHandler,
    ocp.ArrayCheckpointHandler,
    ocp.JaxRandomKeyCheckpointHandler,
    ocp.NumpyRandomKeyCheckpointHandler,
)
_TWINS = {stock: _make(stock) for stock in _STOCK}


def handler(watch: Watch, stock: type, **options: Any) -> Any:
    """An instance of a stock handler's twin. Raises UsageError for a class that has none."""
    if stock not in _TWINS:
        known = ", ".join(each.__name__ for each in _STOCK)
        raise UsageError(
            f"{stock!r} is not one of the handlers that can be watched over: {known}", kind="handler"
        )
    made = _TWINS[stock][0](**options)
    made.watch = watch
    made.typestr = stock.typestr  # type: ignore[attr-defined]
    return made


def registry(watch: Watch) -> Any:
    """For `ocp.CheckpointManager(handler_registry=...)`: users' arguments stay Orbax's own."""
    found = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for stock, (_, own) in _TWINS.items():
        made = handler(watch, stock)
        for arguments in (*checkpoint_args.get_registered_args_cls(stock), *own):
            if not found.has(None, arguments):
                found.add(None, arguments, made)
    # Orbax keeps the metrics of a save as an item; under its own name they have a file of that name.
    metrics = handler(watch, ocp.JsonCheckpointHandler, filename="metrics")
    for arguments in (ocp.args.JsonSave, ocp.args.JsonRestore, *_TWINS[ocp.JsonCheckpointHandler][1]):
        found.add("metrics", arguments, metrics)
    return found


def _folder(directory: Any) -> epath.Path:
    """A folder, or one that is yet to be made."""
    return epath.Path(getattr(directory, "path", directory))
