"""What every test shares: how Hypothesis searches, a place for a store. Nothing of one area lives here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What several suites share tells as much of a failed assertion as a test does.
for part in ("", "_case", "_checkpoints", "_copies", "_history", "_migrations", "_plans", "_queries"):
    pytest.register_assert_rewrite(f"contract.catalog{part}")

# A test gives the same answer on every machine and every day; `HYPOTHESIS_PROFILE=explore` goes looking for
# new examples. No deadline: two busy cores say nothing about an example.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "explore",
    max_examples=2_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a test may put its local store. Nothing is there yet."""
    return tmp_path / "store"
