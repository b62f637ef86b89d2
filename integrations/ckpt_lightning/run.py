"""One `trainer.fit` with the callbacks of ours that the trainer has: what is gone on from, safe points, the end.

Which events lead here is `callback.py`'s; the loop's private parts are `loops.py`'s, other processes `ranks.py`'s.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ckpt_core import Session
from ckpt_core.session import Resumption
from ckpt_lightning import averaging, results
from ckpt_lightning.choosing import Beginning, choose
from ckpt_lightning.io import as_reference
from ckpt_lightning.loops import EPOCH, VALIDATION, LoopWatch, lies_in_an_epoch
from ckpt_lightning.moment import LastGood
from ckpt_lightning.parameters import Parameters
from ckpt_lightning.participant import Participant
from ckpt_lightning.parts import overlay
from ckpt_lightning.ranks import Follower, Ranks
from ckpt_torch.loader import ResumeData
from ckpt_torch.objects import Gradients, mend_dtypes
from ckpt_torch.rng import capture_rng, restore_rng

__all__ = ["Run"]

_log = logging.getLogger("ckpt_core.lightning")

_CAPTURE = "capture"
_OURS = "ckpt_lightning"
"""Where in Lightning's checkpoint is what Lightning leaves out."""
_COMMON = ("optimizer_states", "hyper_parameters", "datamodule_hyper_parameters")
"""What DDP keeps alike in all processes, beside the weights, or what each of them is told."""


class Run:
    """One fit of one trainer. The first callback of ours makes it, all join, the last one to leave ends it.

    There is one state for all of them, in Lightning's checkpoint under a name of its own.
    """

    def __init__(self, trainer: Any, ranks: Ranks, reader: Any, *, resume_data: ResumeData) -> None:
        self.ranks = ranks
        self._trainer = trainer
        self._reader = reader
        self._all: list[Participant] = []
        self._left: list[Participant] = []
        self._loaded: Mapping[str, Any] | None = None
        self._optimizer_states: list[Any] = []
        self._world = ranks.world
        self._gradients: Gradients | None = None
        self._last_good: LastGood | None = None
        self._preempted = False
        self._parameters = Parameters()
        self._asked: dict[str, Any] = {}
        self._watch = LoopWatch(
            trainer,
            resume_data=resume_data,
            safe_point=self._safe_point,
            passed=self._passed,
            revive=self._revive,
            restore=self._restore,
        )
        self._watch.install()
        self._hook_into_loading()

    def join(self, participant: Participant) -> None:
        """Another callback of the trainer."""
        participant.open(self.ranks, lambda: self._trainer.optimizers)
        self._all.append(participant)

    # -- what is gone on from ---------------------------------------------------------------------

    def _hook_into_loading(self) -> None:
        connector = self._trainer._checkpoint_connector
        original = connector._restore_modules_and_callbacks

        def restore(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> Any:
            vars(connector).pop("_restore_modules_and_callbacks", None)
            path = self._choose(checkpoint_path)
            loaded = original(path, *args, **kwargs)
            if path is None:
                self._begin_with_weights()
            return loaded

        # Lightning has decided on ckpt_path before it calls any callback: this is where it begins to load.
        connector._restore_modules_and_callbacks = restore

    def _choose(self, path: Any) -> Any:
        """What is loaded: what the user told `fit`, or else what `resume` says."""
        states: list[dict[str, Any] | None] = []

        def decide() -> Beginning:
            beginning = choose(self._all, path)
            states.append(beginning.state)  # of the first process, until it is shared
            return replace(beginning, state=None)

        beginning = self.ranks.together(decide)
        for participant, (kind, checkpoint) in zip(self._all, beginning.sessions, strict=True):
            participant.live.resumption = Resumption(kind, checkpoint)
        name = beginning.name
        if name is not None and as_reference(name) is not None:
            self._reader.ready[name] = self._own_part(self.ranks.share(states.pop() if states else None))
        return name

    def _begin_with_weights(self) -> None:
        """Other weights than the program gave, where a callback was told so."""
        module, ranks = self._trainer.lightning_module, self.ranks
        if not ranks.together(lambda: any(each.begins_with_weights(module) for each in self._all)):
            return
        weights = ranks.share(module.state_dict() if ranks.leads else None)
        if not ranks.leads:
            module.load_state_dict(weights)
        averaging.begin_with(self._trainer, module)

    def _own_part(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state as it was in this process."""
        apart = state.pop("ranks", {"world": 1, "parts": [[]]})
        self._world = apart["world"]
        if self.ranks.rank < self._world:
            overlay(state, apart["parts"][self.ranks.rank])
        return state

    # -- what Lightning loads ---------------------------------------------------------------------

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """The loop goes to where the checkpoint was made."""
        mine = checkpoint.get(_OURS)
        if mine and self._loaded is None:
            self._loaded = mine
            anew = self._world != self.ranks.world
            if anew:
                self._tell_of_change(lies_in_an_epoch(mine["loop"]["boundary"]))
            self._watch.resume(mine["loop"], checkpoint["loops"]["fit_loop"], anew=anew)
            self._optimizer_states = checkpoint.get("optimizer_states", [])

    def settle(self) -> None:
        """Nothing is trained that was complete, unless there is more to do now.

        Every callback has had its say of the limits by now: averaging may add an epoch, and takes it back.
        """
        if self._asked:
            return
        self._asked = {"max_epochs": self._trainer.max_epochs, "max_steps": self._trainer.max_steps}
        complete = [each for each in self._all if each.live.resumption.kind == "complete"]
        if not complete or self._loaded is None:
            return
        before = self._loaded["asked"]
        if not all(_no_more(now, before[limit]) for limit, now in self._asked.items()):
            return
        complete[0].live.nothing_to_do()
        self._trainer.should_stop = True  # it may have been stopped early, before its limits
        results.restore_module(self._trainer.lightning_module, self._loaded["module"])
        restore_rng(self._loaded["rng"])

    def begin(self) -> None:
        """Training begins, or goes on."""
        trainer = self._trainer
        if self._gradients is not None:
            return
        for optimizer, state in zip(trainer.optimizers, self._optimizer_states, strict=False):
            mend_dtypes(optimizer, state)
        self._optimizer_states = []
        self._gradients = Gradients(
            {"module": trainer.lightning_module, "optimizers": list(trainer.optimizers)}
        )
        if self.ranks.world == 1:  # of several, one that fails cannot ask the others any more
            self._last_good = LastGood(trainer, self._gradients)

    @property
    def trains(self) -> bool:
        """Whether training has begun."""
        return self._gradients is not None

    def begin_iteration(self) -> None:
        """A batch is about to be trained on."""
        if self._gradients is not None:
            self._gradients.begin_iteration()

    # -- safe points ------------------------------------------------------------------------------

    def _safe_point(self, boundary: str) -> None:
        if self._gradients is None:
            return
        if self._last_good is not None and self._watch.is_cheap:
            self._last_good.note(self._watch.capture(boundary), rare=boundary == VALIDATION)
        for each in reversed(self._all):  # the last one has the first say of a signal, and passes it on
            self._save_if_due(each, boundary)
            if boundary == EPOCH and averaging.may_move_weights(self._trainer):
                each.settle()

    def _passed(self) -> None:
        if self._last_good is not None:
            self._last_good.forget()

    def _save_if_due(self, participant: Participant, boundary: str) -> None:
        session, trainer = participant.live, self._trainer
        # A save that is due waits for the validation, whose metrics it is to have; a signal does not.
        due, received = self.ranks.agree(participant.due and boundary != VALIDATION, session.preempted)
        if not due and received is None:
            return
        self._preempted |= received is not None
        self._act(
            participant,
            lambda own: own.safe_point(
                trainer.global_step, trainer.current_epoch, lambda: self._capture(boundary)
            ),
            received,
        )

    def finish(self, participant: Participant) -> None:
        """The last save; everything is durable when this returns."""
        trainer = self._trainer
        _, received = self.ranks.agree(False, participant.live.preempted)
        self._act(
            participant,
            lambda own: own.finish(trainer.global_step, trainer.current_epoch, lambda: self._capture("end")),
            received,
        )

    def _act(self, participant: Participant, act: Any, received: Any) -> None:
        """The first process has its session do something; the others give their parts of what is saved."""
        session = participant.live
        if isinstance(session, Follower):
            self.ranks.together(lambda: None, {**session.answers, _CAPTURE: self._contribute})
            return

        def lead() -> None:
            if received is not None and session.preempted is None:  # it came to another process
                signal.raise_signal(received)
            act(session)

        self.ranks.together(lead)

    def _capture(self, boundary: str) -> dict[str, Any]:
        self.ranks.tell(_CAPTURE, boundary)
        return self._contribute(boundary)

    def _contribute(self, boundary: str) -> dict[str, Any]:
        alike = {name for name, _ in self._trainer.lightning_module.named_parameters()}
        return self.ranks.join(lambda: self._dump(self._place(boundary)), common=_COMMON, alike=alike)

    def _place(self, boundary: str) -> dict[str, Any]:
        assert self._gradients is not None
        return {
            "loop": self._watch.capture(boundary),
            "rng": capture_rng(),
            "gradients": self._gradients.capture(),
        }

    def _dump(self, place: Mapping[str, Any], callbacks: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything. `callbacks`: the states of some, where those that they have now are not meant."""
        trainer = self._trainer
        ours = {
            **place,
            "logged": results.capture_logged(trainer),
            "module": results.capture_module(trainer.lightning_module),
            "asked": self._asked,
        }
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint["callbacks"] = {**checkpoint["callbacks"], **(callbacks or {})}
        return {**self._parameters.storable(checkpoint), _OURS: ours}

    # -- the boundary that was resumed ------------------------------------------------------------

    def _revive(self, boundary: str) -> None:
        revive = averaging.revive_in_the_midst if lies_in_an_epoch(boundary) else averaging.revive
        revive(self._trainer, self._trainer.lightning_module)

    def _restore(self) -> None:
        """What Lightning's own restoring leaves out or disturbs."""
        state, self._loaded = self._loaded, None
        assert state is not None and self._gradients is not None
        if self.ranks.rank >= self._world:
            results.restore_metrics(self._trainer, state["logged"])
            return
        if self._world == self.ranks.world:
            results.restore_logged(self._trainer, state["logged"])
            self._gradients.restore(state["gradients"])
        else:
            results.restore_metrics(self._trainer, state["logged"])
        results.restore_module(self._trainer.lightning_module, state["module"])
        for missing in restore_rng(state["rng"]):
            _log.warning("%s is in the checkpoint, but cannot be restored here", missing)

    def _tell_of_change(self, in_the_midst: bool) -> None:
        anew = "; the epoch begins anew, and samples that were seen in it come again" if in_the_midst else ""
        _log.warning(
            "the checkpoint was made by a training in %d processes, and this one has %d: weights, optimizer and "
            "counters go on exactly; positions in the data are given up%s; processes that are new have random "
            "states of their own", self._world, self.ranks.world, anew,
        )  # fmt: skip

    # -- the end ----------------------------------------------------------------------------------

    def fail(self, participant: Participant, error: BaseException) -> None:
        """Training ended by an exception: what is being written becomes durable, the last good state is saved."""
        session, trainer = participant.session, self._trainer
        if self._gradients is None or not isinstance(session, Session):
            return
        capture = None
        stopped = self._preempted and type(error).__name__ == "SIGTERMException"  # for that it was saved
        if participant.has_moved and not stopped:
            good = self._last_good.put_back() if self._last_good is not None else None
            if good is not None:
                capture = lambda: self._dump(*good)  # noqa: E731
            else:
                _log.warning(
                    "the state before the failure is gone: training goes on from the newest checkpoint"
                )
        session.fail(error, trainer.global_step, trainer.current_epoch, capture)

    def leave(self, participant: Participant) -> None:
        """A callback's part is over. The last one leaves the trainer as it was."""
        if participant not in self._left:
            self._left.append(participant)
        if len(self._left) < len(self._all):
            return
        vars(self._trainer._checkpoint_connector).pop("_restore_modules_and_callbacks", None)
        self._watch.remove()
        if self._gradients is not None:
            self._gradients.close()
        if self._last_good is not None:
            self._last_good.close()
        self._loaded = None
        with ExitStack() as stack:  # what is added last is done first: signal handlers come off in reverse
            stack.callback(self.ranks.close)
            for each in self._all:
                stack.callback(each.close)


def _no_more(now: int | None, then: int | None) -> bool:
    """Whether a limit asks for no more than an earlier one did; None and -1 are no limit."""
    return then in (None, -1) or (now not in (None, -1) and now <= then)
