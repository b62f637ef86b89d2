"""Telling somebody else of events: a server over HTTP, a command, a log. None of them holds up training or a save.

What may be secret (an address with its path, headers, arguments, an environment) is in no log, error or repr.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Unpack
from urllib.parse import urlsplit

from ckpt_core.errors import CkptError, UsageError
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookOptions, HookPriority
from ckpt_core.watch.facts import facts_of

__all__ = ["EventLog", "RunCommand", "Webhook"]

_TOLD = (
    HookEvent.SAVE_FAILED,
    HookEvent.NEW_BEST,
    HookEvent.TRAIN_END,
    HookEvent.TRAIN_FAILED,
    HookEvent.PREEMPTED,
)
"""What somebody who is not there wants to know of."""
_GRACE = 1.0
"""Seconds after which a request that ends by itself has done so."""
_LOGGED = tuple(event for event in HookEvent if event not in (HookEvent.STEP_END, HookEvent.AFTER_STAGE))


class Webhook(BaseHook):
    """Posts each event as JSON to an address: `Webhook("https://hooks.example/…")`.

    `events` are those that one wants to know of when not there, unless you name others. `headers` may carry a token.
    `text` names a field that gets a sentence in words, which chat services ask for. A server that does not answer
    within `seconds`, or not with success, is a failure of the hook, and nothing more: it is logged by the server's
    name only, as the rest of an address is often a secret. One whose answer never ends is left behind a second later
    (`timeout`, unless you give one). Redirects are not followed, for they would take the headers along.
    Raises UsageError.
    """

    events = _TOLD
    priority = HookPriority.BACKGROUND

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        text: str | None = "text",
        seconds: float = 10.0,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        try:
            parts = urlsplit(url)
            server = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        except ValueError:
            parts, server = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not server:
            raise UsageError("url= must be an address that begins with https:// or http://", kind="option")
        self.server = server
        self.text = text
        self.seconds = _checked_seconds(seconds)
        if self.timeout is None:  # `seconds` are those of each wait, and an answer may come byte by byte
            self.timeout = self.seconds + _GRACE
        self._url = url
        self._headers = dict(headers or {})

    def execute(self, context: HookContext) -> None:
        facts = facts_of(context)
        if self.text is not None:
            facts[self.text] = sentence(context)
        request = urllib.request.Request(
            self._url,
            data=json.dumps(facts).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "ckpt-core", **self._headers},
            method="POST",
        )
        try:
            with _OPENER.open(request, timeout=self.seconds):
                return
        except urllib.error.HTTPError as error:
            with error:
                said = f"answered {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            said = f"could not be reached ({type(error).__name__})"
        # Not `from error`: what is chained is logged with its traceback, and has the address in it.
        raise CkptError(
            f"{self.server} was not told of {context.event.name}: it {said}", kind="webhook"
        ) from None

    def __repr__(self) -> str:
        return f"<Webhook {self.server}>"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


class RunCommand(BaseHook):
    """Runs a program with each event as JSON on its standard input: `RunCommand(["notify-send", "training"])`.

    There is no shell: `command` is the program and its arguments, and nothing of an event is among them. It is killed
    with all that it started after `seconds`. `environment` is added to that of this process. Its exit status other
    than 0 is a failure of the hook. What it writes to its standard output is dropped; its standard error is this
    process's. Raises UsageError.
    """

    events = _TOLD
    priority = HookPriority.BACKGROUND

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = 30.0,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
            raise UsageError(
                'command= must be a list of the program and its arguments, as ["notify-send", "training"]: there is '
                "no shell that would take a line apart",
                kind="option",
            )
        self.seconds = _checked_seconds(seconds)
        self._command = list(command)
        self._environment = dict(environment or {})

    def execute(self, context: HookContext) -> None:
        program = Path(self._command[0]).name
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise CkptError(f"{program} cannot be started: {type(error).__name__}", kind="command") from None
        try:
            process.communicate(json.dumps(facts_of(context)).encode(), timeout=self.seconds)
        except subprocess.TimeoutExpired:
            raise CkptError(
                f"{program} was killed: it had not ended after {self.seconds:g} s", kind="command"
            ) from None
        finally:
            if process.returncode is None:  # or else its number may be another's by now
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            raise CkptError(f"{program} ended with status {process.returncode}", kind="command")

    def __repr__(self) -> str:
        return f"<RunCommand {Path(self._command[0]).name}>"


class EventLog(BaseHook):
    """Writes a line for each event to a log of Python's, or as JSON to a file of its own.

    `path`: a file, to which lines are appended; left out, the logger `ckpt_core.events`, at `level`. All events but
    those of every step, unless you name others. Raises UsageError.
    """

    events = _LOGGED
    priority = HookPriority.LOW

    def __init__(
        self, path: Path | None = None, *, level: str = "INFO", **options: Unpack[HookOptions]
    ) -> None:
        super().__init__(**options)
        number = logging.getLevelNamesMapping().get(level)
        if number is None:
            known = ", ".join(sorted(logging.getLevelNamesMapping()))
            raise UsageError(f"level={level!r} must be one of {known}", kind="option")
        self.path = None if path is None else Path(path)
        self.level = number

    def execute(self, context: HookContext) -> None:
        if self.path is None:
            logging.getLogger("ckpt_core.events").log(
                self.level, "%s", sentence(context), extra={"ckpt": facts_of(context)}
            )
            return
        line = json.dumps(facts_of(context)) + "\n"
        with open(
            self.path, "ab", buffering=0
        ) as file:  # one write to the end: lines of two processes do not mix
            file.write(line.encode())


def sentence(context: HookContext) -> str:
    """An event in words, on one line."""
    words = [context.experiment or "training", context.event.value.replace("_", " ")]
    words += [f"at step {context.step}"] if context.step is not None else []
    words += [context.checkpoint.id] if context.checkpoint is not None else []
    said = " ".join(words)
    if context.metrics:
        said += ": " + ", ".join(f"{name} {value:.6g}" for name, value in sorted(context.metrics.items()))
    if context.error is not None:
        said += f": {type(context.error).__name__}: {context.error}"
    elif context.reason:
        said += f" ({context.reason})"
    return " ".join(said.split())


def _checked_seconds(seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise UsageError(f"seconds={seconds!r} must be a number above 0", kind="option")
    return float(seconds)
