"""What the tests of the Trainer adapter share: its script, killed or in this process, and its model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from words import WORDS, Masked, model_of, sentences

from contract.training import Ended, Training

torch.set_num_threads(1)

PRELOAD = (
    "accelerate",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "ckpt_transformers",
)
PEFT_ASKS = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
"""PEFT asks transformers a question by a name that transformers has since deprecated."""
SCRIPT = Path(__file__).with_name("train_text.py")


class Pair:
    """A training that is never killed, and the same one in a folder of its own, to be killed."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.reference: Ended = training(folder / "reference", options).complete()
        self.job = training(folder / "killed", options)


def training(folder: Path, options: dict[str, Any]) -> Training:
    """The script with options, as a process, as often as one likes."""
    return Training(SCRIPT, folder, options, PRELOAD)


def plain_trainer(folder: Path, callbacks: list[Any], *, model: Any = None, **options: Any) -> Trainer:
    """A Trainer in this process, stock but for its callbacks: 12 updates of one batch in two epochs."""
    settings = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "num_train_epochs": 2, "seed": 3,
        "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
        "remove_unused_columns": False, "learning_rate": 3e-3,
    }  # fmt: skip
    rows = [{"ids": row} for row in sentences(30)]
    more = {name: options.pop(name) for name in ("processing_class", "compute_metrics") if name in options}
    return Trainer(
        model=new_model() if model is None else model, args=TrainingArguments(**(settings | options)),
        train_dataset=rows[:24], eval_dataset=rows[24:], data_collator=hidden, callbacks=callbacks, **more,
    )  # fmt: skip


def new_model(**options: Any) -> Any:
    return model_of(**options)


def hidden(samples: list[Any]) -> dict[str, Any]:
    """Hides the same words always."""
    batch = Masked(own=False, deterministic=True)([{**each, "index": 0, "fixed": False} for each in samples])
    return {name: each for name, each in batch.items() if name != "index"}


def tokenizer() -> PreTrainedTokenizerFast:
    """Of the words that the model knows, by number."""
    words = {"[PAD]": 0, "[MASK]": 1} | {f"w{number}": number for number in range(2, WORDS)}
    model = Tokenizer(WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=model, mask_token="[MASK]", pad_token="[PAD]")
