"""A Trainer that learns words of the standard library's own text, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from words import WORDS, Masked, Sentences, Stream, model_of, sentences

from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_torch import capture_rng
from ckpt_transformers import CheckpointCallback, load_weights
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "experiment": "digits", "resume": "auto", "resume_data": "auto", "args": {},
    "samples": 44, "workers": 0, "persistent": False, "accumulate": 2, "epochs": 2.0, "stop": None, "callback": {},
    "die": {}, "spoil": "none", "peft": False, "dataset": "map", "own_rng": False, "handler": "none", "second": None,
    "native": None, "norm": False, "deterministic": False, "train": None, "scaled": False, "task": "train",
    "init_from": None, "fault": None, "on_save_error": "report", "mechanism": "ours", "augment": False,
}  # fmt: skip
TIMES = re.compile("runtime|per_second")


class Reporting(Trainer):
    """Tells what it trains on, and dies in the midst of what it does."""

    report: Report
    die: dict[str, Any]
    ours: CheckpointCallback | None
    micro = (-1, 0)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        step = self.state.global_step
        self.micro = (step, self.micro[1] + 1 if self.micro[0] == step else 0)
        indices = inputs.pop("index").tolist()
        if self.die.get("raise") == step:
            raise RuntimeError("on purpose")
        if self.die.get("signal", [None])[0] == step and self.micro[1] == 0:
            os.kill(os.getpid(), getattr(signal, self.die["signal"][1]))
        loss = super().training_step(model, inputs, *rest, **more)
        if self.die.get("step") == step:
            self.killed()
        lr = self.lr_scheduler.get_last_lr()
        self.report.add("step", at=list(self.micro), indices=indices, loss=loss.item(), lr=lr)
        return loss

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        inputs.pop("index")
        return super().prediction_step(model, inputs, *rest, **more)

    def evaluate(self, *args: Any, **more: Any) -> Any:
        if self.die.get("evaluation") == self.state.global_step:
            kill()
        return super().evaluate(*args, **more)

    def _save_optimizer_and_scheduler(self, folder: Any) -> None:
        if self.die.get("folder") == self.state.global_step:
            kill()
        super()._save_optimizer_and_scheduler(folder)

    def killed(self) -> None:
        if self.die.get("settled") and self.ours is not None:  # then it is known from which save it goes on
            self.ours.manager.wait()
        kill()


class Watching(TrainerCallback):
    """Dies at an event; tells how the training began."""

    def __init__(self, report: Report, die: dict[str, Any], ours: CheckpointCallback | None) -> None:
        self.report, self.die, self.ours = report, die, ours

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        how = self.ours.resumption if self.ours is not None else None
        self.report.add("begin", how=how.kind if how else "?", step=state.global_step)
        self.report.add("started", weights=digest(model.state_dict()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.die.get("made") == state.global_step:
            kill()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.die.get("epoch_end") == state.global_step:
            kill()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.die.get("epoch_begin") == state.global_step:
            kill()


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    log_to_output()
    torch.set_num_threads(1)
    if options["handler"] == "exit":
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(3))
    report = Report(options["report"])
    {"train": train, "evaluate": evaluate, "changed": changed}[options["task"]](options, report)


def arguments_of(options: dict[str, Any]) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(Path(options["store"]).with_name("out")),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "num_train_epochs": options["epochs"],
            "logging_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "seed": 3,
            "gradient_accumulation_steps": options["accumulate"],
            "load_best_model_at_end": bool(options["stop"]),
            "metric_for_best_model": "loss",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
            "remove_unused_columns": False,
            "dataloader_num_workers": options["workers"],
            "dataloader_persistent_workers": options["persistent"],
            "restore_callback_states_from_checkpoint": options["mechanism"] == "native",
            **options["args"],
        }
    )


def trainer_of(options: dict[str, Any], report: Report) -> Reporting:
    die, ours = options["die"], None
    callbacks: list[Any] = []
    if options["mechanism"] == "ours" and options["native"] is None:
        ours = CheckpointCallback(
            store_of(options), experiment=options["experiment"], resume=options["resume"], hooks=hooks_of(options),
            resume_data=options["resume_data"], init_from=options["init_from"],
            on_save_error=options["on_save_error"], **options["callback"],
        )  # fmt: skip
        callbacks.append(ours)
        if options["second"] is not None:
            callbacks.append(CheckpointCallback(options["store"], **options["second"]))
    if options["stop"]:
        callbacks.insert(0, EarlyStoppingCallback(*options["stop"]))
    callbacks.append(Watching(report, die, ours))
    rows = sentences(options["samples"] + 12)
    kind = Sentences if options["dataset"] == "map" else Stream
    trainer = Reporting(
        model=model_of(norm=options["norm"], peft=options["peft"]), args=arguments_of(options), callbacks=callbacks,
        train_dataset=kind(rows[:-12], augment=options["augment"]), eval_dataset=Sentences(rows[-12:], fixed=True),
        data_collator=Masked(options["own_rng"], options["deterministic"]),
    )  # fmt: skip
    trainer.report, trainer.die, trainer.ours = report, die, ours
    if options["scaled"]:  # as fp16 has it, which wants another device
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    spoil(options["spoil"], ours)
    return trainer


def train(options: dict[str, Any], report: Report) -> None:
    trainer = trainer_of(options, report)
    folder = options["native"] or options["train"]
    if options["mechanism"] == "native" and os.path.isdir(trainer.args.output_dir):
        folder = get_last_checkpoint(trainer.args.output_dir)
    result = trainer.train(resume_from_checkpoint=folder)

    logs = [{k: v for k, v in each.items() if not TIMES.search(k)} for each in trainer.state.log_history]
    stopping = [
        each.state() for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)
    ]
    report.add(
        "end", weights=digest(trainer.model.state_dict()), optimizer=digest(trainer.optimizer.state_dict()),
        schedule=digest(trainer.lr_scheduler.state_dict()), rng=digest(capture_rng()), logs=logs,
        step=trainer.state.global_step, epoch=trainer.state.epoch, flos=trainer.state.total_flos,
        best=[trainer.state.best_metric, trainer.state.best_global_step], stopping=stopping,
        loss=result.training_loss, scaler=trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict(),
    )  # fmt: skip
    report.add(
        "folders", names=sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))
    )
    if trainer.ours is not None:
        with CheckpointManager(options["store"], experiment=options["experiment"]) as manager:
            points = [point for point in series_of(manager) if not TIMES.search(point[0])]
            report.add("series", points=points)


def evaluate(options: dict[str, Any], report: Report) -> None:
    trainer = trainer_of(options, report)
    assert trainer.ours is not None
    trainer.ours.load("best")
    value = trainer.evaluate()["eval_loss"]
    report.add("evaluated", weights=digest(trainer.model.state_dict()), value=value)


def changed(options: dict[str, Any], report: Report) -> None:
    """Another head, for more words than before and tied to none; and the encoder is called otherwise."""
    model = model_of(vocab_size=WORDS + 3, tie_word_embeddings=False)
    model.encoder, model.bert = model.bert, None
    with CheckpointManager(options["store"], experiment=options["experiment"]) as manager:
        try:
            load_weights(model, manager, "latest")
        except StateMismatchError as error:
            report.add("refused", paths=error.paths)
        fitted = load_weights(model, manager, "latest", strict=False, renames={"bert": "encoder"})
    parts = ("loaded", "missing", "unexpected", "misshapen", "left_out")
    report.add("fitted", **{part: getattr(fitted, part) for part in parts})


def spoil(what: str, ours: Any) -> None:
    """Break one thing that a resume restores: what is compared afterwards must show it."""
    if what in ("none", "nothing"):
        return
    begin = ours.participant.begin

    def spoiled(*given: Any) -> Any:
        begun = begin(*given)
        state = begun.state
        if state is not None:
            if what == "optimizer":
                for each in state["optimizer"]["state"].values():
                    each["exp_avg"].zero_()
            elif what == "rng":
                state["rng"]["torch"] = capture_rng()["torch"]
            elif what == "data":
                state["data"] = None
            elif what == "sums":
                state.pop("sums")
            elif what == "callbacks":
                state["trainer"]["callbacks"] = []
            elif what == "logs":
                state["trainer"]["log_history"] = b""
            elif what == "weights":
                next(iter(state["model"].values())).add_(1e-3)
            elif what == "scheduler":
                state["scheduler"]["last_epoch"] -= 1
        return begun

    ours.participant.begin = spoiled


if __name__ == "__main__":
    main()
