"""The log: a line for each connection, a cap on storms, no secrets, both forms."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
import trio
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant
from repeater.config import load_settings
from repeater.errors import NO_PONG, SLOW
from repeater.log import LogFormat, _Shared, configure_log, get_logger, share_log
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.serving.server import open_server
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.deadlines import LOOP_ANSWERS

CONNECTIONS = "repeater.connections"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged at info and above, below `repeater`."""
    with caplog.at_level(logging.INFO, "repeater"):
        yield caplog


def said(lines: pytest.LogCaptureFixture) -> list[str]:
    """The events about connections, without time and level."""
    return [
        re.sub(r"^[0-9:]+ \[info *\] ", "", record.getMessage())
        for record in lines.records
        if record.name == CONNECTIONS
    ]


async def stay(node: Node) -> None:
    """A client that stays until it is ended."""
    async with connect(node, MemoryTransport()):
        await trio.sleep_forever()


async def test_a_line_each(autojump_clock: MockClock, lines: pytest.LogCaptureFixture) -> None:
    """One line for coming and one for going, with who, why and how long; none for messages."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ready=False) as client:
        client.identify(ConnectionGrant("42"))
        identity = client.id
        client.became_ready()
        await trio.sleep(7.5)
        client.cut(NO_PONG)
    who = f"user=42 client={identity} transport=memory protocol=plain-asgi"
    assert said(lines) == [
        f"connected {who}",
        f"disconnected code=3012 reason='no pong' {who} seconds=7.5",
    ]


async def test_an_unknown_client_makes_no_id(lines: pytest.LogCaptureFixture) -> None:
    """A plain client has no id, and logging does not give it one."""
    async with open_test_node() as node, connect(node, MemoryTransport()) as client:
        pass
    assert client.known_id == ""
    assert [line.split()[0] for line in said(lines)] == ["connected", "disconnected"]
    assert "client=" not in "".join(said(lines))
    assert "code=3000" in said(lines)[1]


async def test_a_storm_is_two_lines(
    autojump_clock: MockClock, lines: pytest.LogCaptureFixture
) -> None:
    """Past the limit of a second, the rest of it is told by number and code."""
    options = NodeOptions(connection_log_limit=3)
    async with open_test_node(options) as node, trio.open_nursery() as nursery:
        for _ in range(1_000):
            nursery.start_soon(stay, node)
        await wait_all_tasks_blocked()
        assert len(said(lines)) == 3
        await trio.sleep(1.5)
        assert said(lines)[3:] == ["and more connected clients=997"]
        lines.clear()
        for number, client in enumerate(tuple(node.registry.clients)):
            client.cut(SLOW if number % 4 else NO_PONG)
        assert len(said(lines)) == 3
        await trio.sleep(1)
        ended = sorted(line.split()[1] for line in said(lines)[:3])
        assert ended == ["code=3008", "code=3008", "code=3012"]
        more = "and more disconnected clients=997 codes={'3008': 748, '3012': 249}"
        assert said(lines)[3:] == [more]
        lines.clear()
        await trio.sleep(5)
        assert said(lines) == [], "nothing is said about seconds in which nothing happened"
        async with connect(node, MemoryTransport()):
            assert len(said(lines)) == 1, "a new second has its own lines"


async def test_the_end_tells_the_rest(
    autojump_clock: MockClock, lines: pytest.LogCaptureFixture
) -> None:
    """Who is asked to leave at shutdown is told of, though the second is not over."""
    options = NodeOptions(connection_log_limit=0, shutdown_pause=0.001)
    async with open_test_node(options) as node, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(stay, node)
        await wait_all_tasks_blocked()
        await node.shut_down()
    assert said(lines) == [
        "and more connected clients=10",
        "and more disconnected clients=10 codes={'3001': 10}",
    ]


async def test_quiet_as_a_library(caplog: pytest.LogCaptureFixture) -> None:
    """Unless somebody wants its info, the package says nothing about connections."""
    async with open_test_node() as node, connect(node, MemoryTransport()):
        pass
    assert not caplog.records


async def test_address_and_no_secret(lines: pytest.LogCaptureFixture) -> None:
    """A real connection's line has the peer's address, and nothing of its request."""
    lines.set_level(logging.DEBUG, "repeater")
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(load_settings(dev=True, port=0, api_key="k3y")) as server:
            url = f"ws://127.0.0.1:{server.port}/ws?channel=a&token=t0ken"
            headers = [(b"Authorization", b"Bearer t0ken"), (b"Cookie", b"session=t0ken")]
            async with trio_websocket.open_websocket_url(url, extra_headers=headers):
                pass
            await wait_all_tasks_blocked()
    refused, connected, disconnected = said(lines)
    assert "cause=token" in refused  # which development mode takes for no token
    assert re.search(r" address=127\.0\.0\.1:[0-9]+ transport=websocket protocol=plain$", connected)
    assert re.search(r" code=3000 .* address=127\.0\.0\.1:[0-9]+ ", disconnected)
    assert "t0ken" not in lines.text
    assert "k3y" not in lines.text


@pytest.mark.parametrize("form", ["console", "json"])
def test_forms(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    """A line an event in both forms, other libraries' too; the level may change; no locals."""
    log, other = get_logger("test"), logging.getLogger("somebody.else")
    configure_log("info", form)
    log.info("hello", user="a\nb\x1b[31m", codes={"3000": 1})
    log.debug("not yet")
    configure_log("debug", form)
    log.debug("now")
    other.info("never")
    other.warning("of %s", "interest")
    password = "hunter2"
    try:
        raise ValueError(len(password))
    except ValueError:
        log.exception("failed")
    written = capsys.readouterr().err
    assert password not in written
    assert "\x1b" not in written
    hello, now, foreign, failed = written.splitlines()[:4]
    if form == "json":
        parsed = [json.loads(line) for line in written.splitlines()]
        assert [line["event"] for line in parsed] == ["hello", "now", "of interest", "failed"]
        assert parsed[0]["user"] == "a\nb\x1b[31m"
        assert parsed[0]["codes"] == {"3000": 1}
        assert parsed[0]["logger"] == "repeater.test"
        assert parsed[0]["timestamp"].endswith("Z")
        assert "ValueError: 7" in parsed[3]["exception"]
        return
    assert hello.endswith("[info     ] hello user=\"'a\\\\nb\\\\x1b[31m'\" codes={'3000': 1}")
    assert now.endswith("[debug    ] now")
    assert foreign.endswith("[warning  ] of interest")
    assert failed.endswith("[error    ] failed")
    assert written.rstrip().endswith("ValueError: 7")


@pytest.mark.parametrize("form", ["console", "json"])
def test_entries_of_several_processes_do_not_mix(
    form: LogFormat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names its worker and fits into one write to a pipe; the end of a traceback stays."""
    monkeypatch.setattr("repeater.log._shared", _Shared())
    share_log(2)
    configure_log("info", form)
    log = get_logger("test")
    log.info("short", user="7")
    log.info("long", user="\N{EURO SIGN}" * 5_000, more=["x" * 5_000])
    log.error("failed", exception="begin\n" + "line\n" * 5_000 + "ValueError: 7")
    logging.getLogger("somebody.else").warning("y" * 9_000)
    entries = re.split(r"(?<=\n)(?=\{|\d\d:\d\d:\d\d )", capsys.readouterr().err)
    assert len(entries) == 4
    assert all(len(entry.encode()) <= 4_096 for entry in entries)
    assert all(re.search(r"worker\"?[:=] ?2\b", entry) for entry in entries)
    assert ("user=7" if form == "console" else '"user": "7"') in entries[0]
    assert "ValueError: 7" in entries[2]
    assert "begin" not in entries[2]
    if form == "json":
        assert [json.loads(entry)["worker"] for entry in entries] == [2] * 4
