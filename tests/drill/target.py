"""The server in a process of its own, which faults stop, end and start again; and its back end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import tomli_w
import trio

from benchmarks.ports import free_port
from tests.deadlines import PROCESS_STARTS
from tests.drill.ledger import BrokenPromise, Ledger
from tests.drill.links import Ended, Http
from tests.drill.places import Place
from tests.processes import ServerProcess, serving

KEY = "drill"
SETTINGS: Mapping[str, Any] = {
    "allow_anonymous": True,
    "api_key": KEY,
    "log_level": "warning",
    # Short, so that dead peers are found while the drill lasts.
    "ping_interval": 2.0,
    "pong_timeout": 1.0,
    "write_timeout": 2.0,
}
CHANNEL: Mapping[str, Any] = {
    "history_size": 100,
    "force_recovery": True,
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
}
KEPT = 60
"""Events of a channel that a subscriber must be able to recover; below the history's size, because
the events that come while it connects count as well."""
LEAVES = 15.0
"""Seconds until nothing is left of subscribers: above all deadlines of the settings."""
GROWTH = 64 << 20
"""Bytes of the server's memory that it may have grown by."""
_AFTER_FAILURE = 0.5  # seconds


class Target:
    """The server. Its `run` starts it again when it has ended as it should."""

    def __init__(self, command: Sequence[str], place: Place, folder: Path, **settings: Any) -> None:
        self.between: Callable[[], object] = lambda: None
        """Called in a thread between an end and the next start."""
        self.host = place.host
        self.port = free_port()
        self._command = (*place.prefix, *command)
        self._place = place
        self._settings = {**SETTINGS, **settings}
        self._file = folder / "repeater.toml"
        self._socket = folder / "socket"
        self._up = trio.Event()
        self._ending = False  # whether a fault has ended it
        self._over = False
        self._server: ServerProcess
        self._process: psutil.Process
        self._idle = 0  # sockets
        self._memory = 0
        self.write()

    def write(self, **channel: Any) -> None:
        """Write the settings file, with other options for channels."""
        self._file.write_text(tomli_w.dumps({**self._settings, "channel": {**CHANNEL, **channel}}))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it running until cancelled, or until `end`.

        Raises:
            BrokenPromise: it ended by itself, or with a traceback.
        """
        secure = "" if self._place.authority is None else "s"
        while True:
            async with serving(
                *("--config", str(self._file), "--listen", f"{self.host}:{self.port}"),
                *("--listen", f"unix:{self._socket}"),
                command=self._command,
                variables=self._place.variables,
                descriptors=self._place.descriptors,
            ) as self._server:
                await self._server.line(f"http{secure}://{self.host}:{self.port}")
                self._process = psutil.Process(self._server.process.pid)
                if not self._memory:  # the first start, which nobody waits for
                    self.measure()
                self._ending = False
                self._up.set()
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                status = await self._server.process.wait()
                self._up = trio.Event()
            self.check_log()
            if not self._ending:
                raise BrokenPromise(f"the server ended with {status}: {self._log()}")
            await trio.to_thread.run_sync(self.between)
            if self._over:
                return

    def check_log(self) -> None:
        """Look for an error of the server's own.

        Raises:
            BrokenPromise: there is one.
        """
        if b"Traceback" in self._server.log:
            raise BrokenPromise(f"a traceback: {self._log()}")

    def _log(self) -> str:
        return self._server.log[-4_000:].decode(errors="replace")

    def run_command(self, *arguments: str, patience: float | None = None) -> int | None:
        """Run another command of the server's program, by its settings; its status.

        None if it was killed after so many seconds of patience.
        """
        environment = {**os.environ, **self._place.variables}
        command = (*self._command[:-1], *arguments)
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                return process.wait(PROCESS_STARTS if patience is None else patience)
            except subprocess.TimeoutExpired:
                process.kill()
                return None

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal that it survives."""
        self._server.process.send_signal(number)

    async def restart(self, number: signal.Signals) -> None:
        """End it, and wait until it is up again."""
        with trio.fail_after(2 * PROCESS_STARTS):
            await self._up.wait()
            self._ending, process = True, self._server.process
            process.send_signal(number)
            await process.wait()
            await until(lambda: self._up.is_set() and self._server.process is not process)

    async def end(self, number: signal.Signals) -> None:
        """End it for good."""
        with trio.fail_after(PROCESS_STARTS):
            await self._up.wait()
            self._ending = self._over = True
            self._server.process.send_signal(number)
            await self._server.process.wait()

    async def open(self) -> trio.SocketStream:
        """A connection of the back end's, by a Unix socket: no fault of a network concerns it."""
        return await trio.open_unix_socket(str(self._socket))

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started and that serve its clients; none if it does itself."""
        return [one for one in self._process.children() if one.status() != psutil.STATUS_ZOMBIE]

    def local_ports(self) -> list[int]:
        """The ports of its connections to others, and of others' to it."""
        found = self._process.net_connections("tcp")
        return [one.laddr.port for one in found if one.status == psutil.CONN_ESTABLISHED]

    def sockets(self) -> int:
        """How many sockets and pipes it and its workers have now."""
        return sum(_sockets(one.pid) for one in (self._process, *self.workers()))

    def measure(self) -> None:
        """Take what it has now for what it has without clients."""
        self._idle = self.sockets()
        self._memory = self._memory_now()

    def memory_growth(self) -> int:
        """Bytes that it and its workers have grown by since the start."""
        return self._memory_now() - self._memory

    def _memory_now(self) -> int:
        return sum(one.memory_info().rss for one in (self._process, *self.workers()))

    async def clients(self) -> Mapping[str, int]:
        """How many clients, subscriptions and channels it has."""
        async with await self.open() as stream:
            nodes = (await call(Http(stream), "info", {}))["nodes"]
        if "workers" not in self._settings:
            nodes = nodes[:1]  # others on its engine have their own
        names = ("clients", "subs", "channels")
        return {name: sum(one[f"num_{name}"] for one in nodes) for name in names}

    async def left(self) -> Mapping[str, int]:
        """What it still has, other than after its start; empty is right."""
        try:
            found = dict(await self.clients())
        except Ended:  # it waits for a node that was killed, until that one is taken for lost
            return {"answers missing": 1}
        await trio.sleep(0.05)  # until the call's own connection has gone
        found["sockets"] = self.sockets() - self._idle
        return {name: count for name, count in found.items() if count}


async def until_left(target: Target) -> None:
    """Wait until nothing is left of those who were there.

    Raises:
        BrokenPromise: something stays.
    """
    with trio.move_on_after(LEAVES):
        while left := await target.left():  # noqa: ASYNC110  # the server tells
            await trio.sleep(0.2)
    if left:
        raise BrokenPromise(f"the subscribers have gone, and the server still has {dict(left)}")


async def call(http: Http, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call of the server API.

    Raises:
        Ended: the call failed, or nobody knows.
    """
    status = await http.request("POST", f"/api/{method}", json.dumps(params), X_API_Key=KEY)
    answer = await http.whole()
    if status != 200 or "result" not in (read := json.loads(answer)):
        raise Ended(f"answered {status} {answer!r}")
    found: Mapping[str, Any] = read["result"]
    return found


class Publisher:
    """The back end that publishes into one channel, one event after the other."""

    def __init__(self, channel: str, target: Target, ledger: Ledger, rate: float) -> None:
        self._channel = channel
        self._target = target
        self._ledger = ledger
        self._pause = 1 / rate
        self._http: Http | None = None
        self._stream: trio.abc.Stream | None = None
        self._turn = trio.Lock()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.publish()
            await trio.sleep(self._pause)

    async def publish(self, size: int = 0) -> None:
        """Publish the next event, with `size` bytes to fill it up. It is not cancelled half-way."""
        with trio.CancelScope(shield=True):
            async with self._turn:
                number = self._ledger.attempt(self._channel)
                data = {"channel": self._channel, "n": number, "fill": "x" * size}
                try:
                    await self._call(data)
                except (Ended, OSError, trio.BrokenResourceError):
                    self._ledger.counts["doubtful"] += 1
                    await self.aclose()
                    await trio.sleep(_AFTER_FAILURE)
                else:
                    self._ledger.accept(self._channel, number)

    async def _call(self, data: Mapping[str, Any]) -> None:
        if self._http is not None and self._http.over:  # as a server answers that is about to end
            await self.aclose()
        if self._http is None:
            self._stream = await self._target.open()
            self._http = Http(self._stream)
        await call(self._http, "publish", {"channel": self._channel, "data": data})

    async def aclose(self) -> None:
        """Close its connection; it makes another when it has something to publish."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
        self._http = self._stream = None


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something outside this process, or far away in it, has come true."""
    while not condition():  # noqa: ASYNC110  # nobody tells
        await trio.sleep(0.02)


def _sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(entry).startswith(("socket:", "pipe:"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return count
