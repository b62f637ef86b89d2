"""Words of the standard library's own text as data for the tests, and a small model that learns them."""

from __future__ import annotations

import inspect
import random
import re
import textwrap
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import BertConfig, BertForMaskedLM

WORDS, LENGTH, MASK = 200, 12, 1


def sentences(count: int) -> list[list[int]]:
    """Words as small numbers, in rows of `LENGTH`: tokenised simply."""
    words = re.findall(r"[a-z]+", inspect.getsource(textwrap).lower())
    numbers = {word: 2 + index % (WORDS - 2) for index, word in enumerate(dict.fromkeys(words))}
    ids = [numbers[word] for word in words]
    return [ids[start : start + LENGTH] for start in range(0, count * LENGTH, LENGTH)]


class Sentences(Dataset[Any]):
    """Rows of words. With `augment`, two neighbours change places at random."""

    def __init__(self, rows: list[list[int]], *, fixed: bool = False, augment: bool = False) -> None:
        self.rows, self.fixed, self.augment = rows, fixed, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = list(self.rows[index])
        if self.augment:
            place = random.randrange(LENGTH - 1)
            row[place], row[place + 1] = row[place + 1], row[place]
        return {"ids": row, "index": index, "fixed": self.fixed}


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[list[int]], **_: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        for index in torch.randperm(len(self.rows)).tolist():
            yield {"ids": self.rows[index], "index": index, "fixed": False}


class Masked:
    """Hides random words, which are to be found again. Draws from the global generator, or from its own.

    Of fixed samples, those of evaluations, the same ones always; it draws for them all the same.
    """

    def __init__(self, own: bool, deterministic: bool) -> None:
        self.generator = torch.Generator().manual_seed(5) if own else None
        self.deterministic = deterministic

    def __call__(self, samples: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([sample["ids"] for sample in samples])
        hidden = ids % 3 == 0
        if not self.deterministic:
            drawn = torch.rand(ids.shape, generator=self.generator) < 0.3
            hidden = hidden if samples[0]["fixed"] else drawn
        return {
            "input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100),
            "index": torch.tensor([sample["index"] for sample in samples]),
        }  # fmt: skip


def model_of(*, norm: bool = False, peft: bool = False, rank: int = 2, **config: Any) -> Any:
    """The same one always. With `norm`, it has buffers that training changes."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.2,
    }  # fmt: skip
    model = BertForMaskedLM(BertConfig(**sizes | config))
    if norm:
        model.bert.encoder.layer[0].output.LayerNorm = Normed(32)
    if peft:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=rank, target_modules=["query", "value"], lora_dropout=0.1))
    return model


class Normed(torch.nn.Module):
    """Its buffers are changed by training, and one of them is not in its `state_dict`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(size)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return self.norm(values.transpose(1, 2)).transpose(1, 2) * (1 + self.seen / 1000)
