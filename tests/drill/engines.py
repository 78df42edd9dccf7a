"""Real Valkey servers as the engine of several nodes, and where they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import hiredis
import trio

from tests.drill.cables import Cable
from tests.drill.ledger import BrokenPromise
from tests.drill.places import Place
from tests.valkey_clusters import ClusterServers, cluster
from tests.valkey_sentinels import watched
from tests.valkeys import Program, ValkeyServer, valkey

_HEALS = 30.0  # seconds until Sentinels have all servers in their places again


@dataclass(frozen=True)
class Engine:
    """The servers behind one `engine_url`. Lives inside the function that made it."""

    url: str
    servers: Sequence[ValkeyServer]
    """The first one is the primary at the beginning."""
    sentinels: Sequence[ValkeyServer] = ()
    cluster: ClusterServers | None = None
    places: Sequence[Place] = ()
    """Where the nodes run, if anywhere special; the variables of each may give another URL."""
    cables: Sequence[Cable] = ()
    """Between the engine and nodes, or between its servers."""

    def place(self, number: int) -> Place:
        """Where this node runs."""
        return self.places[number] if self.places else Place()

    @property
    def server(self) -> ValkeyServer:
        """The only one, or the one that was the primary at first."""
        return self.servers[0]

    def primary(self) -> ValkeyServer | None:
        """The server that is the primary now; None if there is none, or more than one."""
        found = [one for one in self.servers if _role(one) == b"master"]
        return found[0] if len(found) == 1 else None

    def running(self) -> list[ValkeyServer]:
        """The servers that answer."""
        return [one for one in self.servers if _role(one)]

    def info(self, name: str) -> int:
        """A number of the first server's INFO."""
        text = cast("bytes", self.server.call("INFO", "everything")).decode()
        (found,) = (one for one in text.split("\r\n") if one.startswith(f"{name}:"))
        return int(found.partition(":")[2])

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what the servers do by themselves.

        Raises:
            BrokenPromise: they do not.
        """
        with trio.move_on_after(_HEALS):
            while not is_so():  # noqa: ASYNC110
                await trio.sleep(0.05)
            return
        raise BrokenPromise("the engine's servers do not come to what they should")

    async def wait_primary(self, *, other: ValkeyServer | None = None) -> ValkeyServer:
        """Wait until there is one primary, which may have to be another than this one.

        Raises:
            BrokenPromise: there is none in time.
        """
        await self.until(lambda: self.primary() not in (None, other))
        found = self.primary()
        assert found is not None
        return found

    async def wait_healed(self) -> None:
        """Wait until all servers run, one of them is the primary, and the others follow it.

        Raises:
            BrokenPromise: that takes too long.
        """
        await self.until(self._is_healed)

    def _is_healed(self) -> bool:
        if len(self.running()) < len(self.servers) or (primary := self.primary()) is None:
            return False
        followed = cast("Sequence[object]", primary.call("ROLE"))[2]
        return len(cast("Sequence[object]", followed)) == len(self.servers) - 1 and all(
            cast("Sequence[object]", one.call("ROLE"))[3] == b"connected"
            for one in self.servers
            if one is not primary
        )


EnginePlace = Callable[[Path, Program], AbstractContextManager[Engine]]
"""Starts an engine of this program for the time of a block; it may use the folder."""


def _role(server: ValkeyServer) -> bytes:
    """What a server says that it is; empty if it is not there. It must not be stopped."""
    if server.process.poll() is None:
        with suppress(OSError, EOFError, hiredis.ReplyError):
            return cast("Sequence[bytes]", server.call("ROLE"))[0]
    return b""


@contextmanager
def _single(options: Sequence[str], folder: Path, program: Program) -> Iterator[Engine]:
    with valkey(program, *options) as server:
        yield Engine(server.url, (server,))


def single(*options: str) -> EnginePlace:
    """One server, with these options."""
    return partial(_single, options)


def appending(fsync: str) -> EnginePlace:
    """One server that appends each change to a file, which it syncs like this."""
    rewrite = ("--auto-aof-rewrite-percentage", "0")  # one file, whose end can be cut off
    return single("--appendonly", "yes", "--appendfsync", fsync, *rewrite)


@contextmanager
def with_sentinels(folder: Path, program: Program) -> Iterator[Engine]:
    """A primary, a replica, and three Sentinels."""
    with watched(program) as found:
        yield Engine(found.url, found.servers, found.sentinels)


@contextmanager
def _clustered(folder: Path, program: Program, *, replicas: bool) -> Iterator[Engine]:
    with cluster(program, replicas=replicas) as found:
        yield Engine(found.url, found.all, cluster=found)


def clustered(*, replicas: bool) -> EnginePlace:
    """A cluster of three primaries, each with a replica if wanted."""
    return partial(_clustered, replicas=replicas)
