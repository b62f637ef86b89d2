"""TensorBoard: hyperparameters and scalars in an event file. Needs its package, and neither TensorFlow nor PyTorch.

Source of what the plugin for hyperparameters reads: `tensorboard/plugins/hparams/metadata.py` and `plugin_data.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ckpt_core import HookContext, HookEvent
from ckpt_core.hooks import HookOptions
from ckpt_links.link import Link, Saves, require

__all__ = ["TensorBoardLink"]

_REMEMBERED = 10_000
"""Scalars that are not told twice."""

_ENDS = {HookEvent.TRAIN_END: "STATUS_SUCCESS", HookEvent.TRAIN_FAILED: "STATUS_FAILURE"}


class TensorBoardLink(Link):
    """Writes metrics, and what saves cost, for TensorBoard: `tensorboard --logdir runs`.

    `folder`: that of the run, as `runs/digits-1`. `hparams`: numbers, texts and booleans, for its table of
    hyperparameters. After a resume, what an earlier attempt wrote from that step on is hidden. The scalars are the
    metrics of training events and saves by their names, and `ckpt/save_seconds`, `ckpt/written_bytes`,
    `ckpt/logical_bytes` and `ckpt/best_step`. Raises MissingExtraError.
    """

    events = (
        HookEvent.TRAIN_BEGIN,
        HookEvent.STEP_END,
        HookEvent.EVALUATE_END,
        HookEvent.EPOCH_END,
        HookEvent.BEFORE_SAVE,
        HookEvent.AFTER_SAVE,
        HookEvent.NEW_BEST,
        HookEvent.TRAIN_END,
        HookEvent.TRAIN_FAILED,
    )

    def __init__(
        self,
        folder: Path,
        *,
        hparams: Mapping[str, bool | float | str] | None = None,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        self.folder = Path(folder)
        self.hparams = dict(hparams or {})
        self._events = require("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._summary = require("tensorboard.compat.proto.summary_pb2", "tensorboard")
        self._files = require("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._metadata = require("tensorboard.plugins.hparams.metadata", "tensorboard")
        self._plugin = require("tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard")
        self._api = require("tensorboard.plugins.hparams.api_pb2", "tensorboard")
        self._saves = Saves()
        self._writer: Any = None
        self._told: dict[tuple[str, int], float] = {}

    def condition(self, context: HookContext) -> bool:
        """Steps without metrics have nothing to tell."""
        return context.event is not HookEvent.STEP_END or bool(context.metrics)

    def execute(self, context: HookContext) -> None:
        if context.event is HookEvent.BEFORE_SAVE:
            self._saves.begin(context)
            return
        if self._writer is None:
            self._writer = self._files.EventFileWriter(str(self.folder))
        if context.event is HookEvent.TRAIN_BEGIN:
            self._begin(context)
        values = self._news_of(context)
        if values:
            summary = [
                self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
            ]
            self._add(context, summary=self._summary.Summary(value=summary))
        if context.event in _ENDS:
            end = self._plugin.SessionEndInfo(
                status=getattr(self._api, _ENDS[context.event]), end_time_secs=context.at.timestamp()
            )
            self._tell_hparams(context, self._metadata.SESSION_END_INFO_TAG, session_end_info=end)
        if context.event is not HookEvent.STEP_END:
            self._writer.flush()

    def detach(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _news_of(self, context: HookContext) -> dict[str, float]:
        """Scalars that were not told for this step: a save bears the metrics of an evaluation once more."""
        step = context.step or 0
        values = dict(context.metrics)
        if context.event is HookEvent.AFTER_SAVE and context.checkpoint is not None:
            values["ckpt/logical_bytes"] = context.checkpoint.logical_bytes
            values["ckpt/written_bytes"] = context.checkpoint.written_bytes
            begun = self._saves.end(context)
            if begun is not None:
                values["ckpt/save_seconds"] = Saves.between(begun, context)
        if context.event is HookEvent.NEW_BEST:
            values["ckpt/best_step"] = step
        news = {tag: value for tag, value in values.items() if self._told.get((tag, step)) != value}
        self._told |= {(tag, step): value for tag, value in news.items()}
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return news

    def _begin(self, context: HookContext) -> None:
        if context.step:  # TensorBoard hides what this run had written after it: that is done anew
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._writer.add_event(
                self._events.Event(wall_time=context.at.timestamp(), step=context.step + 1, session_log=start)
            )
        if self.hparams:
            begin = self._plugin.SessionStartInfo(start_time_secs=context.at.timestamp())
            for name, value in self.hparams.items():
                if isinstance(value, bool):
                    begin.hparams[name].bool_value = value
                elif isinstance(value, (int, float)):
                    begin.hparams[name].number_value = value
                else:
                    begin.hparams[name].string_value = str(value)
            self._tell_hparams(context, self._metadata.SESSION_START_INFO_TAG, session_start_info=begin)

    def _tell_hparams(self, context: HookContext, tag: str, **info: Any) -> None:
        content = self._plugin.HParamsPluginData(version=self._metadata.PLUGIN_DATA_VERSION, **info)
        plugin = self._summary.SummaryMetadata.PluginData(
            plugin_name=self._metadata.PLUGIN_NAME, content=content.SerializeToString()
        )
        value = self._summary.Summary.Value(
            tag=tag,
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=self._metadata.NULL_TENSOR,
        )
        self._add(context, summary=self._summary.Summary(value=[value]))

    def _add(self, context: HookContext, **what: Any) -> None:
        self._writer.add_event(
            self._events.Event(wall_time=context.at.timestamp(), step=context.step or 0, **what)
        )
