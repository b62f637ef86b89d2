"""Private database servers for tests: started on first use, as somebody without rights, gone with the process.

`CKPT_TEST_POSTGRES_URL` and `CKPT_TEST_MYSQL_URL` name servers to use instead: their users must be allowed to make
databases. Where there is neither a URL nor the server's programs, the tests are skipped, and say what is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

_NOBODY = 65_534


def _quick_folder() -> str | None:
    """Memory, where there is enough of it: changes of tables wait for disks, whatever a server is told."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30 else None


class Server(ABC):
    """A running server and the databases made in it. `own`: it may be killed and started again."""

    variable: str
    _socket: str
    _create = "CREATE DATABASE {name}"

    def __init__(self) -> None:
        given = os.environ.get(self.variable)
        self.own = not given
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        if given:
            self.url = make_url(given)
            return
        self._programs = self._find()
        self.folder = Path(tempfile.mkdtemp(prefix="ckpt-", dir=_quick_folder()))  # a socket's path is short
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
        self.url = self._address()
        self._prepare()
        self.start()

    def start(self) -> None:
        """Starts it (again), and waits until it answers."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            self._as_nobody(self._command()), stdout=log, stderr=log, cwd=self.folder
        )
        log.close()
        begun = time.monotonic()
        while True:
            try:
                with closing(socket.socket(socket.AF_UNIX)) as listening:
                    listening.connect(str(self.folder / self._socket))
                with self.connected():
                    return
            except (OSError, OperationalError) as error:
                if self._process.poll() is not None or time.monotonic() - begun > 60:
                    said = (self.folder / "log").read_text("utf-8", "replace")
                    raise AssertionError(f"{error}\n{said}") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """As a crash of its machine would: no goodbye to anybody."""
        assert self.own
        assert self._process is not None
        self._kill(self._process)
        self._process.wait(60)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Ends it. A server that was given keeps nothing of ours."""
        if self.own:
            self.kill()
            shutil.rmtree(self.folder)
        else:
            for number in range(self._made):
                self.execute(f"DROP DATABASE {self._name(number)}")

    def new_database(self) -> URL:
        """The URL of a database with nothing in it."""
        name = self._name(self._made)
        self.execute(self._create.format(name=name))
        self._made += 1
        return self.url.set(database=name)

    def execute(self, statement: str) -> None:
        """Outside of any transaction, as the server's administrator."""
        with self.connected() as connection:
            connection.execute(text(statement))

    @contextmanager
    def connected(self, url: URL | None = None) -> Iterator[Connection]:
        """A connection of its own, which commits each statement."""
        engine = create_engine(url or self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    def _name(self, number: int) -> str:
        return f"ckpt_test_{os.getpid()}_{number}"

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            self._as_nobody([str(word) for word in command]), capture_output=True, text=True, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @staticmethod
    def _as_nobody(command: list[str]) -> list[str]:
        """No server runs as root. It is to end with this process, however that ends."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            return command
        other = ["--reuid=nobody", f"--regid={_NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        return [setpriv, *other, "--pdeathsig=KILL", *command]

    @abstractmethod
    def _find(self) -> Path:
        """The folder of its programs, or a skip that says what to install."""

    @abstractmethod
    def _address(self) -> URL: ...

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)


class PostgreSQL(Server):
    """PostgreSQL, by its own programs: those of Debian's packages are not on the PATH."""

    variable = "CKPT_TEST_POSTGRES_URL"
    _socket = ".s.PGSQL.5432"
    _create = "CREATE DATABASE {name} TEMPLATE template0"

    def _find(self) -> Path:
        pytest.importorskip("psycopg", reason="no psycopg: pip install 'ckpt-core[postgres]'")
        on_path = shutil.which("initdb")
        if on_path is not None:
            return Path(on_path).resolve().parent
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
        if not found:
            pytest.skip(f"no PostgreSQL: apt-get install postgresql, or set {self.variable}")
        return found[-1].parent

    def _address(self) -> URL:
        return URL.create(
            "postgresql+psycopg", "postgres", database="postgres", query={"host": str(self.folder)}
        )

    def _prepare(self) -> None:
        self._run(
            *(self._programs / "initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8"),
            *("--locale", "C", "-D", self.folder / "data"),
        )

    def _command(self) -> list[str]:
        # After a crash in the middle of the test its children are still there for a moment.
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "100",
            "log_min_messages": "fatal",
            "restart_after_crash": "off",
            "deadlock_timeout": "50ms",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *words]

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        process.send_signal(signal.SIGKILL)
        for child in map(int, children):
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue


class MariaDB(Server):
    """MariaDB, or MySQL by its URL."""

    variable = "CKPT_TEST_MYSQL_URL"
    _socket = "socket"

    def _find(self) -> Path:
        pytest.importorskip("pymysql", reason="no PyMySQL: pip install 'ckpt-core[mysql]'")
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
        found = shutil.which("mariadbd", path=path)
        if found is None or shutil.which("mariadb-install-db") is None:
            packages = "mariadb-server-core mariadb-client-core"
            pytest.skip(
                f"no MariaDB: apt-get install --no-install-recommends {packages}, or set {self.variable}"
            )
        return Path(found).parent

    def _address(self) -> URL:
        return URL.create("mysql+pymysql", "root", query={"unix_socket": str(self.folder / "socket")})

    def _prepare(self) -> None:
        self._run(
            *("mariadb-install-db", "--no-defaults", f"--datadir={self.folder}/data", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
        )

    def _command(self) -> list[str]:
        return [
            *(str(self._programs / "mariadbd"), "--no-defaults", f"--datadir={self.folder}/data"),
            *(f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid", "--skip-networking"),
            *("--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync", "--innodb-doublewrite=0"),
            *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--skip-log-bin"),
            # What careless administrators set must not matter.
            *("--character-set-server=latin1", "--sql-mode="),
        ]
