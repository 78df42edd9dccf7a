"""Mutated requests, by seed: every way judges them alike, and nothing of them is left.

What is right is not known here, only that the ways agree; the table of test_framing.py says what
is right.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repeater.serving.server import Server
from tests.framing_cases import CASES, HEALTH, HOST, PASSED_ON, WAYS, publish
from tests.serving import Peer, peer, running

SEEDS = range(8)
INPUTS = 24  # for each seed

STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
FIRST = {"after a call": publish(), "after Hypercorn": HEALTH}

_PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"\x00",
        b"\x7f",
        b"\xff",
        b"\x0b",
        b"0",
    ),
    *(b"Content-Length: 24\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Host: b\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"X: y\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"POST", b"GET", b"18\r\n", b"0\r\n\r\n", b"http://a"),
)


def delete(rng: random.Random, sent: bytes) -> bytes:
    """Without some bytes."""
    start = rng.randrange(len(sent))
    return sent[:start] + sent[start + rng.choice((1, 1, 2, 5)) :]


def insert(rng: random.Random, sent: bytes) -> bytes:
    """With something more."""
    at = rng.randrange(len(sent) + 1)
    return sent[:at] + rng.choice(_PIECES) + sent[at:]


def change(rng: random.Random, sent: bytes) -> bytes:
    """With another byte."""
    at = rng.randrange(len(sent))
    return sent[:at] + bytes([rng.randrange(256)]) + sent[at + 1 :]


def swap(rng: random.Random, sent: bytes) -> bytes:
    """With two lines in the other order."""
    lines = sent.split(b"\r\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\r\n".join(lines)


def repeat(rng: random.Random, sent: bytes) -> bytes:
    """With a line twice."""
    lines = sent.split(b"\r\n")
    at = rng.randrange(len(lines))
    return b"\r\n".join((*lines[: at + 1], *lines[at:]))


_MUTATIONS = (delete, insert, insert, change, change, swap, repeat)


def mutate(rng: random.Random) -> bytes:
    """A case of the table, or one that is right, changed once or a few times."""
    sent = rng.choice(CASES).sent if rng.random() < 0.7 else publish()
    for _ in range(rng.choice((1, 1, 2, 3))):
        sent = rng.choice(_MUTATIONS)(rng, sent) or b"\r\n"
    return sent


async def arrived(client: Peer) -> bytes:
    """Everything that the server has written when it waits again."""
    await wait_all_tasks_blocked()
    found = b""
    with socket.fromfd(client.stream.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while chunk := sock.recv(1 << 20):
                found += chunk
    return found


async def judge(server: Server, way: str, sent: bytes) -> tuple[list[bytes], list[bytes], int]:
    """The answers to these bytes, those to a request behind them, and the events they published."""
    async with peer(server) as client:
        if way in FIRST:
            await client.stream.send_all(FIRST[way])
            assert STATUS.findall(await arrived(client)) == [b"200"]
        before = server.node.statistics().repeater.publications
        head, end, rest = sent.partition(b"\r\n\r\n")
        if way == "to Hypercorn" and b"Upgrade" not in sent:
            head = head.replace(HOST.strip() + b"\r\n", HOST + PASSED_ON, 1)
        await client.stream.send_all(head + end + rest)
        answers = STATUS.findall(await arrived(client))
        with contextlib.suppress(trio.BrokenResourceError):
            await client.stream.send_all(HEALTH)
        probe = STATUS.findall(await arrived(client))
        return answers, probe, server.node.statistics().repeater.publications - before


@pytest.mark.parametrize("seed", SEEDS)
async def test_mutated_requests_are_judged_alike(seed: int) -> None:
    """The same answers, the same end and the same events on every way."""
    rng = random.Random(seed)
    async with running(channel={"history_size": 0}) as server:
        for number in range(INPUTS):
            sent = mutate(rng)
            found = {way: await judge(server, way, sent) for way in WAYS}
            one = found[WAYS[0]]
            assert found == dict.fromkeys(WAYS, one), f"seed {seed}, input {number}: {sent!r}"
