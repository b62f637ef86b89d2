"""Who runs which hook when: order, conditions, isolation, time limits, vetoes, statistics.

Knows no event's meaning; what a veto stops and what becomes of a request to save is the caller's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ckpt_core import clock
from ckpt_core.errors import HookError, UsageError
from ckpt_core.hooks import calling
from ckpt_core.hooks.background import BackgroundQueue
from ckpt_core.hooks.base import Answer, BaseHook, FunctionHook
from ckpt_core.hooks.context import HookContext
from ckpt_core.hooks.events import HookEvent
from ckpt_core.hooks.registration import Registration
from ckpt_core.hooks.results import FailureKind, HookFailure, HookOutcome, HookStatistics

__all__ = ["HookManager"]

_log = logging.getLogger("ckpt_core.hooks")
_NOTHING = HookOutcome()

Tell = Callable[[str, str, str], object]
"""Is told that a hook is left out (`left-out`) or works again (`works-again`): its name, which, and why."""


class HookManager:
    """Runs the hooks of an event by priority, ties by registration. Safe to use from several threads.

    No lock is held while a hook runs: a hook may fire events, register and unregister. A firing runs the
    hooks that were registered when it began. `background_limit` bounds the calls of BACKGROUND hooks that
    wait for the worker thread.
    """

    def __init__(self, hooks: Iterable[BaseHook] = (), *, background_limit: int = 256) -> None:
        if background_limit < 1:
            raise UsageError(f"background_limit is {background_limit}; give 1 or more")
        self._lock = threading.RLock()
        self._registered: tuple[Registration, ...] = ()
        self._listeners: dict[HookEvent, tuple[Registration, ...]] = {}
        self._number = 0
        self._owner: Any = None
        self._tell: Tell | None = None
        self._background = BackgroundQueue(self._run_in_background, background_limit)
        for hook in hooks:
            self.register_hook(hook)

    def register_hook(
        self,
        hook: BaseHook | Callable[[HookContext], Answer],
        events: HookEvent | Iterable[HookEvent] | None = None,
    ) -> BaseHook:
        """Have `hook` react to `events`, or to its own; a plain function needs `events`. Returns the hook.

        A name that is taken gets a number: `upload`, `upload-2`. Raises UsageError for a hook that is
        registered already, or whose attributes cannot mean anything.
        """
        if not isinstance(hook, BaseHook):
            if not callable(hook):
                raise UsageError(
                    f"{hook!r} is no hook: give an instance of BaseHook, or a function and its events",
                    kind="hook",
                )
            hook = FunctionHook(hook)
        with self._lock:
            if any(registration.hook is hook for registration in self._registered):
                raise UsageError(
                    f"hook {hook.name!r} is registered already; unregister it first, or register a second "
                    "instance",
                    kind="registered",
                    hook=hook.name,
                )
            registration = Registration(hook, self._free_name(hook), events, self._number)
            if self._owner is not None:
                hook.attach(self._owner)
            self._number += 1
            self._publish((*self._registered, registration))
        return hook

    def serve(self, owner: Any, tell: Tell | None = None) -> None:
        """Tell the hooks, those that are here and those to come, whose they are. See BaseHook.attach.

        `tell` hears of hooks that are left out because they fail too often, and of those that work again.
        Where one cannot be attached, those before it are told that it is over.
        """
        attached: list[Registration] = []
        try:
            with self._lock:
                self._owner, self._tell = owner, tell
                for entry in self._registered:
                    entry.hook.attach(owner)
                    attached.append(entry)
        except BaseException:
            self._detach(attached)
            raise

    def unregister_hook(self, hook: BaseHook | Callable[..., object] | str) -> None:
        """Take out a hook, given as it was registered or by its name. Its statistics go with it.

        Calls of it that are already queued still run. If it was told whose it is, it is told that it is over
        (`detach`), after those. Raises UsageError if it is not registered.
        """
        with self._lock:
            gone = [entry for entry in self._registered if entry.is_of(hook)]
            if not gone:
                known = ", ".join(entry.name for entry in self._registered) or "there are none"
                raise UsageError(f"{hook!r} is not registered; these hooks are: {known}", kind="unknown")
            self._publish(tuple(entry for entry in self._registered if entry not in gone))
            attached = self._owner is not None
        for entry in gone if attached else ():
            if not (entry.background and self._background.put((entry, None), limited=False)):
                self._end(entry)

    def hooks(self, event: HookEvent | None = None) -> list[BaseHook]:
        """The hooks registered, or those of one event, in the order in which they run."""
        if event is None:
            return [entry.hook for entry in sorted(self._registered, key=lambda entry: entry.order)]
        return [entry.hook for entry in self._listeners.get(HookEvent(event), ())]

    def listens(self, event: HookEvent) -> bool:
        """Whether any hook reacts to this event: of some events the facts cost something to find out."""
        return bool(self._listeners.get(event))

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume, by name of the hook; see BaseHook.state_dict. A hook that fails has none."""
        states: dict[str, Any] = {}
        for entry in self._registered:
            try:
                state = entry.hook.state_dict()
            except Exception as error:
                entry.count("failures")
                _log.error("the state of hook %s is not saved: %r", entry.name, error)
                continue
            if state:
                states[entry.name] = state
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Hand back what `state_dict` gave to the hooks of those names. A hook that fails begins without."""
        for entry in self._registered:
            if entry.name in states:
                try:
                    entry.hook.load_state_dict(states[entry.name])
                except Exception as error:
                    entry.count("failures")
                    _log.error("hook %s cannot go on from its state, and begins anew: %r", entry.name, error)

    def statistics(self) -> dict[str, HookStatistics]:
        """What each registered hook has done so far, by name, in the order of registration."""
        return {entry.name: entry.statistics() for entry in self._registered}

    def fire(self, context: HookContext) -> HookOutcome:
        """Run the hooks of `context.event` and say what came of it. BACKGROUND hooks are only queued.

        The first veto ends the firing: hooks further down would prepare for what will not happen.
        Raises HookError when a hook with `on_error="raise"` fails, which ends the firing as well, and
        whatever is no Exception (KeyboardInterrupt, SystemExit). Otherwise it raises nothing.
        """
        listeners = self._listeners.get(context.event)
        if not listeners:
            return _NOTHING
        requested, wished = len(context.save_requests), len(context.keep_requests)
        failures: list[HookFailure] = []
        reasons: tuple[str, ...] = ()
        for entry in listeners:
            if not self._applies(entry, context, failures):
                continue
            if entry.background:
                self._defer(entry, context)
                continue
            veto = self._run(entry, context, failures)
            if veto is not None:
                entry.count("vetoes")
                reasons = (f"{entry.name}: {veto}",)
                break
        return HookOutcome(
            bool(reasons),
            reasons,
            tuple(failures),
            context.save_requests[requested:],
            context.keep_requests[wished:],
        )

    def table(self) -> list[dict[str, Any]]:
        """Every hook as plain values, in the order in which they run: name, source, priority, events, statistics."""
        return [
            {
                "name": entry.name,
                "source": entry.hook.source,
                "priority": entry.priority.name.lower(),
                "events": [event.value for event in entry.events],
                **{key: value for key, value in asdict(entry.statistics()).items() if key != "name"},
            }
            for entry in sorted(self._registered, key=lambda entry: entry.order)
        ]

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no BACKGROUND hook is queued or running; whether that came about within `timeout` s.

        Called by a BACKGROUND hook, which cannot wait for itself, it returns False at once.
        """
        return self._background.drain(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Queue no more BACKGROUND calls and drain; False if `timeout` seconds were not enough.

        What is still queued then is dropped, counted and logged. Hooks that were told whose they are
        are told that it is over (`detach`); they go on as before. May be called again.
        """
        left = self._background.close(timeout)
        for entry, context in left:
            if context is None:
                self._end(entry)
            else:
                self._drop(entry, context, "the hook manager was closed before its turn came")
        done = not left and self._background.drain(0)
        self._detach()
        return done

    def _detach(self, attached: Iterable[Registration] | None = None) -> None:
        """Tell those attached, all if left out, that it is over, once."""
        with self._lock:
            owner, self._owner = self._owner, None
            entries = self._registered if attached is None else attached
        for entry in entries if owner is not None else ():
            self._end(entry)

    def _end(self, entry: Registration) -> None:
        if entry.is_stuck():  # it would wait for itself
            return
        try:
            calling.call(entry.hook.detach, entry.timeout, entry.name)
        except calling.Overrun:
            _log.error("hook %s did not end within its time limit of %s s", entry.name, entry.timeout)
        except Exception as error:
            _log.error("hook %s did not end well: %r", entry.name, error, exc_info=error)

    def _free_name(self, hook: BaseHook) -> str:
        wanted = hook.name or type(hook).__name__
        taken = {entry.name for entry in self._registered}
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}-{count}"
        return name

    def _publish(self, registered: tuple[Registration, ...]) -> None:
        # Whole new tuples each time: `fire` reads them without a lock.
        self._registered = registered
        self._listeners = {
            event: tuple(sorted((e for e in registered if event in e.events), key=lambda e: e.order))
            for event in HookEvent
        }

    def _applies(self, entry: Registration, context: HookContext, failures: list[HookFailure]) -> bool:
        if not entry.circuit.admits():
            entry.count("skipped")
            return False
        try:
            applies = entry.condition is None or bool(entry.condition(context))
        except Exception as error:
            self._fail(entry, context, failures, "condition", error)
            return False
        except BaseException:
            entry.circuit.undecided()
            raise
        if not applies:
            entry.circuit.undecided()
        elif entry.is_stuck():
            entry.count("dropped")
            self._fail(entry, context, failures, "stuck")
            return False
        return applies

    def _run(self, entry: Registration, context: HookContext, failures: list[HookFailure]) -> str | None:
        """Call one hook, take over what it said, deal with its failure; why it vetoes, or None.

        What it said before it failed counts; what it says after its time limit does not.
        """
        view = context.for_call(background=entry.background)
        vetoed = False
        failure: tuple[FailureKind, Exception] | None = None
        entry.count("calls")
        begun = clock.monotonic()
        try:
            answer = calling.call(lambda: entry.execute(view), entry.timeout, entry.name)
            vetoed = context.event.can_be_vetoed and _is_false(answer)
        except calling.Overrun as error:
            if error.thread is not None:
                entry.abandon(error.thread)
            failure = ("timeout", error)
        except Exception as error:
            failure = ("raised", error)
        except BaseException:
            entry.circuit.undecided()
            raise
        finally:
            entry.spend(clock.monotonic() - begun)
        veto = context.take_answers(view)
        if veto is None and vetoed:
            veto = "returned False"
        if failure is not None:
            self._fail(entry, context, failures, *failure)
        elif entry.circuit.succeeded():
            _log.warning("hook %s works again", entry.name)
            self._say(entry, "works-again", f"on {context.event.name}")
        return veto

    def _fail(
        self,
        entry: Registration,
        context: HookContext,
        failures: list[HookFailure],
        kind: FailureKind,
        error: Exception | None = None,
    ) -> None:
        """Count, log and record a failure; raise it if the hook was registered so."""
        earlier = 0
        if kind != "stuck":  # that one was counted when its call was dropped
            earlier = entry.count("timeouts" if kind == "timeout" else "failures")
        cause = None if isinstance(error, calling.Overrun) else error
        failures.append(HookFailure(entry.name, kind, cause))
        what = _describe(entry, kind, cause)
        # One traceback for each hook is enough: a hook that fails at every step would drown the log.
        traceback = cause if earlier == 0 else None
        step = "" if context.step is None else f" at step {context.step}"
        _log.error("hook %s %s on %s%s", entry.name, what, context.event.name, step, exc_info=traceback)
        entry.last_error = f"{what} on {context.event.name}{step}"
        if entry.circuit.failed():
            _log.error(
                "hook %s fails again and again: it is left out for %g s, and then tried once",
                entry.name, entry.circuit.seconds,
            )  # fmt: skip
            self._say(entry, "left-out", entry.last_error)
        if entry.raises:
            raise HookError(
                f"hook {entry.name!r} {what} on {context.event.name}{step}; correct it, or register it "
                'with on_error="isolate" to go on without it',
                kind=kind,
                hook=entry.name,
                event=context.event,
                step=context.step,
            ) from cause

    def _defer(self, entry: Registration, context: HookContext) -> None:
        if not self._background.put((entry, context)):
            self._drop(entry, context, f"the background queue is closed or full ({self._background.limit})")

    def _say(self, entry: Registration, what: str, why: str) -> None:
        if self._tell is not None:
            self._tell(entry.name, what, why)

    def _drop(self, entry: Registration, context: HookContext, why: str) -> None:
        entry.count("dropped")
        entry.circuit.undecided()
        _log.warning("hook %s was not run on %s: %s", entry.name, context.event.name, why)

    def _run_in_background(self, item: tuple[Registration, HookContext | None]) -> None:
        entry, context = item
        if context is None:
            self._end(entry)
            return
        if entry.is_stuck():  # it may have come to be while this call was queued
            entry.count("dropped")
            self._fail(entry, context, [], "stuck")
            return
        try:
            self._run(entry, context, [])
        except BaseException as error:  # SystemExit has no caller to reach from here: a failure like others
            self._fail(entry, context, [], "raised", RuntimeError(repr(error)))


def _describe(entry: Registration, kind: FailureKind, error: Exception | None) -> str:
    match kind:
        case "timeout":
            return f"ran past its time limit of {entry.timeout} s"
        case "stuck":
            return "was not called, as an earlier call that ran past its time limit is still running"
        case "condition":
            return f"could not be asked for its condition, which raised {error!r}"
        case "raised":
            return f"raised {error!r}"


def _is_false(answer: object) -> bool:
    # numpy's and torch's booleans, which a comparison of metrics gives, are not the object False.
    if hasattr(answer, "item"):
        answer = answer.item()
    return answer is False
