"""What the EventSource of Node makes of our streams' first bytes, in two of its versions.

Version 2 is what the JavaScript SDK's own suite runs on; it loses an event that has a carriage
return before it in the same segment.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from tests.deadlines import PROCESS_STARTS
from tests.first_bytes import record
from tests.serving import running

pytestmark = [pytest.mark.sdk, pytest.mark.parametrize("client", ["node"])]

READER = Path(__file__).parent / "drivers" / "event_sources.mjs"
VERSIONS = ("2", "3")


@pytest.fixture
def workers() -> None:
    """The bytes are those of one process and of workers alike."""


def read(*bodies: list[bytes]) -> list[dict[str, list[str]]]:
    """The data of the events that each version finds in these bodies, which come in parts."""
    lines = [json.dumps([base64.b64encode(part).decode() for part in body]) for body in bodies]
    done = subprocess.run(
        ["node", str(READER)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=PROCESS_STARTS,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def cut(body: bytes) -> list[list[bytes]]:
    """In two at each boundary, byte by byte, and in one; the first part comes with the head."""
    parts = [[body[:place], body[place:]] for place in range(len(body))]
    return [*parts, [b"", *(body[place : place + 1] for place in range(len(body)))], [body]]


@pytest.mark.parametrize("path", ["/connection/sse", "/connection/uni_sse", "/events"])
async def test_the_first_event_arrives_in_any_parts(path: str, client: str) -> None:
    """A connect reply or a publication, whatever shares a segment with it."""
    del client
    async with running() as server:
        body = (await record(server, path, "native")).body()
    cuts = cut(body)
    heard = read(*cuts)
    assert len(heard) == len(cuts)
    (message,) = heard[-1]["3"]
    assert json.loads(message) == {"n": 1} if path == "/events" else "connect" in message
    lost = [parts for parts, one in zip(cuts, heard, strict=True) for version in VERSIONS
            if one[version] != [message]]  # fmt: skip
    assert not lost


def test_a_carriage_return_costs_an_event(client: str) -> None:
    """Why there is none: what a stream began with once, as other servers do."""
    del client
    (joined, apart) = read([b"\r\ndata: 1\n\n"], [b"\r\n", b"data: 1\n\n"])
    assert joined == {"2": [], "3": ["1"]}
    assert apart == {"2": ["1"], "3": ["1"]}
