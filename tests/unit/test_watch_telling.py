"""Events told to others: a real server, real commands, a log, a second store. Secrets stay secret, training goes on."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import sys
import threading
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ckpt_core import (
    BaseHook,
    CheckpointManager,
    CkptError,
    HookContext,
    HookEvent,
    HookManager,
    HookPriority,
    UsageError,
)
from ckpt_core.watch import EventLog, RunCommand, UploadCheckpoints, Webhook

SECRET = "s3cr3t"
FAILED = HookContext(
    HookEvent.SAVE_FAILED,
    experiment="x",
    step=7,
    metrics={"loss": float("nan"), "accuracy": 0.5},
    error=OSError("no room"),
    data={"count": 3, "object": object()},
)


class Server(http.server.ThreadingHTTPServer):
    """Keeps what was posted to it, and answers as it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.posted, self.status, self.goes_on = [], 200, threading.Event()
        self.goes_on.set()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, dict(self.headers), body))
        self.server.goes_on.wait(10)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Told(BaseHook):
    """Another hook of the same queue."""

    priority = HookPriority.BACKGROUND

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def execute(self, context):
        self.steps.append(context.step)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.goes_on.set()
        server.shutdown()
        thread.join()


def url(server, path=f"/hooks/{SECRET}"):
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_an_event_is_posted_as_json(server):
    Webhook(url(server), headers={"Authorization": SECRET}).execute(FAILED)
    [(path, headers, body)] = server.posted
    assert path == f"/hooks/{SECRET}"
    assert headers["Authorization"] == SECRET
    assert headers["Content-Type"] == "application/json"
    facts = json.loads(body)
    assert facts.pop("at").endswith("Z")
    assert facts == {
        "event": "save_failed",
        "experiment": "x",
        "step": 7,
        "metrics": {"loss": "nan", "accuracy": 0.5},
        "error": {"type": "OSError", "message": "no room"},
        "data": {"count": 3},
        "text": "x save failed at step 7: accuracy 0.5, loss nan: OSError: no room",
    }


@pytest.mark.parametrize("status", [302, 403, 500])
def test_a_server_that_refuses_is_a_failure_without_its_secrets(server, caplog, status):
    server.status = status
    hook = Webhook(url(server, f"/hooks/{SECRET}?token={SECRET}"), headers={"Authorization": SECRET})
    manager = HookManager([hook])
    manager.fire(FAILED)
    assert manager.close(10)
    assert manager.statistics()["Webhook"].failures == 1
    assert f"127.0.0.1:{server.server_port} was not told of SAVE_FAILED: it answered {status}" in caplog.text
    assert SECRET not in caplog.text + repr(hook)
    assert len(server.posted) == 1  # a redirect was not followed


def test_a_server_that_is_away_or_never_answers_is_a_failure_too(server):
    server.goes_on.clear()
    with pytest.raises(CkptError, match="could not be reached") as caught:
        Webhook(url(server), seconds=0.05).execute(FAILED)
    assert SECRET not in str(caught.value)
    port = server.server_port
    server.goes_on.set()
    with pytest.raises(CkptError, match=r"could not be reached \(URLError\)"):
        Webhook(f"https://127.0.0.1:{port}/", seconds=5).execute(FAILED)  # it speaks no TLS


def test_an_answer_that_is_no_http_is_a_failure_too():
    with socket.create_server(("127.0.0.1", 0)) as nonsense:

        def answer():
            connection, _ = nonsense.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"220 mail.example.org\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CkptError, match="could not be reached"):
            Webhook(f"http://127.0.0.1:{nonsense.getsockname()[1]}/", seconds=30).execute(FAILED)
        thread.join()


def test_an_answer_that_comes_byte_by_byte_does_not_hold_the_others_up():
    over, told = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def answer():
            connection, _ = slow.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")
                connection.sendall(b"\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        hook = Webhook(f"http://127.0.0.1:{slow.getsockname()[1]}/", seconds=0.2)
        manager = HookManager([hook])
        manager.register_hook(Told(told), HookEvent.SAVE_FAILED)
        try:
            manager.fire(FAILED)
            assert manager.close(8)
        finally:
            over.set()
            thread.join()
    assert told == [FAILED.step]
    assert manager.statistics()["Webhook"].timeouts == 1


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@example.org/", f"http://127.0.0.1:1/a {SECRET}"])
def test_an_address_that_cannot_be_used_stays_secret(url):
    with pytest.raises(CkptError, match="could not be reached") as caught:
        Webhook(url).execute(FAILED)
    assert SECRET not in str(caught.value)


def test_a_dead_server_touches_neither_training_nor_saves(server, store_path):
    server.goes_on.clear()
    hook = Webhook(url(server), events=(HookEvent.AFTER_SAVE, HookEvent.NEW_BEST), seconds=30)
    begun = time.monotonic()
    with CheckpointManager(store_path, experiment="x", hooks=[hook]) as manager:
        for step in range(3):
            manager.save({"w": np.ones(3)}, step=step).result()
        assert time.monotonic() - begun < 25
        server.goes_on.set()
    assert len(server.posted) == 3


def test_a_command_gets_the_event_on_its_standard_input(tmp_path):
    target = tmp_path / "told $HOME; *.json"
    script = "import os, sys; open(sys.argv[1], 'w').write(sys.stdin.read() + os.environ['TOKEN'])"
    RunCommand([sys.executable, "-c", script, str(target)], environment={"TOKEN": SECRET}).execute(FAILED)
    written = target.read_text()
    assert written.endswith(SECRET)
    assert json.loads(written.removesuffix(SECRET))["event"] == "save_failed"


def test_a_command_that_fails_is_a_failure_without_its_secrets(caplog):
    hook = RunCommand(
        [sys.executable, "-c", "import sys; print(sys.argv); sys.exit(3)", SECRET], environment={"T": SECRET}
    )
    manager = HookManager([hook])
    manager.fire(FAILED)
    assert manager.close(30)
    assert "ended with status 3" in caplog.text
    assert SECRET not in caplog.text + repr(hook)
    with pytest.raises(CkptError, match="no-such-program cannot be started: FileNotFoundError"):
        RunCommand(["/nowhere/no-such-program", SECRET]).execute(FAILED)


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path):
    pid = tmp_path / "pid"
    script = f"sleep 60 & echo $! > '{pid}'; wait"
    begun = time.monotonic()
    with pytest.raises(CkptError, match="sh was killed: it had not ended after 0.5 s"):
        RunCommand(["/bin/sh", "-c", script], seconds=0.5).execute(FAILED)
    assert time.monotonic() - begun < 40
    child = int(pid.read_text())
    for _ in range(200):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().split()[2] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail("what the command started lives on")


def test_what_a_command_leaves_behind_lives_on(tmp_path):
    gate, done = tmp_path / "gate", tmp_path / "done"
    script = f"(while [ ! -e '{gate}' ]; do sleep 0.05; done; mkdir '{done}') &"
    RunCommand(["/bin/sh", "-c", script]).execute(FAILED)
    gate.mkdir()
    for _ in range(600):
        if done.exists():
            return
        time.sleep(0.05)
    pytest.fail("what the command left running is gone")


def test_a_command_that_does_not_read_is_no_error():
    RunCommand(["true"]).execute(FAILED)


def test_events_are_lines_of_a_file(tmp_path, store_path):
    path = tmp_path / "events.jsonl"
    with CheckpointManager(store_path, experiment="x", hooks=[EventLog(path)], metric="loss") as manager:
        manager.save({"w": np.ones(3)}, step=1, metrics={"loss": 0.5}, reason="asked").result()
        manager.wait()
        manager.load("latest")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "before_save",
        "after_save",
        "new_best",
        "before_load",
        "after_load",
    ]
    saved = lines[1]
    assert (saved["step"], saved["reason"], saved["metrics"]) == (1, "asked", {"loss": 0.5})
    assert saved["checkpoint"]["logical_bytes"] == 24
    assert saved["attempt"]["number"] == 1


def test_events_are_records_of_the_log(caplog):
    caplog.set_level(logging.DEBUG, "ckpt_core.events")
    EventLog(level="DEBUG").execute(FAILED)
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "DEBUG",
        "x save failed at step 7: accuracy 0.5, loss nan: OSError: no room",
    )
    assert record.ckpt["error"]["type"] == "OSError"


def test_a_text_from_elsewhere_stays_on_its_line(caplog):
    caplog.set_level(logging.INFO, "ckpt_core.events")
    EventLog().execute(HookContext(HookEvent.TRAIN_FAILED, error=ValueError("one\ntwo")))
    assert caplog.records[0].getMessage() == "training train failed: ValueError: one two"


def test_the_best_is_uploaded_and_stays_there(store_path, tmp_path):
    place = tmp_path / "archive"
    hooks = [UploadCheckpoints(str(place))]
    with CheckpointManager(store_path, experiment="x", metric="loss", hooks=hooks) as manager:
        state = {"w": np.arange(1000.0), "b": np.zeros(3)}
        for step, loss in enumerate([0.5, 0.9, 0.4]):
            manager.save({**state, "b": np.full(3, step)}, step=step, metrics={"loss": loss}).result()
        manager.wait()
        manager.forget("step=0", grace=0)
        manager.prune()
    with CheckpointManager(place, experiment="x", metric="loss") as archive:
        assert [found.step for found in archive.checkpoints()] == [0, 2]
        assert archive.load("best")["b"].tolist() == [2, 2, 2]
        assert archive.verify().ok


def test_what_is_signed_is_signed_there_too(store_path, tmp_path):
    key = Ed25519PrivateKey.generate()
    hook = UploadCheckpoints(str(tmp_path / "archive"))
    with CheckpointManager(
        store_path, experiment="x", metric="loss", hooks=[hook], signing_key=key
    ) as manager:
        manager.save({"w": np.ones(3)}, step=1, metrics={"loss": 0.5})
    (public := tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with CheckpointManager(tmp_path / "archive", experiment="x", trusted_keys=public) as archive:
        assert archive.load("latest")["w"].tolist() == [1, 1, 1]


def test_one_hook_for_one_manager_after_the_other_uploads_from_the_store_of_each(
    store_path, tmp_path, caplog
):
    place = tmp_path / "archive"
    hook = UploadCheckpoints(str(place), events=HookEvent.AFTER_SAVE)
    for root in (store_path, tmp_path / "another"):
        with CheckpointManager(root, experiment="x", hooks=[hook]) as manager:
            manager.save({"w": np.ones(3)}, step=1)
    assert "choose an empty place" in caplog.text
    with CheckpointManager(place, experiment="x") as archive:
        assert len(archive.checkpoints()) == 1


def test_other_events_upload_others_and_a_lost_place_is_no_failed_save(store_path, tmp_path, caplog):
    place = tmp_path / "archive"
    hook = UploadCheckpoints(
        str(place), events=HookEvent.AFTER_SAVE, condition=lambda context: context.step % 2
    )
    with CheckpointManager(store_path, experiment="x", hooks=[hook]) as manager:
        manager.save({"w": np.ones(3)}, step=1).result()
        manager.save({"w": np.ones(4)}, step=2).result()
        manager.wait()
        for file in sorted(place.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        place.rmdir()
        place.write_text("a file in its way")
        manager.save({"w": np.ones(5)}, step=3).result()
        manager.wait()
        assert len(manager.checkpoints()) == 3
        assert not manager.failures
    assert "hook UploadCheckpoints raised" in caplog.text


def test_a_place_of_another_store_is_not_touched(store_path, tmp_path, caplog):
    place = tmp_path / "other"
    with CheckpointManager(place, experiment="y") as other:
        other.save({"w": np.ones(3)}, step=1).result()
    hook = UploadCheckpoints(str(place), events=HookEvent.AFTER_SAVE)
    with CheckpointManager(store_path, experiment="x", hooks=[hook]) as manager:
        manager.save({"w": np.ones(3)}, step=1).result()
    assert "choose an empty place" in caplog.text
    with CheckpointManager(place, experiment="x") as other:
        assert other.checkpoints() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Webhook("ftp://example.org"),
        lambda: Webhook("example.org/hook"),
        lambda: Webhook("http://[broken"),
        lambda: Webhook("https://example.org", seconds=0),
        lambda: RunCommand("rm -rf x"),
        lambda: RunCommand([]),
        lambda: RunCommand(["true"], seconds=float("inf")),
        lambda: EventLog(level="LOUD"),
        lambda: UploadCheckpoints(""),
    ],
)
def test_options_that_mean_nothing_are_refused_without_telling_them(make):
    with pytest.raises(UsageError) as caught:
        make()
    assert "example.org" not in str(caught.value)
