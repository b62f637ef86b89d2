"""One call of the command: its settings, its output, and the store that it opens when first asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckpt_core.cli.escape import escape
from ckpt_core.cli.output import Output
from ckpt_core.config import environment
from ckpt_core.errors import CkptError, NotFoundError, UsageError

if TYPE_CHECKING:
    from ckpt_core.format.documents import Manifest
    from ckpt_core.format.signing import TrustedKeys
    from ckpt_core.model import Checkpoint
    from ckpt_core.pipeline.workspace import Workspace

__all__ = ["Call"]

Mode = Literal["min", "max"]
TRUSTED_KEYS = "CKPT_TRUSTED_KEYS"
"""The environment variable with files of public keys, as PATH has folders."""
_DEFAULT_STORES = (".", "checkpoints")


class Call:
    """What a command is given. `workspace` is the opened store; `output` is where its answer goes."""

    def __init__(self) -> None:
        self.store: str | None = None
        self.catalog: str | None = None
        self.json = False
        self.quiet = False
        self.debug = False
        self.yes = False
        self.trusted_keys: tuple[str, ...] = ()
        self.metric: str | None = None
        self.mode: Mode = "min"
        self.mode_given = False
        self.output = Output()
        self._workspace: Workspace | None = None

    def remember(self, setting: str, value: Any) -> None:
        """Takes the value of one of the options that commands share."""
        setattr(self, setting, value)
        if setting == "mode":
            self.mode_given = True
        self.output.json, self.output.quiet = self.json, self.quiet

    # -- the store -------------------------------------------------------------------------------

    @property
    def store_location(self) -> str:
        """The path or URL of the store. Raises NotFoundError (kind `store`) where none is named or found."""
        named = self.store or environment("CKPT_STORE")
        if named:
            return named
        for folder in _DEFAULT_STORES:
            if (Path(folder) / "store.json").is_file():
                return folder
        raise NotFoundError(
            "there is no checkpoint store here (neither ./store.json nor ./checkpoints/store.json); "
            "name one with --store PATH or CKPT_STORE",
            kind="store",
        )

    @property
    def workspace(self) -> Workspace:
        """The store, opened once; never created."""
        if self._workspace is None:
            location = self.store_location
            from ckpt_core.pipeline.workspace import Workspace

            trusted = self._trusted()
            self._workspace = Workspace.open(location, catalog=self.catalog or environment("CKPT_CATALOG"))
            self._workspace.repository.trusted = trusted
        return self._workspace

    def _trusted(self) -> TrustedKeys | None:
        """Whose signature counts: `--trusted-key`, else CKPT_TRUSTED_KEYS; None where that is not asked for."""
        named = self.trusted_keys or tuple(filter(None, (environment(TRUSTED_KEYS) or "").split(os.pathsep)))
        if not named:
            return None
        from ckpt_core.format.signing import TrustedKeys

        return TrustedKeys.load(named)

    def close(self) -> None:
        """Closes what was opened."""
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None

    # -- what references mean --------------------------------------------------------------------

    def resolve(self, reference: str) -> Checkpoint:
        """The checkpoint that a reference means. Raises NotFoundError, UsageError."""
        from ckpt_core.pipeline.resolve import candidates

        metric = self.metric_of(reference)
        index = self.workspace.index
        return next(candidates(index, reference, experiment=None, metric=metric, mode=self.mode))

    def readable(self, reference: str) -> tuple[Checkpoint, Manifest]:
        """The checkpoint that a reference means to somebody who is about to read it, and its manifest.

        Raises NotFoundError, UsageError; SignatureError where nobody trusted signed it.
        """
        from ckpt_core.pipeline.trust import Readable, trusted_manifest

        workspace, metric = self.workspace, self.metric_of(reference)
        found = Readable(workspace).candidates(reference, experiment=None, metric=metric, mode=self.mode)
        checkpoint = next(found)
        return checkpoint, trusted_manifest(workspace.repository, checkpoint)

    def metric_of(self, reference: str) -> str | None:
        """The metric that `best` goes by in a reference."""
        from ckpt_core.pipeline.resolve import split_reference

        experiment, rest = split_reference(reference)
        return self._only_metric(experiment) if rest == "best" and self.metric is None else self.metric

    def _only_metric(self, experiment: str | None) -> str | None:
        """The metric that all checkpoints carry, if they carry no other. Says so: it is a guess."""
        found = self.workspace.index.checkpoints(experiment)
        sets = {frozenset(checkpoint.metrics) for checkpoint in found}
        names = sets.pop() if len(sets) == 1 else frozenset[str]()
        if len(names) != 1 or len({checkpoint.experiment for checkpoint in found}) > 1:
            known = sorted({name for checkpoint in found for name in checkpoint.metrics})
            if found and known and len({checkpoint.experiment for checkpoint in found}) == 1:
                raise UsageError(
                    f"best by which metric? say --metric NAME; the checkpoints carry {', '.join(known)}",
                    kind="metric",
                )
            return None
        (metric,) = names
        self.output.note(
            f"best by {metric} ({self.mode}), the only metric: --metric and --mode say otherwise"
        )
        return metric

    # -- answers and questions -------------------------------------------------------------------

    def answer(
        self, command: str, data: Any, show: Callable[[Output], object], quiet: Sequence[str] = ()
    ) -> None:
        """Answers in the form that was asked for: a document, the `quiet` lines, or what `show` draws.

        `data` may be a function that makes it, where that costs something.
        """
        if self.json:
            self.output.document(command, data() if callable(data) else data)
        elif self.quiet:
            for text in quiet:
                self.output.line(text)
        else:
            show(self.output)

    def confirm(self, question: str) -> None:
        """Asks on a terminal, unless told not to. Raises CkptError (kind `declined`) for anything but yes."""
        import click

        self.output.flush()  # a reader that is gone must stop the command before it acts
        if self.yes or not self.output.can_ask:
            return
        try:
            agreed = click.confirm(escape(question), err=True)
        except click.Abort as error:
            click.echo(err=True)  # the question stands at the end of its line
            if not isinstance(error.__context__, EOFError):  # Ctrl-C
                raise
            agreed = False
        if not agreed:
            raise CkptError(
                "not confirmed, so nothing was changed; --yes goes on without asking", kind="declined"
            )

    def secret(self, variable: str, prompt: str, *, twice: bool = False) -> str:
        """A passphrase: that of an environment variable, or what is typed. Raises UsageError where neither can be."""
        import click

        given = environment(variable)
        if given is None and not self.output.can_ask:
            raise UsageError(
                f"there is no terminal to ask for the passphrase: set {variable}", kind="passphrase"
            )
        if given is None:
            given = str(click.prompt(escape(prompt), hide_input=True, confirmation_prompt=twice, err=True))
        return given

    # -- the engine's log ------------------------------------------------------------------------

    def listen(self) -> logging.Handler:
        """Shows the engine's warnings on stderr (with `debug` all it says). The caller takes it off."""
        handler = _Handler(self)
        logging.getLogger("ckpt_core").addHandler(handler)
        return handler


class _Handler(logging.Handler):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._call.output.warning(record.getMessage())
        elif self._call.debug:
            self._call.output.note(f"{record.name}: {record.getMessage()}")
