"""Stock Trainers with data as people give it, ended by an exception and gone on with in a new Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_case import new_model, tokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments
from words import sentences

from ckpt_core import CheckpointManager
from ckpt_torch import capture_rng
from ckpt_transformers import CheckpointCallback
from contract.training import digest


class Ending(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("on purpose")


class Handing(Trainer):
    """Gives a loader of its own, as people do who know better."""

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.train_dataset, 4, shuffle=True, collate_fn=self.data_collator)


def fresh_model() -> Any:
    return new_model()  # Trainer calls only what takes no argument, or one


def train(
    folder: Path, *, end: int | None = None, kind: Any = Trainer, seed: int | None = None, **options: Any
) -> dict[str, Any]:
    """One training, as far as it goes; what it is like at its end."""
    settings = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "num_train_epochs": 2, "seed": 3,
        "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    rows = [{"input_ids": row, "more": index} for index, row in enumerate(sentences(30))]
    trainer = kind(
        model_init=fresh_model, args=TrainingArguments(**(settings | options)), train_dataset=rows[:24],
        eval_dataset=rows[24:], data_collator=DataCollatorForLanguageModeling(tokenizer(), seed=seed),
        callbacks=[CheckpointCallback(folder / "store", experiment="words"), Ending(end)],
    )  # fmt: skip
    if end is None:
        trainer.train()
    else:
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.train()
    logs = [
        {name: value for name, value in each.items() if "runtime" not in name and "per_second" not in name}
        for each in trainer.state.log_history
    ]
    return {
        "weights": digest(trainer.model.state_dict()), "rng": digest(capture_rng()), "logs": logs,
        "optimizer": digest(trainer.optimizer.state_dict()), "step": trainer.state.global_step,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 7},
        {"seed": 7, "dataloader_num_workers": 2},
        {"kind": Handing, "remove_unused_columns": False},
        {"auto_find_batch_size": True},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=[
        "as it comes",
        "seeded collator",
        "seeded, workers",
        "a loader of one's own",
        "found batch size",
        "lengths",
    ],
)
def test_what_was_ended_goes_on_as_if_it_had_not_been(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "ended", end=5, **options)
    with CheckpointManager(tmp_path / "ended" / "store", experiment="words") as manager:
        newest = manager.latest()
        assert newest is not None
        assert newest.step == 5
    assert train(tmp_path / "ended", **options) == whole
