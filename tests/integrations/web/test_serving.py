"""The real server: what a socket gets, what is kept of the token, what the command says; and what Schemathesis finds."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import schemathesis
from fastapi import APIRouter
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi import checks

from ckpt_core import CheckpointManager, CkptError, UsageError, Workspace
from ckpt_core.web import serving as serving_module
from ckpt_core.web.app import create_app
from ckpt_core.web.patience import PatientProtocol
from ckpt_core.web.serving import Server, token_file
from contract.web_case import NAME, TOKEN, state

NOT_OURS = [checks.positive_data_acceptance]
"""No schema can say which texts are a cursor, or the name of what is there."""


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    with running(workspace) as server:
        yield server


@contextmanager
def running(workspace: Workspace, **options: Any) -> Iterator[Server]:
    server = Server(workspace, token=TOKEN, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(60)
    assert not thread.is_alive()


def ask(server: Server, path: str, **headers: str) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}"} | headers
    return urllib.request.urlopen(
        urllib.request.Request(f"{server.address}{path}", headers=headers), timeout=60
    )


def test_over_a_socket(server: Server, newest: str) -> None:
    with ask(server, f"api/v1/checkpoints/{newest}/tensor?path=model/w") as answer:
        assert np.array_equal(np.frombuffer(answer.read(), np.float32), state(7)["model"]["w"])
    with ask(server, f"api/v1/checkpoints/{newest}/safetensors", Range="bytes=0-7") as answer:
        assert answer.status == 206
        assert int.from_bytes(answer.read(), "little") > 0
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, "api/v1/store", Authorization="")
    caught.value.close()
    assert caught.value.code == 401
    assert "server" not in {name.lower() for name in caught.value.headers}


def test_a_name_in_an_address(server: Server) -> None:
    with ask(server, f"api/v1/experiments/{quote(NAME, safe='')}") as answer:
        assert json.load(answer)["name"] == NAME


def test_many_at_once(server: Server, newest: str) -> None:
    found: list[int] = []

    def load() -> None:
        with ask(server, f"api/v1/checkpoints/{newest}/safetensors") as answer:
            found.append(len(answer.read()))

    threads = [threading.Thread(target=load) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 12
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /api/v1/store HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nX: a\nY: b\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_requests_that_two_servers_would_read_in_two_ways(server: Server, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionError:
            return
    assert answer == b"" or re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]
    assert answer.count(b"HTTP/1.1 ") <= 1


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A checkpoint of 256 MB is streamed: the server never holds more than some of its pieces."""
    with CheckpointManager(tmp_path / "store", experiment="x") as manager:
        weights = np.arange(64 << 20, dtype=np.uint32)
        newest = manager.save({"w": weights}, step=1, wait=True).result().id
        del weights
    with serving(tmp_path / "store", tmp_path / "token") as (process, address, token):
        before = memory(process.pid)
        request = urllib.request.Request(
            f"{address}api/v1/checkpoints/{newest}/safetensors", headers={"Authorization": f"Bearer {token}"}
        )
        size = 0
        with urllib.request.urlopen(request, timeout=120) as answer:
            while part := answer.read(1 << 20):
                size += len(part)
        assert size > 256 << 20
        assert memory(process.pid) - before < 150 << 20


def memory(pid: int) -> int:
    """The most that a process ever held."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10


class serving:  # noqa: N801
    """`ckpt serve` as a process."""

    def __init__(self, root: Path, token: Path, *options: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "ckpt_core",
            "serve",
            "--store",
            str(root),
            "--token-file",
            str(token),
            *options,
        ]
        self._token = token

    def __enter__(self) -> tuple[subprocess.Popen[str], str, str]:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/)\?token=([0-9a-f]{64})\n", line)
        if found is None:
            self._process.kill()
            raise AssertionError((line, self._process.communicate()[1]))
        return self._process, found[1], found[2]

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        _, self.errors = self._process.communicate(timeout=60)


def test_the_command(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "token"
    running = serving(root, place)
    with running as (process, address, token):
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert place.read_text() == f"{token}\n"
        request = urllib.request.Request(
            f"{address}api/v1/store", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["allow_write"] is False
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}?token=wrong", timeout=60)
        caught.value.close()
    assert not place.exists()
    assert token not in running.errors
    assert "Traceback" not in running.errors
    assert process.returncode == 0


def test_a_port_that_is_taken(workspace: Workspace, server: Server) -> None:
    with pytest.raises(UsageError, match="another --port"):
        Server(workspace, port=server.port)


def test_a_part_that_is_none_leaves_no_socket_open(workspace: Workspace) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with pytest.raises(CkptError, match="neither a subclass of BaseAPI nor") as kept:  # noqa: F841 - it holds the frame
        Server(workspace, port=port, parts=[object()])
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["a" * 70, "..", "a\0b", "256.256.256.256"])
def test_a_host_that_is_none(workspace: Workspace, host: str) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        Server(workspace, host=host)


def test_who_never_ends_does_not_hold_the_server(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "_PATIENCE", 1)
    asked = threading.Event()
    router = APIRouter()

    async def forever() -> None:
        asked.set()
        await asyncio.Event().wait()

    router.add_api_route("/forever", forever)
    server = Server(workspace, parts=[router], token=TOKEN)
    thread = threading.Thread(target=server.run)
    thread.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            f"GET /api/v1/forever HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        assert asked.wait(60)
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"", b""),
        (b"GET /api/v1/store HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"y"),
        (b"PUT /api/v1/tags HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n", b"{"),
        (
            f"PUT /api/v1/experiments/digits/tags HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n".encode(),
            b" ",
        ),
        (
            f"GET /api/v1/store HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\nGET /".encode(),
            b"x",
        ),
    ],
    ids=["nothing", "headers", "a body", "a body with a token", "a second request"],
)
def test_a_request_that_never_becomes_whole(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, begun: bytes, more: bytes
) -> None:
    """A byte now and then keeps no connection open."""
    monkeypatch.setattr(PatientProtocol, "seconds", 0.5)
    with running(workspace, allow_write=True) as server:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(begun)
                connection.settimeout(0.05)
                began = time.monotonic()
                with suppress(ConnectionError):
                    while time.monotonic() - began < 30:
                        with suppress(TimeoutError):
                            if not connection.recv(1 << 16):
                                break
                        connection.sendall(more)
                assert time.monotonic() - began < 30


def test_who_asks_in_time_may_wait_for_his_answer(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "seconds", 0.2)
    router = APIRouter()

    async def slow() -> str:
        await asyncio.sleep(0.6)
        return "done"

    router.add_api_route("/slow", slow)
    with running(workspace, parts=[router]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with closing(connection):
            for _ in range(2):  # on one connection
                connection.request("GET", "/api/v1/slow", headers={"Authorization": f"Bearer {TOKEN}"})
                answer = connection.getresponse()
                assert (answer.status, json.load(answer)) == (200, "done")


def test_a_token_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match="token cannot be written"),
        token_file(tmp_path / "file" / "token", TOKEN),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="token cannot be written"), token_file(tmp_path / "folder", TOKEN):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_the_token_of_a_later_server_stays(tmp_path: Path) -> None:
    earlier, later = token_file(tmp_path / "token", TOKEN), token_file(tmp_path / "token", "a later one's")
    with earlier:
        later.__enter__()
    assert (tmp_path / "token").read_text() == "a later one's\n"
    later.__exit__(None, None, None)
    assert not (tmp_path / "token").exists()


def test_the_token_file_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with token_file(tmp_path / "link", TOKEN) as path:
        assert not path.is_symlink()
    assert not (tmp_path / "target").exists()


def test_whatever_the_document_allows_is_answered_as_it_says(tmp_path: Path) -> None:
    """Schemathesis makes requests of the OpenAPI document, right ones and wrong ones."""
    for name in ("x", "y"):
        with CheckpointManager(tmp_path / "store", experiment=name) as manager:
            manager.log({"loss": 1.0}, step=1)
            manager.save({"w": np.arange(100)}, step=1, metrics={"loss": 1.0}, tags=["t"], wait=True)
    workspace = Workspace.open(tmp_path / "store")
    app = create_app(workspace, token=TOKEN, allow_write=True, hosts=["testserver", "localhost", "127.0.0.1"])
    own = {"Authorization": f"Bearer {TOKEN}"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=own)
    count = 0

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @given(operation.as_strategy(generation_mode=mode))
            @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def every(case: Any) -> None:
                nonlocal count
                count += 1
                answer = case.call(headers=own)
                text = answer.text
                assert TOKEN not in text
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == ["application/problem+json"], text
                    assert answer.json()["kind" if "kind" in answer.json() else "status"] != "internal", text
                case.validate_response(answer, excluded_checks=NOT_OURS)

            with suppress(Unsatisfiable):  # nothing wrong can be sent to what takes nothing
                every()
    workspace.close()
    assert count > 100
