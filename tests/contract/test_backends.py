"""The backends of the core keep the contract."""

from __future__ import annotations

from ckpt_core.backends import StorageBackend
from ckpt_core.backends.native import NativeBackend
from ckpt_core.backends.npz import NpzBackend
from ckpt_core.backends.tensors import SafetensorsBackend
from ckpt_core.testing import BackendContract


class TestSafetensors(BackendContract):
    def make_backend(self) -> StorageBackend:
        return SafetensorsBackend()


class Shards(SafetensorsBackend):
    suffix = ""


class TestShards(BackendContract):
    def make_backend(self) -> StorageBackend:
        return Shards(shard_bytes=1000)


class TestNpz(BackendContract):
    def make_backend(self) -> StorageBackend:
        return NpzBackend()


class TestNative(BackendContract):
    repeatable = False  # it says when it was made

    def make_backend(self) -> StorageBackend:
        return NativeBackend()
