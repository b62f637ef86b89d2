"""Eight real processes on one store in a folder: nothing acknowledged is lost, nothing is left after a prune.

`make histories` lets them work for a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.pipeline.workspace import Workspace
from stateful.hammer import EXPERIMENTS, KEEP, PROCESSES, opened, state_of

SECONDS = 60 * float(os.environ.get("CKPT_TEST_MINUTES", "0.12"))
SEED = os.environ.get("CKPT_TEST_SEED", "20261125")


@pytest.mark.timeout(SECONDS + 300)
def test_eight_processes_on_one_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hammer.py")), str(root), str(SECONDS), SEED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert done.returncode == 0, done.stderr
    lives = int(done.stdout)
    assert lives > PROCESSES, "nobody was killed"
    stories = [story(tmp_path / f"said-{who}") for who in range(1, lives + 1)]
    did = Counter(line[0] for lines in stories for line in lines)
    did["packs deleted"] = sum(int(line[1]) for lines in stories for line in lines if line[0] == "prune")
    print(f"{lives} processes in {SECONDS:.0f} s: {dict(did)}")
    assert not did["bad"], [" ".join(line) for lines in stories for line in lines if line[0] == "bad"]
    assert min(did[what] for what in ("save", "read", "forget", "prune", "packs deleted", "done")) > 0
    look_at_what_is_there(root, stories)
    clear_up(root)


def story(path: Path) -> list[list[str]]:
    """What a process said: nothing, if it was killed at birth. The last line may be cut short."""
    said = path.read_text() if path.exists() else ""
    return [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]


def look_at_what_is_there(root: Path, stories: list[list[list[str]]]) -> None:
    standing: dict[str, tuple[int, int]] = {}
    for experiment in EXPERIMENTS:
        with opened(str(root), experiment) as manager:
            found = manager.checkpoints()
            assert found == manager.workspace.index.standing(experiment), "the catalog is not in line"
            for checkpoint in found:
                state = manager.load(checkpoint.id, fallback=False)
                standing[checkpoint.id] = (state["who"], state["step"])
                assert (state["w"] == state_of(*standing[checkpoint.id])["w"]).all()
    for who, lines in enumerate(stories, 1):
        saved = [(line[1], int(line[2])) for line in lines if line[0] == "save"]
        forgotten: set[str] = set()
        for line in lines:
            if line[0] == "forget":
                forgotten.add(line[1])
            elif line[0] == "undelete":
                forgotten.discard(line[1])
        if ["in", "kept-short"] in lines:  # one more may be committed, and count, than was acknowledged
            saved = saved[-(KEEP - 1) :]
        for checkpoint, step in saved:
            if checkpoint not in forgotten:
                assert standing.get(checkpoint) == (who, step), f"{checkpoint} of process {who} is lost"


def clear_up(root: Path) -> None:
    workspace = Workspace.open(root)
    repository = workspace.repository
    try:
        for _ in range(3):
            execute_prune(repository, plan_prune(repository, orphan_seconds=-1, now=True))
        assert workspace.verify().ok
        assert plan_prune(repository, orphan_seconds=-1, now=True).empty
        for folder in ("leases", "trash"):
            assert list(repository.store.list(folder)) == [], f"something is left in {folder}"
        needed: set[str] = set()
        for found in repository.manifest_keys():
            names = {pack.name for pack in repository.read(found.key).manifest.packs}
            while names:
                needed |= names
                documents = [repository.forward(name) for name in names]
                names = {row.pack for each in documents if each for row in each.rows} - needed
        assert {name for name, _ in packs_in(repository)} <= needed, "a pack is left that nothing names"
    finally:
        workspace.close()
