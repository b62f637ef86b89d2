"""The last good state, for when training fails in the midst of a step.

A step that fails before an optimizer has moved leaves weights and optimizers as they were. What it has changed by
then is small: random states, counters, the position in the data, what was logged, running statistics. That is
noted at every instant at which a resume would be exact; if the next step fails, it is put back, and saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lightning import results
from ckpt_lightning.loops import progress_of
from ckpt_torch.gradients import Gradients, GradientsNow
from ckpt_torch.rng import capture_rng, read_streams

__all__ = ["LastGood"]

_EARLY = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward")
"""Hooks of a callback that come before an optimizer moves."""


@dataclass(frozen=True, slots=True)
class _Moment:
    place: dict[str, Any]
    rng: dict[str, Any]
    counters: list[dict[str, Any]]
    logged: dict[str, Any]
    metrics: dict[str, Any]
    gradients: GradientsNow
    rates: list[Any]
    callbacks: dict[str, Any]


class LastGood:
    """Notes the moments of one training. To note one takes some hundred microseconds for some hundred tensors."""

    def __init__(self, trainer: Any, gradients: Gradients) -> None:
        self._trainer = trainer
        self._gradients = gradients
        module = trainer.lightning_module
        self._weights = _Weights(module)
        self._metrics = dict(results.metrics_of(module))
        self._buffers = _Buffers(module)
        self._progress = list(progress_of(trainer.fit_loop))
        self._early = [each for each in trainer.callbacks if _is_early(type(each))]
        self._on_host = trainer.strategy.root_device.type == "cpu"
        self._hooks = [each.register_step_post_hook(self.forget) for each in trainer.optimizers]
        self._moment: _Moment | None = None

    def note(self, place: dict[str, Any], *, rare: bool = False) -> None:
        """A resume from this instant would be exact; `place` is where the loop stands.

        With `rare` every callback may be asked for its state, as many will be called before the next moment.
        """
        asked = [each for each in self._trainer.callbacks if _overrides(type(each), "state_dict")]
        on_host = self._on_host and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._buffers.note()
        self._weights.note()
        self._moment = _Moment(
            place,
            rng=read_streams() if on_host else capture_rng(),
            counters=[dict(vars(each)) for each in self._progress],
            logged=results.capture_logged(self._trainer),
            metrics={name: results.capture_metric(each) for name, each in self._metrics.items()},
            gradients=self._gradients.now(),
            rates=_rates_of(self._trainer),
            callbacks={each.state_key: _held(each.state_dict()) for each in (asked if rare else self._early)},
        )  # fmt: skip

    def put_back(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Makes everything what it was at the last moment, but for what is returned to be saved as it was then: our
        place, and the states of callbacks by their keys. None where too much has changed. May be repeated."""
        moment, trainer = self._moment, self._trainer
        if moment is None or moment.rates != _rates_of(trainer) or self._weights.were_written_to():
            return None
        gradients = moment.gradients.state()
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        then = next(
            (saved for each, saved in zip(self._progress, moment.counters, strict=True) if each is batches),
            {},
        )
        if gradients is None or batches.processed != then.get("processed"):
            return None
        if not self._buffers.put_back() or self._weights.have_changed():
            return None
        for each, saved in zip(self._progress, moment.counters, strict=True):
            vars(each).update(saved)
        results.restore_logged(trainer, moment.logged)
        for name, metric in self._metrics.items():
            results.restore_metric(metric, moment.metrics[name])
        ours = {"loop": moment.place, "rng": moment.rng, "gradients": gradients}
        return ours, moment.callbacks

    def close(self) -> None:
        """Takes its hooks off the optimizers, and lets go of what it keeps."""
        self.forget()
        for hook in self._hooks:
            hook.remove()

    def forget(self, *_: object) -> None:
        """The last moment is gone: too much changes now."""
        self._moment = None


class _Weights:
    """Parameters and buffers: whether they are still what they were.

    torch counts who writes to a tensor, but not who does it through `.data`, as averages of weights are often made.
    One value of each part of the model tells of those, as they change all of it.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._owners = [
            owned for each in module.modules() for owned in (each._parameters, each._buffers) if owned
        ]
        self._parameters = list(module.parameters())
        self._versions: list[int] = []
        self._places: list[int] = []
        self._kinds: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def note(self) -> None:
        """This is how they are."""
        self._versions = [each._version for each in self._parameters]
        places = self._now()
        if places != self._places:
            self._places, self._kinds = places, self._first_values()
        with torch.no_grad():
            for copies, live in self._kinds:
                torch._foreach_copy_(copies, live)

    def were_written_to(self) -> bool:
        """Whether parameters were, or anything is another tensor now."""
        return self._versions != [each._version for each in self._parameters] or self._places != self._now()

    def have_changed(self) -> bool:
        """Whether any part has another first value."""
        return any(not torch.equal(*pair) for kind in self._kinds for pair in zip(*kind, strict=True))

    def _now(self) -> list[int]:
        return [each.data_ptr() for owned in self._owners for each in owned.values() if each is not None]

    def _first_values(self) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        kinds: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for owned in self._owners:
            first = next((each for each in owned.values() if each is not None and each.numel()), None)
            if first is not None:
                value = first.detach()[(0,) * first.dim()]
                copies, live = kinds.setdefault((value.dtype, value.device), ([], []))
                copies.append(torch.empty_like(value))
                live.append(value)
        return list(kinds.values())


class _Buffers:
    """Copies of a model's buffers as they were at the last moment, of those that anybody writes to.

    Running statistics are written without a trace; the count beside them is not. So all buffers of a part of the
    model are copied as soon as one was seen to change.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._parts = [_Part(each._buffers) for each in module.modules() if each._buffers]

    def note(self) -> None:
        """Bring the copies up to date."""
        kinds: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for part in self._parts:
            for saved, live in part.renewed():
                copies, originals = kinds.setdefault(live.dtype, ([], []))
                copies.append(saved)
                originals.append(live)
        with torch.no_grad():
            for copies, originals in kinds.values():
                torch._foreach_copy_(copies, originals)

    def put_back(self) -> bool:
        """Whether all that has changed since was noted, and is now as it was then."""
        moved = [part for part in self._parts if part.has_moved()]
        if not all(part.copies for part in moved):
            return False
        with torch.no_grad():
            for part in moved:
                for saved, live in zip(part.copies, part.live(), strict=True):
                    live.copy_(saved)
        return True


class _Part:
    """The buffers of one module, without those of the modules in it."""

    def __init__(self, buffers: dict[str, torch.Tensor | None]) -> None:
        self._buffers = buffers
        self._seen = self._now()
        self.copies: list[torch.Tensor] = []

    def live(self) -> list[torch.Tensor]:
        return [each for each in self._buffers.values() if each is not None]

    def has_moved(self) -> bool:
        return self._now() != self._seen

    def renewed(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """The copies and what is to be copied into them, if that has moved; from now on it has not."""
        now = self._now()
        if now == self._seen:
            return ()
        self._seen = now
        live = self.live()
        if [each.shape for each in self.copies] != [each.shape for each in live]:
            self.copies = [torch.empty_like(each) for each in live]
        return zip(self.copies, live, strict=True)

    def _now(self) -> list[tuple[int, int] | None]:
        return [each if each is None else (id(each), each._version) for each in self._buffers.values()]


def _held(value: Any) -> Any:
    """The same values in containers of their own. Tensors stay the live ones: what averages weights has many."""
    if isinstance(value, dict):
        return {key: _held(item) for key, item in value.items()}
    return [_held(item) for item in value] if isinstance(value, list) else value


def _is_early(kind: type) -> bool:
    return _overrides(kind, "state_dict") and any(_overrides(kind, name) for name in _EARLY)


def _overrides(kind: type, name: str) -> bool:
    return any(
        name in vars(base) for base in kind.__mro__ if base.__name__ not in ("Callback", "CallbackBehaviour")
    )


def _rates_of(trainer: Any) -> list[Any]:
    rates = [group.get("lr") for optimizer in trainer.optimizers for group in optimizer.param_groups]
    counts = [getattr(config.scheduler, "last_epoch", None) for config in trainer.lr_scheduler_configs]
    return [*rates, *counts]
