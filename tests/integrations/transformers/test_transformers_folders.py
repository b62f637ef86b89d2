"""Checkpoints as folders that stock transformers reads, and Trainer's own folders as checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer_case import PEFT_ASKS, new_model, plain_trainer, tokenizer, training
from transformers import AutoModelForMaskedLM, TrainerState, pipeline
from words import sentences

from ckpt_core import CheckpointManager, UsageError
from ckpt_transformers import CheckpointCallback, ingest, materialize
from contract.training import digest

# Trainer itself is exact only where nothing is drawn at random while data is fetched.
STOCK = {"deterministic": True, "args": {"logging_steps": 2}}
SAME = ("weights", "optimizer", "schedule", "rng", "step", "epoch", "flos", "best")


def opened(folder: Path, experiment: str = "words") -> CheckpointManager:
    return CheckpointManager(folder / "store", experiment=experiment, metric="eval_loss")


def logs_of(end: dict[str, Any]) -> list[Any]:
    return [each for each in end["logs"] if "train_loss" not in each]


def test_a_folder_is_resumed_by_stock_trainer_and_a_folder_of_trainers_by_us(tmp_path: Path) -> None:
    ours = training(tmp_path / "ours", STOCK).complete().only("end")
    with opened(tmp_path / "ours", "digits") as manager:
        folder = materialize(manager, "step=4", tmp_path / "checkpoint-4")
    stock = training(tmp_path / "stock", STOCK).complete(native=str(folder)).only("end")
    assert {name: stock[name] for name in SAME} == {name: ours[name] for name in SAME}
    assert logs_of(stock) == logs_of(ours)

    written = tmp_path / "stock" / "out" / "checkpoint-8"
    with opened(tmp_path / "theirs", "digits") as manager:
        checkpoint = ingest(manager, written)
    assert checkpoint.step == 8
    assert "eval_loss" in checkpoint.metrics
    end = training(tmp_path / "theirs", STOCK).complete().only("end")
    assert {name: end[name] for name in SAME} == {name: ours[name] for name in SAME}
    assert logs_of(end) == logs_of(ours)
    told = training(tmp_path / "told", STOCK).complete(train=str(written)).only("end")
    assert {name: told[name] for name in SAME} == {name: ours[name] for name in SAME}


def test_a_folder_is_what_stock_transformers_reads(tmp_path: Path) -> None:
    trainer = plain_trainer(
        tmp_path, [CheckpointCallback(tmp_path / "store", experiment="words")], processing_class=tokenizer(),
        num_train_epochs=1,
    )  # fmt: skip
    trainer.train()
    with opened(tmp_path) as manager:
        folder = materialize(manager, "latest", tmp_path / "made" / "folder")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert digest(model.state_dict()) == digest(trainer.model.state_dict())
    assert pipeline("fill-mask", model=str(folder))("w4 [MASK] w6")[0]["token_str"].startswith("w")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "optimizer.pt",
        "trainer_state.json",
    } <= names
    assert {"training_args.bin", "scheduler.pt", "rng_state.pth"} <= names
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    assert "TrainerControl" in state.stateful_callbacks
    trainer.save_model(str(tmp_path / "stock"))
    theirs, mine = (
        load_file(tmp_path / "stock" / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert theirs.keys() == mine.keys()
    assert json.loads((tmp_path / "stock" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    with opened(tmp_path) as manager, pytest.raises(UsageError, match="is there already"):
        materialize(manager, "latest", folder)


@pytest.mark.filterwarnings(PEFT_ASKS)
def test_adapters_as_a_folder_of_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    ours = CheckpointCallback(tmp_path / "store", experiment="words")
    trainer = plain_trainer(tmp_path, [ours], model=new_model(peft=True), num_train_epochs=1)
    trainer.train()
    with opened(tmp_path) as manager:
        folder = materialize(manager, "latest", tmp_path / "folder")
        assert not (folder / "model.safetensors").exists()
        loaded = PeftModel.from_pretrained(new_model(), folder)
        trainer.model.eval(), loaded.eval()
        batch = {"input_ids": torch.tensor([sentences(1)[0]])}
        assert torch.equal(loaded(**batch).logits, trainer.model(**batch).logits)
        again = ingest(manager, folder)
        assert again.step == 6
    other = CheckpointCallback(tmp_path / "store", experiment="words")
    evaluated = plain_trainer(tmp_path, [other], model=new_model(peft=True))
    assert other.load(again.id).ok
    assert digest(evaluated.model.state_dict()) == digest(trainer.model.state_dict())
    other.manager.close()


def test_trainer_saves_and_each_folder_goes_into_the_store(tmp_path: Path) -> None:
    ours = CheckpointCallback(tmp_path / "store", experiment="words", ingest=True)
    trainer = plain_trainer(tmp_path, [ours], save_total_limit=2, load_best_model_at_end=True)
    trainer.train()
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["checkpoint-10", "checkpoint-12"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-12")
    with opened(tmp_path) as manager:
        assert [each.step for each in manager.checkpoints()] == [2, 4, 6, 8, 10, 12]
        folder = materialize(manager, "step=10", tmp_path / "folder")
        before = {each.step: each.written_bytes for each in manager.checkpoints()}
        repeated = ingest(manager, tmp_path / "out" / "checkpoint-12")
        assert repeated.written_bytes < before[12] / 10
        assert manager.verify().ok
    theirs = tmp_path / "out" / "checkpoint-10"
    assert {path.name for path in theirs.iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("model.safetensors", "config.json", "training_args.bin"):
        assert (folder / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in ("optimizer.pt", "scheduler.pt"):
        assert digest(torch.load(folder / name)) == digest(torch.load(theirs / name)), name


def test_a_folder_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    plain_trainer(tmp_path, [], max_steps=2).train()
    folder = tmp_path / "out" / "checkpoint-2"
    kept = {
        name: (folder / name).read_bytes()
        for name in ("optimizer.pt", "model.safetensors", "trainer_state.json")
    }
    with opened(tmp_path) as manager:
        for name, content in kept.items():
            (folder / name).unlink()
            with pytest.raises(UsageError, match=f"lacks {name}") as caught:
                ingest(manager, folder)
            assert caught.value.kind == "incomplete"
            (folder / name).write_bytes(content[: len(content) // 2])
            with pytest.raises(UsageError, match="is damaged"):
                ingest(manager, folder)
            (folder / name).write_bytes(content)
        (folder / "rng_state_0.pth").write_bytes(b"")
        with pytest.raises(UsageError, match="several processes"):
            ingest(manager, folder)
        (folder / "rng_state_0.pth").unlink()
        assert ingest(manager, folder).step == 2


def test_a_checkpoint_of_something_else_is_not_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as manager:
        manager.save({"model": {"weight": torch.ones(2)}}, step=1, wait=True)
        with pytest.raises(UsageError, match="not saved by Trainer"):
            materialize(manager, "latest", tmp_path / "folder")
        files = {"../outside.txt": b"x"}
        manager.save({"model": {"weight": torch.ones(2)}, "files": files}, step=2, wait=True)
        with pytest.raises(UsageError, match="outside of its folder"):
            materialize(manager, "latest", tmp_path / "folder")
        assert not (tmp_path / "outside.txt").exists()
        assert not (tmp_path / "folder").exists()


def test_nothing_is_said_in_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("transformers").setLevel(logging.WARNING)
    plain_trainer(tmp_path, [CheckpointCallback(tmp_path / "store", experiment="words")], max_steps=2).train()
    assert "Writing model shards" not in capsys.readouterr().err
