"""MLflow, against a real server of it: runs, external models with their metrics, and artifacts by `ckpt://`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from urllib.parse import quote

import ml_dtypes
import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from ckpt_core import CheckpointManager, EverySteps, Session, UsageError
from ckpt_links import MLflowLink
from ckpt_links.places import place_of, split_place

SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a database of its own, on a port that is free."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | quiet, cwd=folder, start_new_session=True
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(SECONDS * 5):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    with urllib.request.urlopen(f"{url}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail((folder / "log").read_text())
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def tracked(server):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def train(store, link, experiment="x", losses=(0.5, 0.2, 0.9), resume=None):
    with CheckpointManager(
        store, experiment=experiment, metric="loss", hooks=[link], save_policy=EverySteps(1)
    ) as manager:
        session = Session(manager, signals=())
        begun = session.resume(resume).step
        session.begin(begun)
        for step, loss in enumerate(losses, begun + 1):
            session.step_end(step)
            session.evaluate_end(step, metrics={"loss": loss})
            session.safe_point(
                step,
                0,
                lambda step=step: {"w": np.full(100, step, ml_dtypes.bfloat16), "lr": 0.1},
                finished=step == begun + len(losses),
            )
        session.finish(begun + len(losses), 0, dict)  # what was saved as finished is not saved again
        return [(found, place_of(manager, found)) for found in manager.checkpoints()]


def test_checkpoints_are_external_models_with_their_metrics(tracked, store_path):
    made = train(store_path, MLflowLink(params={"lr": 0.1, "name": "adam"}))
    experiment = tracked.get_experiment_by_name("x")
    [run] = tracked.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "name": "adam"}
    assert run.data.tags["ckpt.lineage"] == made[0][0].attempt.lineage
    history = tracked.get_metric_history(run.info.run_id, "loss")
    assert {(found.step, found.value) for found in history} == {(1, 0.5), (2, 0.2), (3, 0.9)}
    models = tracked.search_logged_models([experiment.experiment_id])
    models = {model.name: model for model in models}
    assert set(models) == {"x-step-1", "x-step-2", "x-step-3"}
    for checkpoint, place in made:
        model = models[f"x-step-{checkpoint.step}"]
        assert model.source_run_id == run.info.run_id
        assert model.model_type == "checkpoint"
        assert (model.tags["ckpt.uri"], model.tags["ckpt.digest"]) == (place, checkpoint.digest)
        assert model.tags["mlflow.model.isExternal"] == "true"
        assert {(m.key, m.value, m.step) for m in model.metrics} == {
            ("loss", checkpoint.metrics["loss"], checkpoint.step)
        }
        assert ("ckpt.best" in model.tags) is (checkpoint.step == 2)


def test_one_of_a_lineage_is_the_best_after_a_resume_too(tracked, store_path):
    train(store_path, MLflowLink(), experiment="again", losses=(0.5, 0.4))
    train(store_path, MLflowLink(), experiment="again", losses=(0.6, 0.3), resume="auto")
    train(store_path, MLflowLink(), experiment="again", losses=(0.9,))  # begins anew
    experiment = tracked.get_experiment_by_name("again").experiment_id
    models = tracked.search_logged_models([experiment])
    best = {(model.name, model.metrics[0].value) for model in models if "ckpt.best" in model.tags}
    assert best == {("again-step-4", 0.3), ("again-step-1", 0.9)}


@pytest.fixture
def handler():
    """Sets the handler of SIGUSR1 for one test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


def preempted(store, experiment, after=2, goes_on=None):
    """A training that gets the signal in the course of a step; what the handler raises ends it."""
    with CheckpointManager(store, experiment=experiment, hooks=[MLflowLink()]) as manager:
        session = Session(manager, signals=(signal.SIGUSR1,))
        step = begun = session.resume("auto").step
        try:
            session.begin(begun)
            for step in range(begun + 1, begun + after + 1):
                session.step_end(step)
                session.evaluate_end(step, metrics={"loss": 1 / step})
                if step == begun + after:
                    os.kill(os.getpid(), signal.SIGUSR1)
                session.safe_point(step, 0, lambda step=step: {"step": step})
            if goes_on is not None:
                goes_on(session, step)
        except BaseException as error:
            session.fail(error, step, 0)
            raise
        finally:
            session.close()


def of(tracked, experiment):
    found = tracked.get_experiment_by_name(experiment).experiment_id
    return [(run.info.run_id, run.info.status) for run in tracked.search_runs([found])]


@pytest.mark.parametrize("raised", [SystemExit(0), KeyboardInterrupt(), RuntimeError("preempted")])
def test_a_preemption_kills_a_run_however_it_ends_and_a_resume_goes_on_in_it(
    tracked, store_path, handler, raised
):
    def end(number, frame):
        raise raised

    name = f"cut off by {type(raised).__name__}"
    handler(end)
    for _ in range(2):
        with pytest.raises(type(raised)):
            preempted(store_path, name)
        [(run, status)] = of(tracked, name)
        assert status == "KILLED"
    made = train(store_path, MLflowLink(), experiment=name, losses=(0.5,), resume="auto")
    assert of(tracked, name) == [(run, "FINISHED")]
    history = tracked.get_metric_history(run, "loss")
    assert {found.step for found in history} == {1, 2, 3, 4, 5}
    assert tracked.get_run(run).data.tags["ckpt.attempt"] == made[-1][0].attempt.id
    train(store_path, MLflowLink(), experiment=name, losses=(0.5,), resume="step=2")  # from before its end
    assert len(of(tracked, name)) == 2


def test_a_run_goes_on_where_the_handler_lets_training_go_on(tracked, store_path, handler):
    def fail(session, step):
        session.evaluate_end(step, metrics={"loss": 0.5})
        assert session.manager.hooks.drain(SECONDS)
        assert [status for _, status in of(tracked, "goes on")] == ["RUNNING"]
        raise ValueError("another matter")

    handler(lambda number, frame: None)
    with pytest.raises(ValueError, match="another matter"):
        preempted(store_path, "goes on", goes_on=fail)
    assert [status for _, status in of(tracked, "goes on")] == ["FAILED"]


def test_a_run_of_ones_own_is_used_and_left_open(tracked, store_path):
    experiment = tracked.create_experiment("mine")
    run = tracked.create_run(experiment).info.run_id
    train(store_path, MLflowLink(run_id=run), experiment="y", losses=(0.5,))
    assert tracked.get_run(run).info.status == "RUNNING"
    [model] = tracked.search_logged_models([experiment])
    assert model.source_run_id == run
    assert tracked.get_experiment_by_name("y") is None


def test_what_a_model_points_to_can_be_listed_and_downloaded(tracked, store_path, tmp_path):
    [(checkpoint, place)] = train(store_path, MLflowLink(), experiment="a b%20c", losses=(0.5,))
    listed = {found.path: found.file_size for found in mlflow.artifacts.list_artifacts(artifact_uri=place)}
    assert listed == {f"{checkpoint.id}/state.json": None, f"{checkpoint.id}/tensors.safetensors": 200}
    folder = mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(tmp_path / "there"))
    with open(f"{folder}/state.json") as file:
        assert json.load(file)["lr"] == 0.1
    with open(f"{folder}/tensors.safetensors", "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["w"] == {"dtype": "BF16", "shape": [100], "data_offsets": [0, 200]}
    assert data[8 + length :] == np.full(100, 1, ml_dtypes.bfloat16).tobytes()
    assert header["__metadata__"]["ckpt.checkpoint"] == checkpoint.id
    latest = place.rpartition("/")[0] + "/latest"
    assert len(mlflow.artifacts.list_artifacts(artifact_uri=latest)) == 2


@pytest.mark.parametrize("rest", ["/no-such-checkpoint", "", "/latest/more.json"])
def test_an_address_of_nothing_is_an_error_of_mlflows(tracked, store_path, tmp_path, rest):
    [(_, place)] = train(store_path, MLflowLink(), experiment="z", losses=(0.5,))
    with pytest.raises(MlflowException, match="ckpt://"):
        mlflow.artifacts.download_artifacts(
            artifact_uri=place.rpartition("/")[0] + rest, dst_path=str(tmp_path / "x")
        )


def test_to_look_for_a_store_begins_none_and_sets_no_hook_to_work(tracked, tmp_path, monkeypatch):
    (tmp_path / "ckpt.toml").write_text('[[hooks]]\nuse = "no-such-hook"\n')
    monkeypatch.chdir(tmp_path)
    address = f"ckpt://{quote(str(tmp_path / 'nowhere'), safe='')}/x/latest"
    with pytest.raises(MlflowException, match="there is no checkpoint store"):
        mlflow.artifacts.list_artifacts(artifact_uri=address)
    assert [found.name for found in tmp_path.iterdir()] == ["ckpt.toml"]


def test_nothing_is_written_by_way_of_mlflow(tracked, store_path, tmp_path):
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository("ckpt://memory%3A%2F%2Fx/x/latest")
    for write in (repository.log_artifact, repository.log_artifacts, repository.delete_artifacts):
        with pytest.raises(MlflowException, match="can only be read"):
            write(str(tmp_path))


@pytest.mark.parametrize("address", ["file:///x/y/z", "ckpt://x/y", "ckpt://x//z", "ckpt://a/b/c/d"])
def test_an_address_has_three_parts(address):
    with pytest.raises(UsageError, match="no address of a checkpoint"):
        split_place(address)


def test_a_server_that_is_away_touches_neither_training_nor_saves(tracked, store_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes calls, and never answers
        mlflow.set_tracking_uri(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        begun = time.monotonic()
        made = train(store_path, MLflowLink(timeout=1.0))
        assert time.monotonic() - begun < 60
    assert [checkpoint.step for checkpoint, _ in made] == [1, 2, 3]
    assert "hook MLflowLink ran past its time limit" in caplog.text
