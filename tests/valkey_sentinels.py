"""A primary with replicas, and three Sentinels that watch them: real servers for tests."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import hiredis

from benchmarks.ports import free_port
from repeater.valkey.pipe import Part
from tests.valkeys import (
    LOCAL,
    VALKEY,
    Program,
    ValkeyServer,
    call,
    calls,
    require,
    short_folder,
    wait_until,
)

NAME = "primary"
"""What the Sentinels call it."""

_FAST = ("--repl-diskless-sync-delay", "0")  # replicas copy at once


class SentinelServer(ValkeyServer):
    """A Sentinel; its file of settings, which it writes itself as well, is there already."""

    def _own(self, port: int) -> tuple[str, ...]:
        return (str(self.folder / "sentinel.conf"), "--sentinel", "--port", str(port))

    def call(self, *parts: Part) -> object:
        return call(self.port, *parts)


class Watched(NamedTuple):
    """A primary, its replicas, and the Sentinels. Lives inside `watched`."""

    servers: tuple[ValkeyServer, ...]
    """The first one is the primary at the beginning."""
    sentinels: tuple[SentinelServer, ...]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{one.host}:{one.port}" for one in self.sentinels)
        return f"valkey+sentinel://{hosts}/{NAME}"

    def wait_in_step(self) -> None:
        """Wait until all replicas have what the first primary has."""
        replicas = len(self.servers) - 1
        first = self.servers[0].path
        # A connection waits for what had been written at its last command.
        wait_until(lambda: calls(first, ("PING",), ("WAIT", replicas, 100))[1] == replicas)


@contextlib.contextmanager
def watched(
    program: Program = VALKEY,
    *options: str,
    replicas: int = 1,
    down_after: int = 500,
    hosts: tuple[str, str] = (LOCAL, LOCAL),
    first: Program | None = None,
) -> Iterator[Watched]:
    """Servers with options, and Sentinels that call a server down after so many milliseconds.

    The first server has the first of the `hosts`, and may be another program; all others are on
    the second.
    """
    require(program)
    with short_folder() as folder, contextlib.ExitStack() as stack:
        servers: list[ValkeyServer] = []
        for number in range(replicas + 1):
            follow = ("--replicaof", hosts[0], str(servers[0].port)) if servers else ()
            own, host = (program, hosts[1]) if servers else (first or program, hosts[0])
            server = ValkeyServer(own, folder / f"{number}", *_FAST, *follow, *options, host=host)
            stack.callback(server.kill)
            servers.append(server)
        identities = {free_port(): secrets.token_hex(20) for _ in range(3)}
        sentinels = []
        for port in identities:
            place = folder / f"s{port}"
            _write_settings(place, port, identities, servers, down_after, hosts[1])
            sentinel = SentinelServer(program, place, port=port, host=hosts[1])
            stack.callback(sentinel.kill)
            sentinels.append(sentinel)
        everything = Watched(tuple(servers), tuple(sentinels))
        everything.wait_in_step()
        for sentinel in sentinels:
            _wait_ready(sentinel, replicas)
        yield everything


def _write_settings(
    folder: Path,
    port: int,
    identities: Mapping[int, str],
    servers: list[ValkeyServer],
    down_after: int,
    host: str,
) -> None:
    """The file of a Sentinel that knows all others already, which takes seconds otherwise."""
    folder.mkdir()
    lines = [
        f"port {port}",
        f"bind {' '.join({LOCAL, host})}",
        "protected-mode no",
        f"dir {folder}",
        f"sentinel myid {identities[port]}",
        f"sentinel monitor {NAME} {servers[0].host} {servers[0].port} 2",
        f"sentinel down-after-milliseconds {NAME} {down_after}",
        f"sentinel failover-timeout {NAME} 2000",
        *(f"sentinel known-replica {NAME} {one.host} {one.port}" for one in servers[1:]),
        *(
            f"sentinel known-sentinel {NAME} {host} {other} {identity}"
            for other, identity in identities.items()
            if other != port
        ),
    ]
    (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")


def _wait_ready(sentinel: SentinelServer, replicas: int) -> None:
    """Wait until a Sentinel would promote one of the replicas."""

    def is_ready() -> bool:
        rows = cast("list[list[bytes]]", sentinel.call("SENTINEL", "REPLICAS", NAME))
        states = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        healthy = [one for one in states if one[b"flags"] == b"slave" and int(one[b"info-refresh"])]
        linked = [one for one in healthy if one[b"master-link-status"] == b"ok"]
        try:
            agreed = cast("bytes", sentinel.call("SENTINEL", "CKQUORUM", NAME))
        except hiredis.ReplyError:
            return False
        return len(linked) == replicas and agreed.startswith(b"OK 3")

    wait_until(is_ready)
