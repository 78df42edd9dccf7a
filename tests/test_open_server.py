"""A server inside somebody's own program: settings, parts, and pages of one's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from quart import Blueprint, Quart, Response, current_app, websocket
from quart_trio import QuartTrio
from trio.testing import wait_all_tasks_blocked
from trio_websocket import open_websocket_url

from repeater import (
    ChannelOptions,
    ErrorCode,
    LimitOptions,
    MemoryBroker,
    NodeOptions,
    Publication,
    ReplyError,
    create_app,
    open_node,
    open_server,
    open_subscriber,
)
from repeater.config import ConfigError, ServerSettings, Settings, given_settings, load_settings
from repeater.serving.server import Server
from repeater.subscriber import SubscriptionError
from repeater.web.paced_websocket import UNREAD
from tests.deadlines import LOOP_ANSWERS

OPEN = NodeOptions(insecure=True)


def url(server: Server, path: str = "") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and an environment that are not this program's to read."""
    (tmp_path / "repeater.toml").write_text("not TOML")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPEATER_API_KEY", "somebody's")
    monkeypatch.setenv("REPEATER_NONSENSE", "1")


async def test_a_subscriber_reaches_a_server_of_ones_own(elsewhere: None) -> None:
    """`open_server` with a node's options is all; neither file nor environment is read."""
    async with (
        open_server(OPEN, port=0) as server,
        open_subscriber(url(server), ["news"]) as events,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        await server.node.publish(Publication("news", b"1"))
        answer = await client.post(url(server, "/api/publish"), json={"channel": "news", "data": 2})
        assert answer.status_code == 200
        assert [(await anext(events)).data for _ in range(2)] == [1, 2]


async def test_what_is_not_insecure_is_closed(elsewhere: None) -> None:
    """By default nobody may subscribe or publish; an API key opens the server API."""
    async with httpx.AsyncClient(trust_env=False) as client:
        event = {"channel": "news", "data": 1}
        async with open_server(port=0) as server:
            assert (await client.post(url(server, "/api/publish"), json=event)).status_code == 401
        async with open_server(port=0, api_key="k3y") as server:
            headers = {"X-API-Key": "k3y"}
            answer = await client.post(url(server, "/api/publish"), json=event, headers=headers)
            assert answer.status_code == 200
            assert (await client.get(url(server, "/events?channel=news"))).status_code == 401


async def test_the_parts_of_a_node() -> None:
    """Broker and back end of one's own are taken as `open_node` takes them."""

    class Refusing:
        kinds = frozenset({"connect"})
        forward_headers = frozenset[str]()
        forward_emulated_headers = frozenset[str]()

        async def connect(self, *_: object) -> None:
            raise ReplyError(ErrorCode.PERMISSION_DENIED)

        def statistics(self) -> None:
            return None

    broker = MemoryBroker()
    backend = Refusing()
    async with open_server(NodeOptions(), port=0, broker=broker, backend=backend) as server:  # type: ignore[arg-type]
        assert server.node.broker is broker
        with pytest.raises(
            SubscriptionError, match=r"^the server refused the connection: 103 permission denied$"
        ) as caught:
            async with open_subscriber(url(server), ["news"]):
                pass
        assert caught.value.code == 103


def pages() -> Blueprint:
    """Pages with a name and paths that Repeater has too."""
    blueprint = Blueprint("api", __name__)

    @blueprint.get("/")
    async def index() -> str:
        return "my page"

    @blueprint.websocket("/echo")
    async def echo() -> None:
        # Until the client has closed: where the server closes first, trio-websocket leaves the
        # client's socket to the garbage collector.
        while True:
            await websocket.send(await websocket.receive())

    return blueprint


async def test_pages_of_ones_own() -> None:
    """A blueprint's pages and WebSockets are served beside the native subscribers; its `/` wins."""
    async with (
        open_server(OPEN, port=0, blueprints=[pages()]) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        with trio.fail_after(LOOP_ANSWERS):
            assert (await client.get(url(server))).text == "my page"
            assert (await client.get(url(server, "/health"))).status_code == 200
            assert (await client.get(url(server, "/console"))).status_code == 200
            base = url(server).replace("http", "ws")
            async with open_websocket_url(f"{base}/echo") as socket:
                await socket.send_message("hello")
                assert await socket.get_message() == "hello"
            async with open_websocket_url(f"{base}/ws?channel=c") as socket:
                await server.node.publish(Publication("c", b'"native"'))
                assert await socket.get_message() == '"native"'
                (subscriber,) = server.node.registry.clients
                assert subscriber.transport.name == "websocket"


async def test_a_websocket_of_ones_own_is_read_no_faster_than_its_route_reads() -> None:
    """Whatever quart-trio buffers: a route that does not read holds its client back."""
    reading = trio.Event()
    blueprint = Blueprint("pages", __name__)

    @blueprint.websocket("/slow")
    async def slow() -> None:
        await websocket.accept()
        await reading.wait()
        for number in range(100):
            assert await websocket.receive() == str(number)

    taken = 0

    async def receive() -> Any:
        nonlocal taken
        await trio.lowlevel.checkpoint()
        taken += 1
        if taken == 1:
            return {"type": "websocket.connect"}
        if taken > 101:
            await trio.sleep_forever()
        return {"type": "websocket.receive", "text": str(taken - 2), "bytes": None}

    async def send(_event: object) -> None:
        await trio.lowlevel.checkpoint()

    scope: Any = {
        "type": "websocket",
        "path": "/slow",
        "raw_path": b"/slow",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "scheme": "ws",
        "http_version": "1.1",
        "subprotocols": [],
        "root_path": "",
        "client": None,
        "server": None,
        "extensions": {},
        "asgi": {"version": "3.0"},
    }
    async with open_node(OPEN) as node, trio.open_nursery() as nursery:
        app = create_app(node, blueprints=[blueprint])
        nursery.start_soon(app.asgi_app, scope, receive, send)
        await wait_all_tasks_blocked()
        assert taken <= UNREAD + 2
        reading.set()
    assert taken >= 101


async def test_hooks_around_serving_run() -> None:
    """A blueprint's hooks and background tasks run as under an ASGI server, and end with it."""
    told: list[str] = []
    blueprint = Blueprint("pages", __name__)

    @blueprint.before_app_serving
    async def before() -> None:
        told.append("before")

    @blueprint.while_app_serving
    async def during() -> AsyncGenerator[None, None]:
        told.append("begin")
        yield
        told.append("end")

    @blueprint.after_app_serving
    async def after() -> None:
        told.append("after")

    @blueprint.get("/work")
    async def work() -> Response:
        async def later() -> None:
            try:
                await trio.sleep_forever()
            finally:
                told.append("task ended")

        app = current_app
        assert isinstance(app, Quart)
        app.add_background_task(later)
        return Response("", 202)

    options = NodeOptions(insecure=True, shutdown_timeout=1)
    async with (
        open_server(options, port=0, blueprints=[blueprint]) as server,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        assert told == ["before", "begin"]
        assert (await client.get(url(server, "/work"))).status_code == 202
    assert set(told[2:4]) == {"end", "after"}  # in the order of Quart's version
    assert told[4:] == ["task ended"]


async def test_a_hook_that_fails_stops_the_start() -> None:
    """The hook's own error comes out, before anybody is served."""
    blueprint = Blueprint("pages", __name__)

    @blueprint.before_app_serving
    async def before() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with open_server(OPEN, port=0, blueprints=[blueprint]):
            pass


async def test_mistakes_are_named() -> None:
    """A wrong setting is a ConfigError with its name."""
    with pytest.raises(ConfigError, match=r"^port: "):
        async with open_server(OPEN, port=-1):
            pass
    with pytest.raises(ConfigError, match="prot: unknown setting; did you mean port"):
        async with open_server(OPEN, prot=0):  # type: ignore[call-arg]
            pass
    with pytest.raises(ConfigError, match="loopback"):
        async with open_server(OPEN, host="0.0.0.0"):
            pass


async def test_all_settings_and_some_by_name() -> None:
    """Settings made elsewhere are taken as they are, but for those given by name."""
    settings = Settings(dev=True, port=1, outbox_limit=700_000)  # type: ignore[call-arg]
    async with open_server(settings, port=0) as server:
        assert server.port > 1
        assert server.node.options.outbox_limit == 700_000
        assert server.node.options.insecure


OPTIONS = st.builds(
    NodeOptions,
    default_channel=st.sampled_from(["", "news"]),
    insecure=st.booleans(),
    allow_anonymous=st.booleans(),
    public_channels=st.frozensets(st.sampled_from(["a", "b"])),
    outbox_limit=st.integers(1_048_576, 2**40),
    ping_interval=st.floats(10, 1_000),
    limits=st.builds(LimitOptions, connections=st.integers(0, 100)),
    channel=st.builds(
        ChannelOptions, history_size=st.integers(0, 9), allow_history_for_client=st.booleans()
    ),
    namespaces=st.dictionaries(
        st.sampled_from(["chat", "feed"]), st.builds(ChannelOptions, presence=st.booleans())
    ),
)


@given(options=OPTIONS)
def test_settings_of_options_make_these_options(options: NodeOptions) -> None:
    """The node of a server has just the options that the program gave."""
    assert given_settings(options).node_options() == options


def test_what_may_be_named() -> None:
    """`open_server` takes a server's own settings by name, of the same types."""
    named = set(get_type_hints(ServerSettings))
    node = {one.name for one in msgspec.structs.fields(NodeOptions)}
    by_table = {"token", "subscription_token", "callbacks", "namespaces", "channel", "limits"}
    apart = {"dev", "log_level", "log_format", "workers", "worker_timeout"} | {
        name for name in Settings.model_fields if name.startswith("comments")
    }
    assert named == set(Settings.model_fields) - node - by_table - apart


@pytest.mark.parametrize(("insecure", "status"), [(True, 200), (False, 401)])
async def test_an_application_around_a_node(insecure: bool, status: int, elsewhere: None) -> None:
    """Without settings the node's options say who may call; nothing else is read."""
    async with open_node(NodeOptions(insecure=insecure)) as node:
        app = create_app(node, blueprints=[pages()])
        assert isinstance(app, QuartTrio)
        client = app.test_client()
        answer = await client.post("/api/publish", json={"channel": "c", "data": 1})
        assert answer.status_code == status
        assert await (await client.get("/")).get_data(as_text=True) == "my page"


async def test_an_application_with_a_key() -> None:
    """With settings they say who may call."""
    async with open_node() as node:
        client = create_app(node, given_settings(api_key="k3y")).test_client()
        event = {"channel": "c", "data": 1}
        assert (await client.post("/api/publish", json=event)).status_code == 401
        headers = {"X-API-Key": "k3y"}
        answer = await client.post("/api/publish", json=event, headers=headers)
        assert answer.status_code == 200


async def test_file_and_environment_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_settings` reads them for whoever wants that."""
    (tmp_path / "repeater.toml").write_text("body_limit = 2048")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPEATER_DEV", "true")
    async with open_server(load_settings(), port=0) as server:
        assert server.node.options.insecure
