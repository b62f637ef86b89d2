"""The tests that Orbax ships for its own handlers, run with ours in their place; where one fails, with the stock ones.

What fails for the stock handlers here (by way of the machine, or of Orbax itself) may fail for ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("chex")

V0 = """
from absl.testing import absltest
import orbax.checkpoint as ocp
from orbax.checkpoint._src.checkpointers import async_checkpointer, checkpointer, checkpointer_test_utils

class {name}(checkpointer_test_utils.CheckpointerTestBase.Test):
    def setUp(self):
        super().setUp()
        self.watch = watching(self)

    def checkpointer(self, handler, **options):
        return {kind}(self.watch(handler), **options)
"""
V1 = """
from absl.testing import absltest
import orbax.checkpoint.experimental.v1 as ocp
from orbax.checkpoint.experimental.v1._src.training import checkpointer_test_base

class {name}(checkpointer_test_base.CheckpointerTestBase.Test):
    def setUp(self):
        super().setUp()
        self.enter_context(watching(self))
"""
COUNTING = """
import atexit
from ckpt_core import HookEvent, hook
from ckpt_jax import OrbaxHandler

heard = []
atexit.register(lambda: print("heard", len(heard)))

def watch_of(test):
    count = hook(HookEvent.AFTER_STAGE, HookEvent.AFTER_LOAD)(lambda context: heard.append(context.event))
    return test.enter_context(
        OrbaxHandler(test.create_tempdir("ledger").full_path, experiment="orbax", hooks=[count])
    )
"""
WATCHED = {
    "v0": COUNTING
    + """
def watching(test):
    watch = watch_of(test)
    return lambda handler: (
        watch.handler(type(handler)) if type(handler) is ocp.PyTreeCheckpointHandler else handler
    )
""",
    # Not `with watch.context()`: inside of any other context, Orbax forgets those that some of its tests enter.
    "v1": COUNTING
    + """
from unittest import mock
from orbax.checkpoint.experimental.v1._src.handlers import registration

def watching(test):
    ours = watch_of(test).context().checkpointables.registry
    return mock.patch.object(registration, "_GLOBAL_REGISTRY", ours)
""",
}
STOCK = {
    "v0": "\ndef watching(test):\n    return lambda handler: handler\n",
    "v1": "\nimport contextlib\ndef watching(test):\n    return contextlib.nullcontext()\n",
}
SUITES = {
    "v0-async": V0.format(name="Suite", kind="async_checkpointer.AsyncCheckpointer"),
    "v0-sync": V0.format(name="Suite", kind="checkpointer.Checkpointer"),
    "v1": V1.format(name="Suite"),
}
MAIN = '\nif __name__ == "__main__":\n    absltest.main()\n'


def outcomes(suite: str, watching: str, folder: Path) -> tuple[set[str], set[str], int]:
    """The names of the tests that passed, of those that did not, and how many items were watched over."""
    program = folder / "suite.py"
    program.write_text(SUITES[suite] + watching + MAIN)
    done = subprocess.run(
        [sys.executable, program, "--verbosity=-2", f"--test_tmpdir={folder}", "--", "-v"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    passed = set(re.findall(r"^\[ +OK +\] (\S+)", done.stdout, re.M))
    failed = set(re.findall(r"^(?:ERROR|FAIL): (.+)", done.stdout, re.M))
    assert passed, done.stdout
    return passed, failed, sum(map(int, re.findall(r"^heard (\d+)$", done.stdout, re.M)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", SUITES)
def test_orbax_own_tests_pass_unless_they_fail_with_the_stock_handler(suite: str, tmp_path: Path) -> None:
    version = suite[:2]
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    passed, failed, watched = outcomes(suite, WATCHED[version], tmp_path / "ours")
    assert len(passed) + len(failed) >= 20
    if failed:  # they may with Orbax's own handler, too
        _, failed_stock, _ = outcomes(suite, STOCK[version], tmp_path / "theirs")
        assert failed <= failed_stock
    assert watched > 10, "it was not our handler that was tested"
