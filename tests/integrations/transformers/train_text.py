"""A Trainer that learns words of the standard library's own text, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ckpt_core import BaseHook, CheckpointManager, HookContext, HookEvent
from ckpt_torch import capture_rng
from ckpt_transformers import CheckpointCallback
from contract.training import Report, digest

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "experiment": "words", "resume": "auto", "resume_data": "auto", "args": {},
    "samples": 44, "workers": 0, "persistent": False, "accumulate": 2, "epochs": 2.0, "stop": 0, "callback": {},
    "die": {}, "spoil": "none", "peft": False, "dataset": "map", "own_rng": False, "handler": "none", "second": None,
    "native": None, "norm": False, "deterministic": False, "train": None,
}  # fmt: skip
WORDS, LENGTH, MASK = 200, 12, 1


def sentences(count: int) -> list[list[int]]:
    """Words as small numbers, in rows of `LENGTH`: tokenised simply."""
    words = re.findall(r"[a-z]+", inspect.getsource(textwrap).lower())
    numbers = {word: 2 + index % (WORDS - 2) for index, word in enumerate(dict.fromkeys(words))}
    ids = [numbers[word] for word in words]
    return [ids[start : start + LENGTH] for start in range(0, count * LENGTH, LENGTH)]


class Sentences(Dataset[Any]):
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return {"ids": self.rows[index], "index": index}


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        for index in torch.randperm(len(self.rows)).tolist():
            yield {"ids": self.rows[index], "index": index}


class Masked:
    """Hides random words, which are to be found again. Draws from the global generator, or from its own."""

    def __init__(self, own: bool, deterministic: bool) -> None:
        self.generator = torch.Generator().manual_seed(5) if own else None
        self.deterministic = deterministic

    def __call__(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([sample["ids"] for sample in samples])
        hidden = (
            torch.rand(ids.shape, generator=self.generator) < 0.3 if not self.deterministic else ids % 3 == 0
        )
        return {
            "input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100),
            "index": torch.tensor([sample["index"] for sample in samples]),
        }  # fmt: skip


class Reporting(Trainer):
    """Tells what it trains on."""

    report: Report
    die: dict[str, Any]
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
            os.kill(os.getpid(), signal.SIGKILL)
        lr = self.lr_scheduler.get_last_lr()
        self.report.add("step", at=list(self.micro), indices=indices, loss=loss.item(), lr=lr)
        return loss

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        inputs.pop("index")
        return super().prediction_step(model, inputs, *rest, **more)

    def evaluate(self, *args: Any, **more: Any) -> Any:
        if self.die.get("evaluation") == self.state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(*args, **more)


class Watching(TrainerCallback):
    """Dies at an event; tells how the training began."""

    def __init__(self, report: Report, die: dict[str, Any], ours: CheckpointCallback | None) -> None:
        self.report, self.die, self.ours = report, die, ours

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        how = self.ours.resumption if self.ours is not None else None
        self.report.add("begin", how=how.kind if how else "?", step=state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.die.get("epoch_end") == state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.die.get("epoch_begin") == state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)


class Kill(BaseHook):
    """Ends the process as soon as a save of this step or of a later one is acknowledged."""

    events = (HookEvent.AFTER_SAVE,)

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def execute(self, context: HookContext) -> None:
        if context.step is not None and context.step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_save(syncs: int) -> None:
    """Between two writes of a save: when something is made durable for the so manieth time."""
    original, left = os.fsync, [syncs]

    def fsync(file: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(file)

    os.fsync = fsync


def model_of(options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.2,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    if options["norm"]:
        model.bert.encoder.layer[0].output.LayerNorm = Normed(32)
    if options["peft"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1))
    return model


class Normed(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(size)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norm(values.transpose(1, 2)).transpose(1, 2)


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    report, die = Report(options["report"]), options["die"]
    torch.set_num_threads(1)
    if options["handler"] == "exit":
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(3))

    rows = sentences(options["samples"] + 12)
    kind = Sentences if options["dataset"] == "map" else Stream
    args = TrainingArguments(
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
            **options["args"],
        }
    )
    ours: CheckpointCallback | None = None
    callbacks: list[Any] = []
    if options["native"] is None:
        hooks = [Kill(die["saved"])] if "saved" in die else []
        ours = CheckpointCallback(
            options["store"], experiment=options["experiment"], resume=options["resume"], hooks=hooks,
            resume_data=options["resume_data"], **options["callback"],
        )  # fmt: skip
        callbacks.append(ours)
        if options["second"] is not None:
            callbacks.append(CheckpointCallback(options["store"], **options["second"]))
    if options["stop"]:
        callbacks.insert(0, EarlyStoppingCallback(options["stop"], 0.3))
    callbacks.append(Watching(report, die, ours))
    trainer = Reporting(
        model=model_of(options), args=args, train_dataset=kind(rows[:-12]), eval_dataset=Sentences(rows[-12:]),
        data_collator=Masked(options["own_rng"], options["deterministic"]), callbacks=callbacks,
    )  # fmt: skip
    trainer.report, trainer.die = report, die
    spoil(options["spoil"], ours)
    if "fsync" in die:
        die_in_a_save(die["fsync"])
    result = trainer.train(resume_from_checkpoint=options["native"] or options["train"])

    times = re.compile("runtime|per_second")
    logs = [{k: v for k, v in each.items() if not times.search(k)} for each in trainer.state.log_history]
    stopping = [each.state() for each in callbacks if isinstance(each, EarlyStoppingCallback)]
    report.add(
        "end", weights=digest(trainer.model.state_dict()), optimizer=digest(trainer.optimizer.state_dict()),
        schedule=digest(trainer.lr_scheduler.state_dict()), rng=digest(capture_rng()), logs=logs,
        step=trainer.state.global_step, epoch=trainer.state.epoch, flos=trainer.state.total_flos,
        best=[trainer.state.best_metric, trainer.state.best_global_step], stopping=stopping,
        loss=result.training_loss,
    )  # fmt: skip
    report.add("folders", names=sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*")))
    if ours is not None:
        with CheckpointManager(options["store"], experiment=options["experiment"]) as manager:
            report.add("saved", steps=[each.step for each in manager.checkpoints()])


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
