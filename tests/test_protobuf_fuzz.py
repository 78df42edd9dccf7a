"""Hostile Protobuf to a stream's session by `/emulation`, from a seed: statuses and the end."""

from __future__ import annotations

import random

import pytest
import trio

from repeater.errors import REASONS
from repeater.serving.server import Server
from tests.fuzz import protobuf
from tests.http_streams import Peer, peer
from tests.protobuf_peer import command, emulation, whole
from tests.serving import running

SEEDS = range(6)
INPUTS = 12  # for each seed
CONNECT = command(id=1, connect={"name": "test"})
OCTETS = {"Content_Type": "application/octet-stream"}


async def open_session(client: Peer) -> tuple[str, str]:
    """A stream's session and node."""
    await client.request("POST", "/connection/http_stream", CONNECT, **OCTETS)
    while not (found := whole(client.body))[0]:
        client.body += (await client.event()).data
    ((connected, *_), client.body) = found
    return connected["connect"]["session"], connected["connect"]["node"]


async def meet(server: Server, rng: random.Random) -> None:
    """A stream that is told two messages, in bodies that may be damaged."""
    async with peer(server) as client:
        session, node = await open_session(client)
        (mine,) = server.node.registry.clients
        for _ in range(2):
            body = bytearray(emulation(session, node, protobuf.message(rng)))
            for _ in range(rng.choice((0, 0, 0, 1, 3))):
                body[rng.randrange(len(body))] = rng.randrange(256)
            async with peer(server) as sender:
                status, _ = await sender.call("POST", "/emulation", bytes(body), **OCTETS)
            assert status in (204, 400, 404, 413)
        if mine.end is not None:
            replies, rest = whole(await client.rest())
            assert rest == b""
            said = replies[-1]["push"]["disconnect"]
            assert REASONS[said["code"]] == said["reason"].partition(": ")[0]


@pytest.mark.parametrize("seed", SEEDS)
async def test_hostile_messages_to_a_session(seed: int) -> None:
    """The stream goes on, or ends with a documented disconnect; nothing is left of it."""
    rng = random.Random(seed)
    async with running(limits={"commands_per_second": 0}) as server:
        for number in range(INPUTS):
            try:
                await meet(server, rng)
            except BaseException as error:
                error.add_note(f"seed {seed}, input {number}")
                raise
            await gone(server)


async def gone(server: Server) -> None:
    """The client has left."""
    while server.node.registry.clients:  # noqa: ASYNC110  # the kernel tells
        await trio.sleep(0.001)
