"""Objects of one fit of Keras, made to tell a watch what happens to them: callback list, epoch iterator, model.

The objects stay the same ones; their classes are exchanged for subclasses until the fit is over.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any

from keras.src.callbacks.callback_list import CallbackList

__all__ = ["Guarded", "Peekable", "watched"]


def watched(target: Any, watch: Any) -> None:
    """Have `target`, a callback list or an epoch iterator, tell `watch`; or (None) nobody any more."""
    kind: Any = type(target)
    if watch is None:
        if vars(target).pop("ckpt_watch", None) is not None:
            target.__class__ = kind.__mro__[1]
        return
    target.ckpt_watch = watch
    target.__class__ = _list_class(kind) if isinstance(target, CallbackList) else _iterator_class(kind)


@cache
def _list_class(kind: Hashable) -> Any:
    class WatchedList(kind):  # type: ignore[misc, valid-type]
        ckpt_watch: Any

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            with self.ckpt_watch.guard("epoch"):
                self.ckpt_watch.before_epoch()
                super().on_epoch_begin(epoch, logs)
                self.ckpt_watch.epoch_begun(epoch)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            with self.ckpt_watch.guard("before"):
                super().on_train_batch_begin(batch, logs)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ckpt_watch.count(batch)
            with self.ckpt_watch.guard("after"):
                super().on_train_batch_end(batch, logs)
                self.ckpt_watch.batch_ended(logs)

        def on_test_begin(self, logs: Any = None) -> None:
            with self.ckpt_watch.guard("evaluation"):
                super().on_test_begin(logs)

        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            with self.ckpt_watch.guard("evaluation"):
                super().on_test_batch_begin(batch, logs)

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            with self.ckpt_watch.guard("evaluation"):
                super().on_test_batch_end(batch, logs)

        def on_test_end(self, logs: Any = None) -> None:
            with self.ckpt_watch.guard("evaluation"):
                super().on_test_end(logs)
                self.ckpt_watch.evaluated(logs)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            with self.ckpt_watch.guard("epoch"):
                super().on_epoch_end(epoch, logs)
                self.ckpt_watch.epoch_ended(epoch)

        def on_train_end(self, logs: Any = None) -> None:
            watch = self.ckpt_watch
            with watch.guard("end"):
                watch.before_end()
                super().on_train_end(logs)
            watch.ended()

    return WatchedList


@cache
def _iterator_class(kind: Hashable) -> Any:
    class WatchedIterator(kind):  # type: ignore[misc, valid-type]
        ckpt_watch: Any

        def __next__(self) -> Any:
            with self.ckpt_watch.guard("before"):
                self.ckpt_watch.between_batches()
                self.ckpt_watch.delivering()
                return super().__next__()

        def _get_iterator(self) -> Any:
            return self.ckpt_watch.iterable(super()._get_iterator)

        def _enumerate_iterator(self) -> Iterator[Any]:
            found: Iterator[Any] = self.ckpt_watch.enumerate(super()._enumerate_iterator)
            return found

    return WatchedIterator


class Guarded:
    """A function of the model's, in the place of that one, which reports what it raises."""

    def __init__(self, model: Any, name: str, watch: Any) -> None:
        self._model = model
        self._name = name
        self._watch = watch
        self._where = "step" if name == "train_function" else "evaluation"
        self._own = name in vars(model)
        self._inner = getattr(model, name)
        vars(model)[name] = self  # not by setattr, which Keras and PyTorch look at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._watch.guard(self._where):
            return self._inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def remove(self) -> None:
        """Put back what was there, unless somebody has put there something else since."""
        if vars(self._model).get(self._name) is not self:
            return
        if self._own:
            vars(self._model)[self._name] = self._inner
        else:
            del vars(self._model)[self._name]


class Peekable:
    """Data whose end is seen one batch ahead, when somebody looks for it."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._iterator: Iterator[Any] | None = None
        self._next: list[Any] = []

    def __iter__(self) -> Peekable:
        self._iterator = iter(self._data)
        self._next = []
        return self

    def __next__(self) -> Any:
        assert self._iterator is not None
        return self._next.pop() if self._next else next(self._iterator)

    def peek(self) -> bool:
        """Whether there is another batch."""
        if not self._next:
            if self._iterator is None:
                return True
            try:
                self._next.append(next(self._iterator))
            except StopIteration:
                return False
        return True
