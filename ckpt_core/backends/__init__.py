"""Storage backends: how a state becomes files at a path. The engine does all that is to be done with the files."""

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.finding import GROUP, as_backend, find_backend, guess_backend, installed_backends
from ckpt_core.backends.parts import put_together, take_apart

__all__ = [
    "GROUP",
    "StorageBackend",
    "as_backend",
    "find_backend",
    "guess_backend",
    "installed_backends",
    "put_together",
    "take_apart",
]
