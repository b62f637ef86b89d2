"""Train, kill in the middle of an epoch, resume, and compare with a training that was never killed.

    python examples/demo.py        (or: make demo)

Everything happens in the folder `demo-run` beside `examples`, which is made anew each time. The exit code is
0 only if both trainings ended with the same bits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ckpt_core import CheckpointManager

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "demo-run"
TRAINING = HERE / "lightning_digits.py"
EXPERIMENT = "digits"
EPOCHS = 4
PATIENCE = 300.0
"""Seconds after which a training that does not move is given up."""

PARTS = {
    "weights": "state_dict/",
    "optimizer state": "optimizer_states/",
    "learning rate schedule": "lr_schedulers/",
    "everything else": "",
}
"""What is compared, and the branch of the checkpoint where it stands: the first that fits, so every leaf of a
checkpoint is in one of them. The last has random states, loops, and the position in the data."""


class Failure(Exception):
    """The demo cannot go on; the message says why."""


class Content(NamedTuple):
    """What a checkpoint holds, as far as it is compared: for each part the number of entries and a digest."""

    step: int
    parts: dict[str, tuple[int, str]]


def main() -> int:
    say("ckpt-core: a training that is killed and resumed ends with the same bits as one that was not.")
    say("The training: Lightning, a network with BatchNorm and dropout, scikit-learn's digits, shuffled.")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    whole, killed = FOLDER / "uninterrupted", FOLDER / "killed"

    heading(1, "Train without interruption")
    seconds = run_to_the_end(whole)
    expected = newest(whole)
    tell(f"Done in {seconds:.0f} s: {EPOCHS} epochs, {expected.step} steps.")

    heading(2, "The same training in another store, killed in the middle of an epoch")
    kill_in_mid_epoch(killed, per_epoch=expected.step // EPOCHS)
    before = newest(killed)

    heading(3, "The same command again")
    seconds = run_to_the_end(killed)
    resumed = newest(killed)
    tell(f"Done in {seconds:.0f} s: it went on from step {before.step} to step {resumed.step}.")

    heading(4, "Compare the two results, bit for bit")
    identical = compare(expected, resumed, before)

    heading(5, "What lies in the store of the killed training")
    ckpt("ls", killed)

    heading(6, "Check every byte of it")
    healthy = ckpt("verify", killed)

    say("")
    if identical and healthy:
        say("VERDICT: identical. The killed and resumed training ended with exactly the same bits.")
        return 0
    found = "`ckpt verify` found damage" if identical else "NOT identical: they ended differently"
    say(f"VERDICT: {found}. The logs are in {FOLDER}.")
    return 1


# -- training -----------------------------------------------------------------------------------------


def start(store: Path) -> subprocess.Popen[bytes]:
    """The training as a process of its own. What it prints goes to a file beside its store."""
    shown = [f"examples/{TRAINING.name}", "--store", f"demo-run/{store.name}", "--epochs", str(EPOCHS)]
    tell(f"$ python {' '.join(shown)}")
    command = [sys.executable, str(TRAINING), "--store", str(store), "--epochs", str(EPOCHS)]
    with log_of(store).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment())


def run_to_the_end(store: Path) -> float:
    """Trains until it is done; returns the seconds it took."""
    began = time.monotonic()
    said = log_of(store).stat().st_size if log_of(store).exists() else 0
    with start(store) as training:
        try:
            code = training.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            training.kill()
            raise Failure(f"the training did not end within {PATIENCE:.0f} s") from None
    for line in log_of(store).read_bytes()[said:].decode(errors="replace").splitlines():
        if "resumed from checkpoint" in line or "fresh start" in line:
            tell(f"  it says: {line.strip()}")
    if code != 0:
        raise Failure(f"the training failed with exit code {code}")
    return time.monotonic() - began


def kill_in_mid_epoch(store: Path, per_epoch: int) -> None:
    """Waits until a checkpoint in the midst of the second epoch is durable, and kills the process at once."""
    target = per_epoch + per_epoch * 2 // 5
    for _ in range(3):
        with start(store) as training:
            try:
                seen = wait_for_checkpoint(training, store, target)
            finally:
                training.kill()  # SIGKILL: nothing in that process runs after this
        last = max(durable_steps(store))
        if last % per_epoch and training.returncode == -signal.SIGKILL:
            tell(
                f"  SIGKILL as soon as step {seen} is durable; the process is gone (status {-signal.SIGKILL})"
            )
            tell(
                f"  its last checkpoint is step {last}: {last % per_epoch} steps into an epoch of {per_epoch}"
            )
            return
        tell("  It was quicker than this demo and stood between two epochs: once more.")
        shutil.rmtree(store)
    raise Failure("the training could not be caught in the middle of an epoch")


def wait_for_checkpoint(training: subprocess.Popen[bytes], store: Path, target: int) -> int:
    """The step of the first durable checkpoint at `target` or beyond."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        reached = [step for step in durable_steps(store) if step >= target]
        if reached:
            return max(reached)
        if training.poll() is not None:
            raise Failure(f"the training ended by itself, with exit code {training.returncode}")
        time.sleep(0.002)
    raise Failure(f"the training did not come to step {target} within {PATIENCE:.0f} s")


def durable_steps(store: Path) -> list[int]:
    """Steps of all checkpoints: a manifest gets its name when everything is durable (docs/format.md)."""
    manifests = (store / "checkpoints" / EXPERIMENT).glob("[0-9]*.json")
    return [int(path.name.partition("-")[0]) for path in manifests]


# -- comparing ----------------------------------------------------------------------------------------


def newest(store: Path) -> Content:
    """Digests of all that the newest checkpoint holds: of every tensor its path, dtype, shape and bytes."""
    with CheckpointManager(store, experiment=EXPERIMENT) as manager:
        checkpoint = manager.resolve("latest")
        counts, digests = Counter[str](), {name: hashlib.sha256() for name in [*PARTS, "metrics"]}
        with manager.open("latest", framework="numpy") as reader:
            tensors = reader.tensors()
            for path in sorted(reader):
                name = next(name for name, branch in PARTS.items() if path.startswith(branch))
                counts[name] += 1
                if path in tensors:
                    array = np.asarray(tensors[path])
                    digests[name].update(f"{path} {array.dtype} {array.shape} ".encode() + array.tobytes())
                else:
                    digests[name].update(f"{path} {reader[path]!r} ".encode())
        counts["metrics"] = len(checkpoint.metrics)
        digests["metrics"].update(repr(sorted(checkpoint.metrics.items())).encode())
    parts = {name: (counts[name], each.hexdigest()) for name, each in digests.items()}
    return Content(checkpoint.step, parts)


def compare(expected: Content, resumed: Content, before: Content) -> bool:
    """Prints the digests side by side; whether all are equal."""
    tell(f"  {'SHA-256 of the':<24}{'entries':>7}   {'uninterrupted':<18}killed, resumed")
    identical = expected.step == resumed.step
    for name, (count, digest) in expected.parts.items():
        other = resumed.parts[name][1]
        equal = digest == other and count > 0
        identical = identical and equal
        tell(f"  {name:<24}{count:>7}   {digest[:16]:<18}{other[:16]:<18}{'equal' if equal else 'DIFFERENT'}")
    # The digests can tell trainings apart: those of the weights from which it was resumed are others.
    count, then = before.parts["weights"]
    moved = then != resumed.parts["weights"][1]
    remark = "(other, as it should be)" if moved else "THE SAME: nothing was trained"
    tell(f"  {'weights at the kill':<24}{count:>7}   {'':<18}{then[:16]:<18}{remark}")
    return identical and moved


# -- the command --------------------------------------------------------------------------------------


def ckpt(command: str, store: Path) -> bool:
    """Runs `ckpt` on a store and shows what it prints; whether it succeeded."""
    tell(f"$ ckpt {command} --store demo-run/{store.name}")
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_core", command, "--store", str(store)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=environment(),
    )  # fmt: skip
    for line in done.stdout.rstrip().splitlines():
        tell(f"  {line}")
    return done.returncode == 0


# -- surroundings -------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """That of this process without settings of `ckpt`, and with one thread, which for so small a network is
    faster than several."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPT_")}
    return {"OMP_NUM_THREADS": "1", **kept, "PYTHONUNBUFFERED": "1"}


def log_of(store: Path) -> Path:
    return FOLDER / f"{store.name}.log"


def heading(number: int, title: str) -> None:
    say(f"\n{number}. {title}")


def tell(text: str) -> None:
    """A line below a heading."""
    say(f"   {text}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        say(f"\nVERDICT: the demo could not be completed: {failure}.\nThe logs are in {FOLDER}.")
        sys.exit(1)
