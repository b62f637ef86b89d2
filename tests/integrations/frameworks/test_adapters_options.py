"""What a manager can be told, every adapter can be told, and passes it on."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import ckpt_jax
import ckpt_keras
import ckpt_lightning
import ckpt_torch
import ckpt_transformers
from ckpt_core import CheckpointManager, UsageError
from ckpt_core.opening import ManagerOptions

KEY = Ed25519PrivateKey.generate()
OPTIONS: dict[str, Any] = {
    "catalog": "sqlite://", "backend": "npz", "hooks_file": False, "max_pending": 3, "on_busy": "skip", "staged_bytes": 1 << 20, "save_threads": 1,
    "chunk_bytes": 1 << 16, "digest": "blake3", "compression": "zstd", "parity": 10,
    "mirror": "memory://mirror-of-adapters", "exclusive": True, "on_save_error": "raise",
    "config": {"lr": 0.1}, "flush_seconds": 5.0,
    "signing_key": KEY, "trusted_keys": [KEY.public_key()],
}  # fmt: skip


@contextmanager
def callback(made: Any) -> Iterator[CheckpointManager]:
    with made.manager as manager:
        yield manager


@contextmanager
def torch_loop(made: Any) -> Iterator[CheckpointManager]:
    yield made.manager
    made.finish()


@contextmanager
def jax_loop(made: Any) -> Iterator[CheckpointManager]:
    with made:
        yield made.manager


ADAPTERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "torch": (ckpt_torch.TorchCheckpointer, torch_loop),
    "lightning": (ckpt_lightning.CheckpointCallback, callback),
    "transformers": (ckpt_transformers.CheckpointCallback, callback),
    "keras": (ckpt_keras.CheckpointCallback, callback),
    "jax": (ckpt_jax.JaxCheckpointer, jax_loop),
}


@pytest.mark.parametrize(("adapter", "opened"), ADAPTERS.values(), ids=ADAPTERS)
def test_every_option_of_a_manager_reaches_it(
    adapter: Any, opened: Callable[[Any], Any], store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OPTIONS.keys() == ManagerOptions.__annotations__.keys()
    given: list[dict[str, Any]] = []
    original = CheckpointManager.__init__

    def init(self: Any, root: Any, **options: Any) -> None:
        given.append(options)
        original(self, root, **options)

    # Not the signature: that is what unknown names are told by.
    init.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(CheckpointManager, "__init__", init)
    with opened(adapter(store_path, experiment="x", **OPTIONS)) as manager:
        document = manager.workspace.repository.document
        assert (document.chunk_bytes, document.digest) == (OPTIONS["chunk_bytes"], OPTIONS["digest"])
        assert {name: given[0].get(name) for name in OPTIONS} == OPTIONS


@pytest.mark.parametrize("adapter", [each for each, _ in ADAPTERS.values()], ids=ADAPTERS)
def test_a_name_that_means_nothing_is_refused(adapter: Any, store_path: Path) -> None:
    with pytest.raises(UsageError, match="staged_byte"):
        adapter(store_path, experiment="x", staged_byte=1)
    assert not store_path.exists()
