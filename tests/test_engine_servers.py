"""Servers with the engine "valkey": any number of them are one to their clients."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from repeater.config import ConfigError, CurrentSettings, load_settings
from repeater.serving.engine import SharedOptions, options_digest
from repeater.serving.server import Server, open_server
from tests.certificates import Authority
from tests.clusters import patient_members
from tests.deadlines import LOOP_ANSWERS
from tests.processes import serving, starts_processes
from tests.serving import Peer, frame, peer
from tests.valkey_clusters import cluster
from tests.valkey_sentinels import watched
from tests.valkeys import (
    PROGRAMS,
    REDIS,
    Program,
    ValkeyServer,
    require,
    tls_options,
    valkey,
)

SETTINGS: dict[str, Any] = {
    "dev": True,
    "port": 0,
    "allowed_hosts": "*",
    "metrics_open": True,
    "channel": {"history_size": 10, "history_ttl": 60, "force_recovery": True, "presence": True},
    "namespaces": {"plain": {"history_size": 0, "allow_subscribe_for_client": True}},
}


@pytest.fixture
def engine() -> Iterator[ValkeyServer]:
    with valkey() as server:
        yield server


@asynccontextmanager
async def running(engine: dict[str, Any], **more: Any) -> AsyncIterator[Server]:
    """One server of the application, each with a name of its own; it has reached the engine."""
    settings = load_settings(engine="valkey", **engine, **SETTINGS, **more)
    async with open_server(settings) as server:
        with trio.fail_after(LOOP_ANSWERS):
            while not await has_reached_engine(server):  # noqa: ASYNC110  # no event tells of it
                await trio.sleep(0.01)
        yield server


async def has_reached_engine(server: Server) -> bool:
    """Whether all parts of the node have; those that have not refuse what they are asked."""
    if server.node.broker.outage():
        return False
    return "result" in await call(server, "presence", channel="news")


@asynccontextmanager
async def two(
    engine: dict[str, Any], *, patient: bool = True
) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers, the second of which has learned of the first."""
    patience = patient_members() if patient else nullcontext()
    with patience, trio.fail_after(2 * LOOP_ANSWERS):
        async with (
            running(engine, node_name="one") as one,
            running(engine, node_name="two") as other,
        ):
            await until(lambda: len(one.node.control.members()) == 2)
            yield one, other


async def until(is_so: Any) -> None:
    """Look until it is so: what a real engine does takes its time."""
    while not is_so():  # noqa: ASYNC110  # no event tells of it
        await trio.sleep(0.01)


async def call(server: Server, method: str, **body: Any) -> Any:
    """The answer of the server API."""
    async with peer(server) as client:
        answer = await client.call("POST", f"/api/{method}", json.dumps(body).encode())
        return json.loads(answer.partition(b"\r\n\r\n")[2])


async def health(server: Server, kind: str = "ready") -> tuple[int, Any]:
    async with peer(server) as client:
        answer = await client.call("GET", f"/health/{kind}")
        return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def say(client: Peer, number: int, **command: object) -> Any:
    """Send one command over a WebSocket; its reply. Pushes before it are dropped."""
    await client.stream.send_all(frame(json.dumps({"id": number, **command}).encode()))
    while (message := await heard(client)).get("id") != number:
        pass
    return message


async def heard(client: Peer) -> Any:
    """The next message over a WebSocket."""
    while (size := _size(client.received)) is None:
        client.received += await client.stream.receive_some()
    start, end = size
    message, client.received = client.received[start:end], client.received[end:]
    return json.loads(message)


def _size(received: bytes) -> tuple[int, int] | None:
    """Where the payload of the first frame is, if it is there."""
    if len(received) < 4:
        return None
    short = received[1]
    start, size = (2, short) if short < 126 else (4, int.from_bytes(received[2:4]))
    return (start, start + size) if len(received) >= start + size else None


Engine = Callable[[], AbstractContextManager[dict[str, Any]]]
"""Runs an engine, and gives the settings that name it."""


@contextmanager
def single(program: Program) -> Iterator[dict[str, Any]]:
    with valkey(program) as server:
        yield {"engine_url": server.unix_url}


@contextmanager
def sentinels() -> Iterator[dict[str, Any]]:
    with watched() as servers:
        yield {"engine_url": servers.url}


@contextmanager
def a_cluster() -> Iterator[dict[str, Any]]:
    with cluster() as servers:
        yield {"engine_url": servers.url}


@contextmanager
def shards() -> Iterator[dict[str, Any]]:
    with valkey() as first, valkey() as second:
        yield {"engine_shards": [first.unix_url, second.unix_url]}


ENGINES: dict[str, Engine] = {
    **{str(program): partial(single, program) for program in PROGRAMS},
    "sentinels": sentinels,
    "cluster": a_cluster,
    "shards": shards,
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
async def test_two_servers_are_one(engine: Engine) -> None:
    """Publications, history, presence, calls on users and denials: all of it over both."""
    with engine() as settings:
        async with two(settings) as (one, other), peer(one, "/connection/websocket") as client:
            await say(client, 1, connect={})
            reply = await say(client, 2, subscribe={"channel": "news", "recoverable": True})
            assert reply["subscribe"]["recoverable"]
            position = (await call(other, "publish", channel="news", data=1))["result"]
            assert position["offset"] == 1
            assert (await heard(client))["push"]["pub"]["data"] == 1
            history = await call(one, "history", channel="news", limit=-1)
            assert [pub["data"] for pub in history["result"]["publications"]] == [1]
            assert history["result"]["epoch"] == position["epoch"]
            present = await call(other, "presence", channel="news")
            assert len(present["result"]["presence"]) == 1
            nodes = (await call(other, "info"))["result"]["nodes"]
            assert sorted(node["name"] for node in nodes) == ["one", "two"]
            assert sum(node["num_clients"] for node in nodes) == 1
            channels = await call(other, "channels")
            assert channels["result"]["channels"] == {"news": {"num_clients": 1}}
            for number in range(20):  # on all partitions
                await call(other, "publish", channel=f"c{number}", data=number)
            for number in range(20):
                found = await call(one, "history", channel=f"c{number}", limit=-1)
                assert [pub["data"] for pub in found["result"]["publications"]] == [number]
            assert "error" not in await call(other, "unsubscribe", user="", channel="news")
            assert (await heard(client))["push"]["unsubscribe"]["code"] == 2000


async def test_an_empty_channel_that_is_forgotten(engine: ValkeyServer) -> None:
    """Who was told an epoch that the engine forgets hears so with the first publication."""
    settings = {"engine_url": engine.unix_url}
    async with two(settings) as (one, other), peer(one, "/connection/websocket") as client:
        await say(client, 1, connect={})
        told = await say(client, 2, subscribe={"channel": "news", "recoverable": True})
        engine.call("DEL", "repeater:m:news")
        position = (await call(other, "publish", channel="news", data=1))["result"]
        assert position["epoch"] != told["subscribe"]["epoch"]
        assert (await heard(client))["push"]["unsubscribe"]["code"] == 2500


async def test_an_outage_and_its_end(engine: ValkeyServer) -> None:
    """Clients stay, calls fail at once, and both servers say so; then all goes on by itself."""
    settings = {"engine_url": engine.unix_url}
    async with two(settings) as (one, other), peer(one, "/connection/websocket") as client:
        await say(client, 1, connect={})
        await say(client, 2, subscribe={"channel": "plain:a"})
        engine.kill()
        both = "commands and bus: no connection"
        await until(lambda: all(s.node.broker.outage().startswith(both) for s in (one, other)))
        status, answer = await health(one)
        assert status == 503
        assert answer["reason"].startswith(both)
        assert engine.path not in answer["reason"]
        assert (await health(one, "live"))[0] == 200
        assert (await call(other, "publish", channel="plain:a", data=1))["error"]["code"] == 100
        error = (await say(client, 3, subscribe={"channel": "news"}))["error"]
        assert (error["code"], error["temporary"]) == (100, True)
        assert "subscribe" in await say(client, 4, subscribe={"channel": "plain:b"})
        async with peer(one) as plain:
            head = await plain.call("GET", "/events?channel=news")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in head.lower()
        async with peer(one) as scraper:
            seen = await scraper.call("GET", "/metrics")
            assert b"\nrepeater_broker_up 0.0" in seen
            assert b'\nrepeater_engine_up{half="bus"} 0.0' in seen
        engine.start()
        await until(lambda: not one.node.broker.outage() and not other.node.broker.outage())
        assert (await health(one))[0] == 200
        stores = [server.node.presence_store for server in (one, other)]
        await until(lambda: not any(store._servers.why(0) for store in stores))  # type: ignore[attr-defined]
        for channel in ("plain:a", "plain:b"):  # held before the outage, and wished for in it
            await call(other, "publish", channel=channel, data=channel)
            assert (await heard(client))["push"]["pub"]["data"] == channel
        assert (await say(client, 5, subscribe={"channel": "news"}))["subscribe"]["recoverable"]


async def test_what_no_server_has_written_is_counted(engine: ValkeyServer) -> None:
    """One metric has it all: of streams, of presence, and of what nodes tell each other."""
    async with running({"engine_url": engine.unix_url}) as one:
        engine.call("PUBLISH", "repeater:control", "what")
        engine.call("PUBLISH", "repeater:news", "what")
        engine.call("HSET", "repeater:denials", "what", "ever")
        engine.call("HSET", "repeater:denials-version", "n", 1, "t", "m")
        engine.call("ZADD", "repeater:pn:news", 10**14, "node")
        engine.call("HSET", "repeater:pi:node:news", "client", "what")
        await call(one, "presence", channel="news")
        counted = [b'{where="control"} 3.0', b'{where="presence"} 1.0', b'{where="streams"} 0.0']
        with trio.fail_after(LOOP_ANSWERS):
            while True:  # Missed changes of denials are looked for every 5 s.
                async with peer(one) as scraper:
                    seen = await scraper.call("GET", "/metrics")
                if all(b"repeater_engine_foreign_total" + one in seen for one in counted):
                    break
                await trio.sleep(0.1)


async def test_info_leaves_out_who_does_not_answer(engine: ValkeyServer) -> None:
    """A node that died some seconds ago does not keep the others from being seen."""
    async with two({"engine_url": engine.unix_url}, patient=False) as (one, other):
        other.node.control._carry_out = None  # type: ignore[attr-defined]  # as if it were dead
        nodes = (await call(one, "info"))["result"]["nodes"]
        assert [node["name"] for node in nodes] == ["one"]


class Told:
    """A back end that takes events: what it was told, and by which node."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.ids: list[str] = []

    async def take(self, stream: trio.SocketStream) -> None:
        """One connection, request after request."""
        client = Peer(stream)
        with suppress(AssertionError, trio.BrokenResourceError):  # hung up
            while True:
                head = await client.until(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                while len(client.received) < size:
                    client.received += await stream.receive_some()
                batch = json.loads(client.received[:size])
                client.received = client.received[size:]
                self.events += [(batch["node"], one["event"]) for one in batch["events"]]
                self.ids += [one["id"] for one in batch["events"]]
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def names(self, kind: str) -> list[str]:
        """The nodes that told of this kind."""
        return sorted(node for node, event in self.events if event == kind)


async def test_each_event_is_told_by_one(engine: ValkeyServer) -> None:
    """Clients by their own node; that a channel has listeners, by one of those that have them."""
    told = Told()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, told.take, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/events"
        settings = {
            "engine_url": engine.unix_url,
            "callbacks": {
                "event_url": url,
                "secret": "s" * 16,
                "event_delay": 0.001,
                "events": ["connected", "disconnected", "channel_occupied", "channel_vacated"],
            },
        }
        async with two(settings) as (one, other):
            async with peer(one, "/ws?channel=news"), peer(other, "/ws?channel=news"):
                await until(lambda: told.names("connected") == ["one", "two"])
                await until(lambda: len(told.names("channel_occupied")) == 1)
            await until(lambda: told.names("disconnected") == ["one", "two"])
            await until(lambda: len(told.names("channel_vacated")) == 1)
        assert len(told.ids) == len(set(told.ids)) == 6
        nursery.cancel_scope.cancel()


async def test_tls_by_the_settings(authority: Authority, tmp_path: Path) -> None:
    """`engine_ca_file` says whom to believe, and `engine_cert` proves who we are."""
    ca_file = tmp_path / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(ca_file))
    with valkey(require(REDIS), *tls_options(authority, ca_file)) as engine:
        port = engine.call("CONFIG", "GET", "tls-port")
        assert isinstance(port, list)
        settings = {
            "engine_url": f"valkeys://localhost:{int(port[1])}",
            "engine_ca_file": ca_file,
            "engine_cert": authority.certificate,
            "engine_key": authority.key,
        }
        async with running(settings) as server:
            assert (await call(server, "publish", channel="news", data=1))["result"]["offset"] == 1


async def test_an_engine_that_is_not_there_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server ends with one line: without the denials nobody may come.

    The log says of each connection what it is for, and where it leads to.
    """
    monkeypatch.setattr("repeater.cluster.denials._LOAD", 0.2)
    settings = load_settings(engine="valkey", engine_url="unix:///nowhere", **SETTINGS)
    with pytest.raises(ConfigError, match="the engine is not there: no connection") as found:
        async with open_server(settings):
            pass
    assert "nowhere" not in str(found.value)
    lines = [one for one in caplog.text.splitlines() if "the engine is not there" in one]
    for part in ("nodes", "presence"):
        assert any(part in line and "/nowhere" in line for line in lines)


async def test_sentinels_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No address is known, so the log names none."""
    monkeypatch.setattr("repeater.cluster.denials._LOAD", 0.2)
    url = "valkey+sentinel://127.0.0.1:1/main"
    with pytest.raises(ConfigError, match="no Sentinel knows the primary: no connection"):
        async with running({"engine_url": url}):
            pass
    assert "the engine is not there" in caplog.text
    assert "address" not in caplog.text


async def test_a_file_that_is_no_certificate() -> None:
    """It is a mistake of the settings."""
    url = "valkeys://127.0.0.1:1"
    more = {"engine_ca_file": __file__}
    settings = load_settings(engine="valkey", engine_url=url, **SETTINGS, **more)
    with pytest.raises(ConfigError, match="engine_ca_file: "):
        async with open_server(settings):
            pass


def test_options_that_differ() -> None:
    """The digest differs with the options of channels and with events, and with nothing else."""
    url = {"event_url": "http://app.example/events", "secret": "s" * 32}

    def digest(history: int = 1, events: object = None, **settings: object) -> str:
        channels = {"bb": {}, "aa": {"history_size": history}}
        callbacks = {} if events is None else {**url, "events": events}
        return options_digest(
            load_settings(dev=True, namespaces=channels, callbacks=callbacks, **settings)
        )

    assert digest() == digest(body_limit=2_048) != digest(history=2)
    assert len({digest(), digest(events=[]), digest(events=["connected"])}) == 3
    assert digest(events=["connected", "node_lost"]) == digest(events=["node_lost", "connected"])


def test_options_that_a_reload_changes() -> None:
    """What other nodes are told follows the settings in force."""
    current = CurrentSettings(load_settings(dev=True))
    shared = SharedOptions(current)
    before = shared()
    current.replace(load_settings(dev=True, body_limit=2_048))
    assert shared() == before
    current.replace(load_settings(dev=True, namespaces={"chat": {"history_size": 5}}))
    assert shared() != before


async def members(port: int) -> list[str]:
    """The names of the nodes that `info` tells of."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        answer = await http.post("/api/info", json={})
        return sorted(node["name"] for node in answer.json()["result"]["nodes"])


@starts_processes
async def test_workers_are_nodes(engine: ValkeyServer) -> None:
    """Each is a member of the cluster and hears what all publish; one scrape shows all of them."""
    variables = {
        "REPEATER_ENGINE_URL": engine.unix_url,
        "REPEATER_NODE_NAME": "web",
        "REPEATER_WORKERS": "2",
    }
    async with serving("--dev", "--engine", "valkey", variables=variables) as server:
        port = await server.port()
        with trio.fail_after(LOOP_ANSWERS):
            while await members(port) != ["web-1", "web-2"]:  # noqa: ASYNC110
                await trio.sleep(0.1)
        await _publish_until_heard(port)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            seen = (await http.get("/metrics")).text
        for number in (1, 2):
            assert f'\nrepeater_worker_up{{worker="{number}"}} 1.0' in seen
            assert f'\nrepeater_engine_up{{half="bus",worker="{number}"}} 1.0' in seen
        assert "\nrepeater_build_info{version=" in seen
        assert await server.end() == 0
        assert b"Traceback" not in server.log


@starts_processes
async def test_workers_whose_engine_is_not_there() -> None:
    """The server ends with one line, as one without workers does, and does not try for ever."""
    variables = {"REPEATER_ENGINE_URL": "unix:///nowhere"}
    async with serving("--dev", "--workers", "2", variables=variables) as server:
        await server.line("Error: the engine is not there: no connection: No such file")
        with trio.fail_after(LOOP_ANSWERS):
            assert await server.process.wait() == 1
        # The other worker finds the same out, or is told to end before that.
        assert server.log.count(b"Error: ") == 1
        assert b"Traceback" not in server.log


async def _publish_until_heard(port: int) -> None:
    """Several subscribers, on whichever workers, hear what any worker publishes."""

    async def listen(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            client = Peer(stream)
            await stream.send_all(b"GET /events?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await client.until(b"\r\n\r\n")
            task_status.started()
            await client.until(b"data: 1\n")

    with trio.fail_after(LOOP_ANSWERS):
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
            trio.open_nursery() as nursery,
        ):
            for _ in range(8):
                await nursery.start(listen)
            answer = await http.post("/api/publish", json={"channel": "news", "data": 1})
            assert answer.status_code == 200
