"""One judgement of framing, whichever code reads a request: the table of cases, on every way.

The ways: a connection's first request; a request that follows a native call; one that follows a
request behind Hypercorn; and a first one that goes to Hypercorn for a header without a meaning.
"""

from __future__ import annotations

import contextlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.serving.server import Server
from tests.framing_cases import CASES, HEALTH, HOST, PASSED_ON, WAYS, Case, publish
from tests.serving import Peer, peer, running


async def read_status(client: Peer) -> int:
    """The status of the next answer, after its body; 0 at the connection's end."""
    try:
        head = (await client.until(b"\r\n\r\n")).lower()
    except (AssertionError, trio.BrokenResourceError):
        assert not client.received, f"half an answer: {client.received!r}"
        return 0
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(client.received) < size:
        client.received += await client.stream.receive_some()
    client.received = client.received[size:]
    return int(head.split(b" ")[1])


async def judge(server: Server, way: str, case: Case) -> tuple[tuple[int, ...], bool, int]:
    """Send a case; return its answers, whether the connection is kept, and what was published."""
    sent = case.sent
    async with peer(server) as client:
        if way == "after a call":
            await client.stream.send_all(publish())
            assert await read_status(client) == 200
        elif way == "after Hypercorn":
            await client.stream.send_all(HEALTH)
            assert await read_status(client) == 200
        elif way == "to Hypercorn" and b"Upgrade" not in sent:
            sent = sent.replace(HOST, HOST + PASSED_ON, 1)
        await wait_all_tasks_blocked()
        before = server.node.statistics().repeater.publications
        with contextlib.suppress(trio.BrokenResourceError):  # refused before it was all sent
            await client.stream.send_all(sent)
        statuses = [await read_status(client) for _ in case.statuses]
        kept = False
        if 0 not in statuses:
            with contextlib.suppress(trio.BrokenResourceError):
                await client.stream.send_all(HEALTH)
            kept = await read_status(client) == 200
        await wait_all_tasks_blocked()
        published = server.node.statistics().repeater.publications - before
    return tuple(statuses), kept, published


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.name}"[:60])
async def test_a_request_is_judged_alike_on_every_way(case: Case) -> None:
    """As RFC 9112 wants it: the statuses, the end of the connection, and what was carried out."""
    expected = (case.statuses, case.kept, case.published)
    async with running(channel={"history_size": 0}) as server:
        found = {way: await judge(server, way, case) for way in WAYS}
        assert found == dict.fromkeys(WAYS, expected)


async def test_an_old_request_needs_no_host() -> None:
    """HTTP/1.0 without `Host`, as load balancers ask for health (RFC 9112, section 3.2)."""
    async with running(dev=False, api_key="a", allowed_hosts="") as server, peer(server) as client:
        await client.stream.send_all(b"GET /health HTTP/1.0\r\n\r\n")
        assert await read_status(client) == 200
        assert not await client.rest()
