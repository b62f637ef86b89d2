"""Several actors on one store, switched at every store operation in an order that a seed decides."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from ckpt_core.stores import Store
from crash.wrappers import When, WrapperStore


class Schedule:
    """Lets one actor run at a time. Each actor's store calls back before every operation."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # Faults of this kind need few switches at the right places: some schedules switch seldom.
        self._stay = self._random.choice((0.0, 0.5, 0.8, 0.95))
        self._changed = threading.Condition()
        self._alive: list[str] = []
        self._current: str | None = None
        self.trace: list[str] = []

    def run(self, actors: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Runs all actors to their end; returns what each returned, or raises what one raised."""
        outcomes: dict[str, Any] = {}
        errors: list[BaseException] = []

        def act(name: str, actor: Callable[[], object]) -> None:
            try:
                self._wait_for(name)
                outcomes[name] = actor()
            except BaseException as error:
                errors.append(error)
            finally:
                with self._changed:
                    self._alive.remove(name)
                    self._choose()

        self._alive = sorted(actors)
        threads = [threading.Thread(target=act, args=item, daemon=True) for item in actors.items()]
        for thread in threads:
            thread.start()
        with self._changed:
            self._choose()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"{self.trace[-5:]}: nobody goes on"
        if errors:
            raise errors[0]
        return outcomes

    def step(self, name: str, what: str) -> None:
        """Called by an actor before each operation: maybe another goes first."""
        with self._changed:
            self.trace.append(f"{name}: {what}")
            self._choose()
        self._wait_for(name)

    def _choose(self) -> None:
        if self._current not in self._alive or self._random.random() >= self._stay:
            self._current = self._random.choice(self._alive) if self._alive else None
        self._changed.notify_all()

    def _wait_for(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._current == name, 60), f"{name} was never chosen"


class ActorStore(WrapperStore):
    """The view that one actor has of a store. `schedule` is set while actors run."""

    def __init__(self, inner: Store, name: str) -> None:
        super().__init__(inner)
        self.name = name
        self.schedule: Schedule | None = None

    def _on(self, operation: str, key: str, when: When) -> None:
        if self.schedule is not None and when == "before":
            self.schedule.step(self.name, f"{operation} {key}")
