"""Keras with the backend that KERAS_BACKEND names, JAX if none: set before anything imports it.

The processes that tests start are forked off a server that has imported Keras, and take all this from here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# What JAX compiles once serves all processes: the same machine code, and a third of the time.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
for name, value in {
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}.items():
    os.environ.setdefault(name, value)
sys.path.insert(0, str(Path(__file__).parent))  # what the tests share lies beside them
