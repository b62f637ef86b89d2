"""The checkpoints of one experiment as they stand: finding, loading, marking, forgetting, checking them.

Everything that a manager can do without saving. Making checkpoints is the manager's own.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import CkptError, NotFoundError, UsageError
from ckpt_core.format.signing import SigningKey
from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.maintenance.deletion import Pruned
from ckpt_core.maintenance.prune import PrunePlan
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline import undo
from ckpt_core.pipeline.fallback import LoadRequest, StateLoader
from ckpt_core.pipeline.opened import CheckpointReader, open_checkpoint
from ckpt_core.pipeline.resolve import Mode, candidates, choose_forgotten, newest_lineage, split_reference
from ckpt_core.pipeline.trust import Readable, sign, standing_manifest
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import GRACE_SECONDS, Verify, refuse_if_gone

if TYPE_CHECKING:
    from ckpt_core.maintenance.repair import RepairReport
    from ckpt_core.maintenance.scrubbing import ScrubReport
    from ckpt_core.maintenance.verify import Progress, VerifyReport

__all__ = ["Library"]


class Meaning(TypedDict):
    """What is not said in a reference: the experiment, and what is best."""

    experiment: str
    metric: str | None
    mode: Mode


_LOOKS = 4


class Library(ABC):  # noqa: B024 - abstract because it is only a part: CheckpointManager is the whole
    """The reading half of CheckpointManager.

    Everything here is about what is committed: a pending save is not there yet (`wait` for it). Thread-safe.
    """

    def __init__(
        self,
        workspace: Workspace,
        experiment: str,
        hooks: HookManager,
        metric: str | None,
        mode: Mode,
        backend: StorageBackend | None = None,
    ) -> None:
        self.workspace = workspace
        self.experiment = experiment
        self.hooks = hooks
        self.metric = metric
        self.mode: Mode = mode
        self.loaded: Checkpoint | None = None
        self.backend = backend
        self._loader = StateLoader(workspace, hooks, backend)
        self.signer: SigningKey | None = None
        self._readable = Readable(workspace)
        self._meaning: Meaning = {"experiment": experiment, "metric": metric, "mode": mode}
        if workspace.mirror is not None:
            workspace.mirror.spare.heard = self._tell_damage

    # -- finding ----------------------------------------------------------------------------------

    def resolve(self, ref: str = "latest") -> Checkpoint:
        """The checkpoint that a reference means: `[experiment@]latest|best|step=N|tag|id prefix`.

        With trusted keys, `latest` and `best` pass over what none of them signed. Raises NotFoundError, UsageError;
        CorruptionError where no manifest of the experiment can be read; SignatureError.
        """
        return next(self._readable.candidates(ref, **self._meaning))

    def checkpoints(self, *, all_lineages: bool = True) -> list[Checkpoint]:
        """All checkpoints of the experiment (or of its newest lineage), from the oldest to the newest."""
        found = self.workspace.index.checkpoints(self.experiment)
        return found if all_lineages or not found else newest_lineage(found)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved; None where there is none.

        Raises CorruptionError where there are some and no manifest of them can be read; SignatureError where there are
        some and, by the manager's trusted keys, none is to be loaded.
        """
        try:
            newest = (
                None if self.workspace.repository.trusted else self.workspace.index.newest(self.experiment)
            )
            return newest or self.resolve("latest")
        except NotFoundError:
            return None

    def best(self) -> Checkpoint | None:
        """The best by the manager's metric in the newest lineage; None where none carries it.

        Raises UsageError where the manager has no metric; SignatureError as `latest` does.
        """
        try:
            return self.resolve("best")
        except NotFoundError:
            return None

    # -- loading ----------------------------------------------------------------------------------

    def load(
        self,
        ref: str = "latest",
        *,
        like: Any = None,
        include: str | Sequence[str] | None = None,
        verify: Verify = "full",
        fallback: bool = True,
        framework: str | None = None,
    ) -> Any:
        """The state of a checkpoint.

        `like`: a state into whose structure, dtypes and devices it is loaded, its tensors filled in place;
        without it come plain containers and tensors of the framework that saved them, or of `framework`.
        `include`: paths, subtrees or shell patterns to load, the rest is not read. `verify`: `full` checks
        every byte read and the headers of its packs, `lazy` every byte read, `off` none. Where `latest` or
        `best` is damaged, or not signed by a key that the manager trusts, the next one of its lineage that verifies
        is loaded, and the log and the event CORRUPTION_FOUND say so, unless `fallback` is off. `loaded` then tells
        which one it was.

        Raises NotFoundError, CorruptionError, SignatureError, StateMismatchError (names the paths), FormatError,
        MissingExtraError. After an error the tensors of `like` may be partly overwritten.
        """
        request = LoadRequest(like, include, verify, framework)
        experiment, reference = split_reference(ref, self.experiment)
        for left in reversed(range(_LOOKS)):
            choices = self._readable.candidates(ref, **self._meaning)
            first = next(choices)
            better = self._readable.passed_over(first, ref, **self._meaning)
            if reference == "latest":
                damaged = self.workspace.index.damaged(experiment)
                better += [each for each in damaged if each[0].id > first.id]
            self._loader.pass_over(better, fallback=fallback)
            try:
                with self.workspace.figures.timed("load"):
                    self.loaded, state = self._loader.load(first, choices if fallback else (), request)
                self.workspace.figures.add("loaded", self.loaded.logical_bytes)
            except NotFoundError:  # retention took all of them away meanwhile: there are newer ones
                refuse_if_gone(self.workspace.repository.store)
                if not left:
                    raise
            else:
                return state
        raise AssertionError("the last look returns or raises")

    def open(
        self, ref: str = "latest", *, verify: Verify = "lazy", framework: str | None = None
    ) -> CheckpointReader:
        """A checkpoint for reading piece by piece: `reader["model/embed.weight"][1000:2000]`.

        Reads one manifest now, and later only the chunks asked for, each checked unless `verify` is `off`.
        """
        with self.workspace.figures.timed("open"):
            checkpoint = self.resolve(ref)
            manifest = standing_manifest(self.workspace, checkpoint, verify)
            return open_checkpoint(
                self.workspace.repository,
                manifest,
                checkpoint,
                verify=verify,
                framework=framework,
                backend=self.backend,
            )

    # -- marks ------------------------------------------------------------------------------------

    def tag(self, ref: str, tag: str) -> None:
        """Points a tag to a checkpoint, away from any other of the experiment."""
        self.workspace.tag(self.resolve(ref), tag)

    def untag(self, tag: str) -> None:
        """Removes a tag of the experiment."""
        self.workspace.untag(self.experiment, tag)

    def pin(self, ref: str) -> None:
        """Keeps a checkpoint from every retention policy."""
        self.workspace.pin(self.resolve(ref))

    def unpin(self, ref: str) -> None:
        """Leaves a checkpoint to the retention policies again."""
        self.workspace.unpin(next(self._candidates(ref)))

    def sign(self, ref: str) -> Checkpoint:
        """Signs a checkpoint that is there, with the manager's signing key; signatures of others stay.

        Raises NotFoundError, StoreError (of kind `locked` while somebody prunes); UsageError where the manager has no
        signing key.
        """
        if self.signer is None:
            raise UsageError("the manager has no key to sign with: give it signing_key=", kind="key")
        checkpoint = next(self._candidates(ref))
        sign(self.workspace, checkpoint, self.signer)
        return checkpoint

    # -- maintenance ------------------------------------------------------------------------------

    def forget(self, ref: str, *, grace: float = GRACE_SECONDS) -> Checkpoint:
        """Drops a checkpoint: it is no longer listed or loaded. `prune` reclaims its bytes, but not for `grace`
        seconds (a day): for so long `undelete` brings it back.

        Raises NotFoundError; UsageError (kind `vetoed`) where a hook keeps it.
        """
        checkpoint = next(self._candidates(ref))
        facts: dict[str, Any] = {
            "experiment": checkpoint.experiment, "step": checkpoint.step, "attempt": checkpoint.attempt,
            "checkpoint": checkpoint, "metrics": checkpoint.metrics, "reason": "forget",
        }  # fmt: skip
        outcome = self.hooks.fire(HookContext(HookEvent.BEFORE_DELETE, **facts))
        if outcome.vetoed:
            raise UsageError(f"not forgotten: {'; '.join(outcome.reasons)}", kind="vetoed")
        if not self.workspace.forget([checkpoint], grace=grace):
            raise NotFoundError(f"checkpoint {checkpoint.id} was forgotten meanwhile", reference=ref)
        self.hooks.fire(HookContext(HookEvent.AFTER_DELETE, **facts))
        return checkpoint

    def forgotten(self) -> list[Checkpoint]:
        """The forgotten checkpoints of the experiment that `undelete` can still bring back."""
        return [checkpoint for checkpoint, _ in undo.forgotten(self.workspace, self.experiment)]

    def undelete(self, ref: str) -> Checkpoint:
        """Brings a forgotten checkpoint back, with the tags and pins that it had: `step=N` (the newest of it),
        or the beginning of its id. A retention policy may let it go again: pin what is to stay.

        Raises NotFoundError where it is not there any more, UsageError, StoreError (of kind `locked` while
        somebody prunes).
        """
        return undo.undelete(self.workspace, [choose_forgotten(self.forgotten(), ref)])[0]

    def plan_prune(self, *, now: bool = False) -> PrunePlan:
        """The bytes that nothing names any more, as a plan for `prune`. What can still be brought back stays,
        unless it is to go `now`."""
        return self.workspace.plan_prune(now=now)

    def prune(self, plan: PrunePlan | None = None) -> Pruned:
        """Reclaims the bytes that nothing names any more. Saves may go on meanwhile, here and elsewhere."""
        return self.workspace.prune(self.plan_prune() if plan is None else plan)

    def verify(
        self, ref: str | None = None, *, read_data: bool = True, progress: Progress | None = None
    ) -> VerifyReport:
        """Checks one checkpoint, or (None) every byte of the store. Damage is reported, not raised."""
        chosen = None if ref is None else [next(self._candidates(ref))]
        report = self.workspace.verify(chosen, read_data=read_data, progress=progress)
        if not report.ok:
            facts = {"problems": report.problems, "damaged": report.damaged}
            self.hooks.fire(HookContext(HookEvent.CORRUPTION_FOUND, experiment=self.experiment, data=facts))
        return report

    def scrub(
        self, *, rate: int | None = None, limit: int | None = None, seconds: float | None = None
    ) -> ScrubReport:
        """Reads and checks what was not for longest: at most `rate` bytes a second, `limit` bytes, `seconds`.

        The next one goes on where this one ends. Damage is reported, not raised.
        """
        report = self.workspace.scrub(rate=rate, limit=limit, seconds=seconds)
        if not report.ok:
            facts = {"problems": report.problems, "damaged": report.damaged}
            self.hooks.fire(HookContext(HookEvent.CORRUPTION_FOUND, experiment=self.experiment, data=facts))
        return report

    def repair(self, *, dry_run: bool = False) -> RepairReport:
        """Heals what is damaged or lost in the store: from its other packs, the mirror, parity.

        What cannot be healed is put in quarantine, with the checkpoints that need it; a later repair tries again.
        """
        report = self.workspace.repair(dry_run=dry_run)
        if report.mended and not dry_run:
            facts = {"mended": report.mended, "lost": report.lost, "returned": report.returned}
            self.hooks.fire(HookContext(HookEvent.AFTER_REPAIR, experiment=self.experiment, data=facts))
        return report

    def _tell_damage(self, error: CkptError) -> None:
        """Something was read from the mirror instead: whoever loads gets what was saved, and hears of it."""
        mirror = self.workspace.mirror
        assert mirror is not None
        detail = {"error": str(error), "mirror": mirror.url}
        self.workspace.index.tell(lambda catalog: catalog.record_check(None, "load", "damaged", detail))
        facts = {"mirror": mirror.url, "key": error.facts.get("key")}
        self.hooks.fire(
            HookContext(HookEvent.CORRUPTION_FOUND, experiment=self.experiment, error=error, data=facts)
        )

    def _candidates(self, ref: str) -> Iterator[Checkpoint]:
        return candidates(self.workspace.index, ref, **self._meaning)
