"""The server: where it listens, and the token that it makes. One process, for one person or a team behind a proxy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt_core import ids
from ckpt_core.errors import MissingExtraError, UsageError
from ckpt_core.pipeline.workspace import Workspace

__all__ = ["Server", "token_file"]

_PATIENCE = 10
"""Seconds that whoever is being answered has when the server ends: one that takes nothing would hold it for ever."""

_ADVICE = "the server needs FastAPI and uvicorn: pip install 'ckpt-core[serve]'"


class Server:
    """Listens from when it is made; `run` answers until the process is told to end. Raises MissingExtraError,
    UsageError where it cannot listen there."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        allow_write: bool = False,
        hosts: Sequence[str] = (),
        parts: Sequence[object] = (),
        token: str | None = None,
    ) -> None:
        try:
            import uvicorn

            from ckpt_core.web.app import create_app
            from ckpt_core.web.guard import LOOPBACK
            from ckpt_core.web.patience import SECONDS, PatientProtocol
        except ImportError as error:
            raise MissingExtraError(_ADVICE) from error
        self.token = token or ids.secret()
        known = {*LOOPBACK, *hosts, *(() if host in ("0.0.0.0", "::") else (host,))}
        app = create_app(workspace, token=self.token, allow_write=allow_write, hosts=known, parts=parts)
        self._socket = _listen(host, port)  # when nothing can go wrong any more: it would be left open
        self.port: int = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        # Its access log would show what is asked; h11 refuses what two servers could read in two ways.
        config = uvicorn.Config(
            app, http=PatientProtocol, ws="none", lifespan="off", access_log=False, log_level="warning",
            server_header=False, timeout_keep_alive=SECONDS, limit_concurrency=100,
            h11_max_incomplete_event_size=64 << 10, timeout_graceful_shutdown=_PATIENCE,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    @property
    def invitation(self) -> str:
        """The address that lets its reader in."""
        return f"{self.address}?token={self.token}"

    def run(self) -> None:
        """Answers until SIGINT or SIGTERM, or `stop`."""
        with self._socket, _told_to_end(), contextlib.suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `run`, from any thread, when what was asked is answered, or after ten seconds."""
        self._server.should_exit = True


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """The signal that uvicorn was told to end by it raises again at its end. Then the caller has still to clear up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextlib.contextmanager
def token_file(path: Path, token: str) -> Iterator[Path]:
    """The token in a file that its owner alone can read, for as long as the block lasts. Raises UsageError."""
    temporary = path.with_name(f".{path.name}.{ids.token()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{token}\n")
            own = os.fstat(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(
            f"the token cannot be written to {path}: {error.strerror or error}", kind="token"
        ) from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(own, os.lstat(path)):  # not that of a server which was started later
                path.unlink()


def _listen(host: str, port: int) -> socket.socket:
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(100)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error}; try another --port", kind="port"
            ) from error
        stack.pop_all()
        return listener
