"""A cluster of real servers for tests: three primaries, whose slots can be moved."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from benchmarks.ports import free_port
from repeater.valkey.slots import SLOTS
from tests.valkeys import (
    VALKEY,
    DoesNotStartError,
    Program,
    ValkeyServer,
    require,
    short_folder,
    wait_until,
)

NODE_TIMEOUT = 1_000
"""Milliseconds after which a server is down for the others."""


class ClusterServer(ValkeyServer):
    """A server of a cluster, with the identity that the cluster knows it by."""

    def __init__(self, program: Program, folder: Path, identity: str, port: int, bus: int) -> None:
        self.identity = identity
        self.bus_port = bus
        super().__init__(
            program,
            folder,
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-port", str(bus), "--cluster-node-timeout", str(NODE_TIMEOUT)),
            *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
            *("--cluster-replica-validity-factor", "0"),
            port=port,
        )


class ClusterServers(NamedTuple):
    """All servers. Lives inside `cluster`."""

    primaries: tuple[ClusterServer, ...]
    replicas: tuple[ClusterServer, ...]
    """As many as primaries, in their order, or none."""

    @property
    def all(self) -> tuple[ClusterServer, ...]:
        return self.primaries + self.replicas

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.primaries)
        return f"valkey+cluster://{hosts}"

    def owner(self, slot: int) -> ClusterServer:
        """The primary that has a slot, as the first server that runs sees it."""
        running = next(one for one in self.all if one.process.poll() is None)
        for first, last, primary, *_ in cast("list[list[int]]", running.call("CLUSTER", "SLOTS")):
            if first <= slot <= last:
                port = cast("list[object]", primary)[1]
                return next(one for one in self.all if one.port == port)
        raise AssertionError("nobody has the slot")

    def begin_move(self, slot: int, target: ClusterServer) -> ClusterServer:
        """Begin to move a slot: new keys go to the target. Returns the source."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.identity)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.identity)
        return source

    def move_keys(self, slot: int, target: ClusterServer, most: int = 100) -> int:
        """Move some keys of a slot; returns how many."""
        source = self.owner(slot)
        keys = cast("list[bytes]", source.call("CLUSTER", "GETKEYSINSLOT", slot, most))
        if keys:
            to = ("127.0.0.1", target.port, "", 0, 5_000)
            source.call("MIGRATE", *to, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: ClusterServer) -> None:
        """Give the slot, whose keys have all been moved, to the target."""
        source = self.owner(slot)
        for one in (target, source, *self.primaries):
            with contextlib.suppress(OSError):
                one.call("CLUSTER", "SETSLOT", slot, "NODE", target.identity)

    def move(self, slot: int, target: ClusterServer) -> None:
        """Move a slot with its keys."""
        self.begin_move(slot, target)
        while self.move_keys(slot, target):
            pass
        self.end_move(slot, target)


@contextlib.contextmanager
def cluster(program: Program = VALKEY, *, replicas: bool = False) -> Iterator[ClusterServers]:
    """Three primaries, with a replica each if wanted. Takes 2 s: servers wait before they write."""
    require(program)
    number = 6 if replicas else 3
    with short_folder() as folder, contextlib.ExitStack() as stack:
        for attempt in range(5):
            try:
                servers = _start(program, folder / f"{attempt}", number, stack)
                break
            except DoesNotStartError:
                if attempt == 4:
                    raise
                stack.close()
        for server in servers:
            wait_until(lambda server=server: _is_ready(server, number))  # type: ignore[misc]
        yield ClusterServers(tuple(servers[:3]), tuple(servers[3:]))


def _start(
    program: Program, folder: Path, number: int, stack: contextlib.ExitStack
) -> list[ClusterServer]:
    """Servers on ports that were free a moment ago."""
    known = [(secrets.token_hex(20), free_port(), free_port()) for _ in range(number)]
    servers = []
    for index, (identity, port, bus) in enumerate(known):
        own = folder / f"{index}"
        own.mkdir(parents=True)
        (own / "nodes.conf").write_text(_nodes(program, known, index))
        server = ClusterServer(program, own, identity, port, bus)
        stack.callback(server.kill)
        servers.append(server)
    return servers


def _nodes(program: Program, known: list[tuple[str, int, int]], own: int) -> str:
    """The file of a server that knows all others already.

    A primary with its replicas is a shard. Redis 7.0 has no names for shards, and Valkey 9 crashes
    (SPUBLISH) after it has read a file without.
    """
    lines = []
    for index, (identity, port, bus) in enumerate(known):
        flags = ["myself"] if index == own else []
        share = index % 3
        slots = f"{SLOTS * share // 3}-{SLOTS * (share + 1) // 3 - 1}"
        flags.append("slave" if index >= 3 else "master")
        primary = known[share][0] if index >= 3 else "-"
        shard = f",,tls-port=0,shard-id={known[share][0]}" if program is VALKEY else ""
        who = f"{identity} 127.0.0.1:{port}@{bus}{shard} {','.join(flags)} {primary}"
        lines.append(f"{who} 0 0 {share + 1} connected {slots if index < 3 else ''}".rstrip())
    return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0"]) + "\n"


def _is_ready(server: ClusterServer, number: int) -> bool:
    info = cast("bytes", server.call("CLUSTER", "INFO"))
    if b"cluster_state:ok" not in info or b"cluster_known_nodes:%d" % number not in info:
        return False
    role = cast("list[object]", server.call("ROLE"))
    return role[0] == b"master" or role[3] == b"connected"
