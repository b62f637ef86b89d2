"""Several processes that train one model together: they decide, save and resume in step, and the first one saves.

The others know no manager. They answer when the first one asks for their part of a state, which is small:
what all hold alike it has itself. Nothing here knows Lightning's loop, or what a state is made of.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from signal import Signals
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ckpt_core import UsageError
from ckpt_core.errors import CkptError
from ckpt_core.preemption import PreemptionSignals
from ckpt_core.session import Resumption
from ckpt_lightning.parts import Part, difference, outline

__all__ = ["Follower", "Ranks", "SharedSignals"]

_SHARDED = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy"}
_DONE, _FAILED, _SIGNAL = "done", "failed", "signal"

Answers = Mapping[str, Callable[[Any], Any]]


class Ranks:
    """The processes of one training. Every method must be called by all of them, in the same order.

    One process alone is the first of one, and asks nobody.
    """

    def __init__(self, rank: int = 0, world: int = 1, timeout: Any = None) -> None:
        self.rank = rank
        self.world = world
        # A group of our own: what is said here cannot be taken for something of Lightning's.
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None

    @classmethod
    def of(cls, trainer: Any) -> Ranks:
        """The processes of a trainer that has set up its strategy. Raises UsageError for those it cannot serve."""
        strategy = trainer.strategy
        names = {base.__name__ for base in type(strategy).__mro__}
        if names & _SHARDED:
            raise UsageError(
                f"{type(strategy).__name__} spreads the model over processes, and this callback saves models that "
                'each process holds whole: use strategy="ddp", or save with Lightning\'s own ModelCheckpoint',
                kind="sharded",
            )
        if trainer.world_size > 1 and "DDPStrategy" not in names:
            raise UsageError(
                f"{type(strategy).__name__} trains in {trainer.world_size} processes in a way that is not known "
                'here: use strategy="ddp", or one process',
                kind="processes",
            )
        return cls(trainer.global_rank, trainer.world_size, getattr(strategy, "_timeout", None))

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def close(self) -> None:
        """Nothing more will be said."""
        if self._group is not None and dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(self._group)
        self._group = None

    # -- deciding together ------------------------------------------------------------------------

    def agree(self, due: bool, received: Signals | None) -> tuple[bool, Signals | None]:
        """Whether any process has something due, and a signal that any of them has received."""
        if self.world == 1:
            return due, received
        said = torch.tensor([int(due), int(received or 0)])
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group)
        number = int(said[1])
        return bool(said[0]), Signals(number) if number else None

    def together(self, act: Callable[[], Any], answers: Answers | None = None) -> Any:
        """The first process does `act`, and its result, which must be small, is everybody's.

        Meanwhile the others answer to what it `tell`s. What it raises is raised by all.
        """
        if self.world == 1:
            return act()
        if not self.leads:
            return self._follow(answers or {})
        try:
            result = act()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # they may be gone
                self.tell(_FAILED, f"{type(error).__name__}: {error}")
            raise
        self.tell(_DONE, result)
        return result

    def tell(self, word: str, value: Any = None) -> None:
        """The first process, in the midst of `together`, has the others do something."""
        if self.world > 1:
            self._broadcast((word, value))

    def _follow(self, answers: Answers) -> Any:
        failure: Exception | None = None
        while True:
            word, value = self._broadcast(None)
            if word == _DONE:
                return value
            if word == _FAILED:
                raise failure or CkptError(f"process 0 has failed: {value}", kind="rank")
            try:
                answers[word](value)
            except Exception as error:  # the first one knows by now, and will say that it is all over
                failure = error

    # -- states -----------------------------------------------------------------------------------

    def join(
        self, capture: Callable[[], dict[str, Any]], *, common: Collection[str], alike: Collection[str]
    ) -> dict[str, Any]:
        """The state of the first process, and under `ranks` what each of the others has apart from it.

        Only the first one gets something that is to be saved. `common`: what of the state is not looked at, as the
        first process's is everybody's. `alike`: see `parts.outline`.
        """
        state: dict[str, Any] = {}
        error: Exception | None = None
        try:
            state = capture()
        except Exception as caught:
            error = caught
        if self.world == 1:
            if error is not None:
                raise error
            return state
        looked_at = {key: value for key, value in state.items() if key not in common}
        theirs = self._broadcast(outline(looked_at, alike) if self.leads and error is None else None)
        answer: tuple[str | None, Part] = (f"{type(error).__name__}: {error}" if error else None, [])
        if error is None and theirs is not None and not self.leads:
            answer = (None, difference(looked_at, theirs, alike))
        answers: list[Any] | None = [None] * self.world if self.leads else None
        dist.gather_object(answer, answers, dst=0, group=self._group)
        if error is not None:
            raise error
        if answers is None:
            return {}
        failed = [f"process {rank}: {said}" for rank, (said, _) in enumerate(answers) if said]
        if failed:
            raise CkptError(f"not every process could give its state: {'; '.join(failed)}", kind="rank")
        return {**state, "ranks": {"world": self.world, "parts": [part for _, part in answers]}}

    def share(self, state: Any) -> Any:
        """The state that the first process has, on all of them; tensors come to host memory."""
        if self.world == 1:
            return state
        tensors: list[torch.Tensor] = []
        skeleton = _taken_apart(state, tensors, {}) if self.leads else None
        skeleton, specs = self._broadcast((skeleton, [(each.shape, each.dtype) for each in tensors]))
        if not self.leads:
            tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in specs]
        for tensor in tensors:
            if tensor.numel():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0, group=self._group)
        return state if self.leads else _put_together(skeleton, tensors)

    def _broadcast(self, value: Any) -> Any:
        """What the first process gives, everywhere."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class _Place:
    """Stands for a tensor of a state that is sent without its tensors."""

    def __init__(self, index: int) -> None:
        self.index = index


def _taken_apart(value: Any, tensors: list[torch.Tensor], known: dict[int, _Place]) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) not in known:  # one that is there twice is one on the other side, too
            known[id(value)] = _Place(len(tensors))
            tensors.append(value.detach().cpu().contiguous())
        return known[id(value)]
    if isinstance(value, Mapping):
        return {key: _taken_apart(item, tensors, known) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_taken_apart(item, tensors, known) for item in value)
    return value


def _put_together(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, _Place):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put_together(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put_together(item, tensors) for item in value)
    return value


class SharedSignals(PreemptionSignals):
    """The signals of a process, which all pass on together.

    Handlers may talk to each other, as Lightning's for SIGTERM do, and sends it on to the others besides: they
    must run in all processes at once, and once. So a second signal waits here like the first.
    """

    def __init__(self, ranks: Ranks, signals: Iterable[Signals]) -> None:
        super().__init__(signals)
        self._ranks = ranks

    def pass_on(self) -> None:
        """To be called in `together`, by the first process, or by the others when it tells them to."""
        if self.received is not None and self._ranks.leads:
            self._ranks.tell(_SIGNAL, int(self.received))
        super().pass_on()

    def _note(self, number: int, frame: FrameType | None) -> None:
        workers = os.getpid() != self._process
        if self._ranks.world == 1 or self.received is None or workers:
            super()._note(number, frame)


class Follower:
    """What a process that is not the first has in the place of a session: it notes signals, and no more."""

    due = False

    def __init__(self, ranks: Ranks, signals: Iterable[Signals]) -> None:
        self._signals = SharedSignals(ranks, signals)
        self.resumption = Resumption("fresh")

    @property
    def preempted(self) -> Signals | None:
        return self._signals.received

    @property
    def answers(self) -> dict[str, Callable[[Any], None]]:
        """What it does when the first process passes a signal on."""
        return {_SIGNAL: self._pass_on}

    def begin(self, step: int, epoch: int | None = None) -> None:
        self._signals.install()

    def close(self) -> None:
        self._signals.uninstall()

    def nothing_to_do(self) -> None: ...

    def epoch_begin(self, step: int, epoch: int) -> None: ...

    def step_end(
        self, step: int, epoch: int | None = None, metrics: Any = None, *, loss: Any = None
    ) -> None: ...

    def evaluate_end(self, step: int, epoch: int | None = None, metrics: Any = None) -> None: ...

    def epoch_end(self, step: int, epoch: int, metrics: Any = None) -> None: ...

    def fail(self, error: BaseException, step: int, epoch: int | None, capture: Any = None) -> None: ...

    def _pass_on(self, number: int) -> None:
        if self._signals.received is None:  # it came to another process
            signal.raise_signal(number)
        self._signals.pass_on()
