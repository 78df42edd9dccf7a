"""A program's own functions as the back end: what they are asked, and what their mistakes cost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import (
    Caller,
    ConnectionGrant,
    PublicationGrant,
    Renewal,
    SubscriptionGrant,
)
from repeater.backend.functions import BackendFunctions
from repeater.config import ConfigError, ProgramSettings, load_settings
from repeater.errors import (
    EXPIRED,
    FORCE_DISCONNECT,
    ApplicationError,
    BrokerError,
    Disconnect,
    DisconnectError,
    ErrorCode,
    IntakeFullError,
    ReplyError,
)
from repeater.node import open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.commands import ConnectRequest
from repeater.serving.application import create_app
from repeater.serving.server import open_server
from repeater.subscriber import open_subscriber
from tests.application import ASKED
from tests.conversation import talking

OPTIONS = NodeOptions(channel=ASKED)
INTERNAL = {"error": {"code": 100, "message": "internal server error", "temporary": True}}


async def ann(_caller: Caller, request: ConnectRequest) -> ConnectionGrant:
    """Everybody is ann."""
    return ConnectionGrant("ann", data=bytes(request.data), meta=b'{"plan":"gold"}')


async def allow(_caller: Caller, channel: str, _data: bytes) -> SubscriptionGrant:
    return SubscriptionGrant(info=json.dumps({"in": channel}).encode())


# ---- what they are asked


async def test_each_kind_of_question() -> None:
    """A function gets the caller and what belongs to the question; its grant is carried out."""
    asked: list[object] = []

    async def subscribe(caller: Caller, channel: str, data: bytes) -> SubscriptionGrant:
        asked.append((caller.user, caller.meta, channel, data))
        return SubscriptionGrant(data=b'{"hello": 1}')

    async def publish(caller: Caller, channel: str, data: bytes) -> PublicationGrant:
        asked.append((caller.user, channel, data))
        return PublicationGrant(b'{"rewritten": true}', tags={"by": caller.user})

    async def rpc(caller: Caller, method: str, data: bytes) -> object:
        asked.append((caller.user, method, data))
        return {"sum": sum(json.loads(data))}

    backend = BackendFunctions(connect=ann, subscribe=subscribe, publish=publish, rpc=rpc)
    async with (
        open_node(OPTIONS, backend=backend) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        assert (await talk.connect(data={"a": 1}))["data"] == {"a": 1}
        assert (await talk.subscribe("c", data=[2]))["data"] == {"hello": 1}
        assert await talk.call("rpc", method="add", data=[1, 2]) == {"rpc": {"data": {"sum": 3}}}
        assert await talk.ask(publish={"channel": "c", "data": 5}) is not None
        (push,) = await talk.pushes("pub")
        assert push["data"] == {"rewritten": True}
        assert push["tags"] == {"by": "ann"}
        assert asked == [
            ("ann", b'{"plan":"gold"}', "c", b"[2]"),
            ("ann", "add", b"[1, 2]"),
            ("ann", "c", b"5"),
        ]
        seen = backend.statistics().endpoints
        assert set(seen) == backend.kinds == {"connect", "subscribe", "publish", "rpc"}
        for one in seen.values():
            assert (one.asked, one.answered, one.failed, one.under_way) == (1, 1, 0, 0)
        assert node.statistics().backend == backend.statistics()


@pytest.mark.parametrize(
    ("result", "reply"),
    [
        (None, {}),
        ({"a": "ä"}, {"data": {"a": "ä"}}),
        (0, {"data": 0}),
        ("text", {"data": "text"}),
        (b"[1]", {"data": [1]}),
        (b"", {}),
    ],
)
async def test_what_a_call_returns(result: object, reply: object) -> None:
    """Anything that JSON can write; bytes are JSON already; None is no result."""

    async def rpc(*_: object) -> object:
        return result

    backend = BackendFunctions(connect=ann, rpc=rpc)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        assert await talk.call("rpc", method="m") == {"rpc": reply}


async def test_only_what_has_a_function_is_asked() -> None:
    """Other commands are answered as without a back end."""
    async with (
        open_node(OPTIONS, backend=BackendFunctions(connect=ann)) as node,
        talking(node, ends=False) as talk,
    ):
        assert (await talk.subscribe())["code"] == 108
        assert (await talk.call("rpc", method="m"))["error"]["code"] == 108
        assert await talk.call("publish", channel="c", data=1) != {"publish": {}}


async def test_renewals(autojump_clock: MockClock) -> None:
    """`refresh` and `sub_refresh` are asked at the expiry; one that fails is asked again."""
    asked: list[str] = []

    async def connect(_caller: Caller, _request: ConnectRequest) -> ConnectionGrant:
        return ConnectionGrant("ann", expire_at=int(node.unix_time()) + 100)

    async def subscribe(*_: object) -> SubscriptionGrant:
        return SubscriptionGrant(expire_at=int(node.unix_time()) + 50)

    async def refresh(caller: Caller) -> Renewal:
        asked.append("refresh")
        return Renewal(expired=True)

    async def sub_refresh(caller: Caller, channel: str) -> Renewal:
        asked.append(channel)
        if len(asked) == 1:
            raise ZeroDivisionError
        return Renewal(expire_at=int(node.unix_time()) + 1_000)

    backend = BackendFunctions(
        connect=connect, subscribe=subscribe, refresh=refresh, sub_refresh=sub_refresh
    )
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=True) as talk:
        await talk.subscribe("c")
        await trio.sleep(90)
        assert asked == ["c", "c"]
        assert talk.client.channels["c"].expire_at > node.unix_time()
        await trio.sleep(20)
        assert asked == ["c", "c", "refresh"]
        assert talk.client.end == EXPIRED


async def test_headers() -> None:
    """Those that the program wants, in whatever case it names them."""
    backend = BackendFunctions(
        connect=ann, forward_headers=["Cookie"], forward_emulated_headers={"X-Me"}
    )
    assert backend.forward_headers == {"cookie"}
    assert backend.forward_emulated_headers == {"x-me"}


# ---- refusals


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (
            ReplyError(ErrorCode.PERMISSION_DENIED, "no entry"),
            {"code": 103, "message": "no entry"},
        ),
        (
            ApplicationError(1_001, "not paid", temporary=False),
            {"code": 1_001, "message": "not paid"},
        ),
    ],
    ids=["reply", "application"],
)
async def test_a_function_refuses(error: ReplyError, reply: object) -> None:
    """The client gets the function's error; the log says that the application refused."""

    async def subscribe(*_: object) -> SubscriptionGrant:
        raise error

    backend = BackendFunctions(connect=ann, subscribe=subscribe)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        for _ in range(2):
            assert await talk.subscribe() == reply
        assert node.statistics().refusals == {"application": 2}
        seen = backend.statistics().endpoints["subscribe"]
        assert (seen.answered, seen.failed) == (2, 0)


async def test_a_function_ends_the_connection() -> None:
    """By a code of its own, or one of ours."""
    ends = [Disconnect(4_500, "go away"), FORCE_DISCONNECT]

    async def rpc(*_: object) -> object:
        raise DisconnectError(ends[0])

    backend = BackendFunctions(connect=ann, rpc=rpc)
    async with open_node(OPTIONS, backend=backend) as node:
        while ends:
            async with talking(node, ends=True) as talk:
                await talk.ask(rpc={"method": "m"})
                assert talk.client.end == ends.pop(0)
        assert node.statistics().refusals == {"application": 2}


# ---- mistakes


class Unprintable:
    """No JSON."""


@pytest.mark.parametrize(
    "result",
    [None, True, ConnectionGrant("ann"), ZeroDivisionError(), trio.TooSlowError(), KeyError("k")],
    ids=repr,
)
async def test_a_mistake_costs_one_command(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An error, or another thing than a grant, is error 100; it is logged once a second."""

    async def subscribe(_caller: Caller, channel: str, _data: bytes) -> SubscriptionGrant:
        if channel == "good":
            return SubscriptionGrant()
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]

    backend = BackendFunctions(connect=ann, subscribe=subscribe)
    async with (
        open_node(OPTIONS, backend=backend) as node,
        talking(node, ends=False) as talk,
        talking(node, ends=False) as other,
    ):
        with caplog.at_level(logging.ERROR, "repeater"):
            for _ in range(3):
                assert await talk.subscribe() == INTERNAL["error"]
        assert "code" not in await talk.subscribe("good")
        assert "code" not in await other.subscribe("good")
        seen = backend.statistics().endpoints["subscribe"]
        assert (seen.asked, seen.answered, seen.failed, seen.timeouts) == (5, 2, 3, 0)
    (line,) = caplog.records
    assert "the function subscribe" in line.getMessage()


@pytest.mark.parametrize(
    "result", [Unprintable(), float("nan"), b"no json", {1, 2}, [Unprintable()]], ids=type
)
async def test_a_result_that_is_no_json(result: object, caplog: pytest.LogCaptureFixture) -> None:
    """It is the function's mistake, too."""

    async def rpc(*_: object) -> object:
        return result

    backend = BackendFunctions(connect=ann, rpc=rpc)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        assert await talk.call("rpc", method="m") == INTERNAL
        assert backend.statistics().endpoints["rpc"].failed == 1
    assert "the function rpc" in caplog.text


@pytest.mark.parametrize(
    "grant",
    [PublicationGrant({"a": 1}), PublicationGrant(tags={"a": 1}), None],  # type: ignore[arg-type, dict-item]
    ids=repr,
)
async def test_a_publication_that_cannot_be(grant: object) -> None:
    """It is the function's mistake, and nobody hears of it."""

    async def publish(*_: object) -> PublicationGrant:
        return grant  # type: ignore[return-value]

    backend = BackendFunctions(connect=ann, publish=publish)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        assert await talk.call("publish", channel="c", data=1) == INTERNAL
        assert backend.statistics().endpoints["publish"].failed == 1
        assert node.statistics().repeater.publications == 0


async def test_a_cleanup_that_fails_does_not_end_the_node(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A function is cancelled with its node, and one of its tasks fails then: logged, no more."""

    async def fail_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("boom")

    async def connect(*_: object) -> ConnectionGrant:
        return ConnectionGrant("ann", expire_at=int(node.unix_time()) + 10)

    async def refresh(*_: object) -> Renewal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            await trio.sleep_forever()
        raise AssertionError

    backend = BackendFunctions(connect=connect, refresh=refresh, timeout=100)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False):
        await trio.sleep(12)
        assert backend.statistics().endpoints["refresh"].under_way == 1
    assert backend.statistics().endpoints["refresh"].failed == 1
    assert "ValueError: boom" in caplog.text


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"user": 5}, "user must be text, not a number"),
        ({"expire_at": "x"}, "expire_at must be a whole number, not text"),
        ({"channels": ["a"]}, "channels must be an object, not a list"),
        ({"channels": {"a": None}}, "channels[...] must be an object, not null"),
    ],
)
async def test_a_grant_with_wrong_fields(
    fields: dict[str, Any], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """User 5 is not user "5": the log names the field, and the client is not connected."""

    async def connect(*_: object) -> ConnectionGrant:
        return ConnectionGrant(**fields)

    backend = BackendFunctions(connect=connect)
    async with (
        open_node(OPTIONS, backend=backend) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        assert await talk.call("connect") == INTERNAL
        assert backend.statistics().endpoints["connect"].failed == 1
    assert f"a ConnectionGrant: the field {fault}" in caplog.text


@pytest.mark.parametrize("error", [BrokerError("down"), IntakeFullError()], ids=repr)
async def test_an_engine_without_room_is_nobodys_mistake(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What publishing raises in a function is error 100, without a traceback."""

    async def rpc(*_: object) -> object:
        raise error

    backend = BackendFunctions(connect=ann, rpc=rpc)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        assert await talk.call("rpc", method="m") == INTERNAL
        assert node.statistics().refusals["callback"] == 1
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_a_function_that_never_returns(autojump_clock: MockClock) -> None:
    """It is cancelled after the timeout, and the client gets error 100."""
    ended: list[float] = []

    async def rpc(*_: object) -> object:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    backend = BackendFunctions(connect=ann, rpc=rpc, timeout=2)
    async with open_node(OPTIONS, backend=backend) as node, talking(node, ends=False) as talk:
        begun = trio.current_time()
        assert await talk.call("rpc", method="m") == INTERNAL
        assert ended == [begun + 2]
        seen = backend.statistics().endpoints["rpc"]
        assert (seen.failed, seen.timeouts, seen.under_way) == (1, 1, 0)


async def test_a_client_that_leaves_meanwhile() -> None:
    """Its question is cancelled, which is no failure."""

    async def rpc(*_: object) -> object:
        await trio.sleep_forever()

    backend = BackendFunctions(connect=ann, rpc=rpc)
    async with (
        open_node(OPTIONS, backend=backend) as node,
        talking(node, ends=False) as talk,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(talk.session.receive, talk.command(rpc={"method": "m"}))
        await wait_all_tasks_blocked()
        assert backend.statistics().endpoints["rpc"].under_way == 1
        nursery.cancel_scope.cancel()
    seen = backend.statistics().endpoints["rpc"]
    assert (seen.asked, seen.failed, seen.under_way) == (1, 0, 0)


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_timeout_is_above_0(timeout: float) -> None:
    """Any other one would refuse everything."""
    with pytest.raises(ValueError, match="timeout"):
        BackendFunctions(timeout=timeout)


# ---- with a server


async def test_with_a_server() -> None:
    """Options that leave questions to a back end need no URL then, and without one they do."""
    options = NodeOptions(namespaces={"chat": ChannelOptions(subscribe_proxy_enabled=True)})
    backend = BackendFunctions(connect=ann, subscribe=allow)
    async with open_server(options, backend=backend, port=0) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with open_subscriber(url, ["chat:1"]) as events:
            await server.node.publish("chat:1", 5)
            assert (await anext(events)).data == 5
        assert backend.statistics().endpoints["subscribe"].answered == 1
        assert server.node.backend is backend
    with pytest.raises(ConfigError, match="subscribe_url"):
        async with open_server(options, port=0):
            raise AssertionError
    with pytest.raises(ConfigError, match="subscribe_url"):
        async with open_server(options, backend=None, port=0):
            raise AssertionError
    async with open_node(options, backend=backend) as node:
        create_app(node)


async def test_with_settings_of_a_file(tmp_path: Path) -> None:
    """`ProgramSettings` are read like others, and reloaded like others."""
    file = tmp_path / "repeater.toml"
    file.write_text("port = 0\n[namespaces.chat]\nsubscribe_proxy_enabled = true\n")
    with pytest.raises(ConfigError, match="needs subscribe_url"):
        load_settings(file)
    backend = BackendFunctions(connect=ann, subscribe=allow)
    settings = load_settings(file, ProgramSettings)
    async with open_server(settings, backend=backend) as server:
        file.write_text(file.read_text() + "history_size = 5\n")
        changes = await server.reload(load_settings(file, ProgramSettings))
        assert changes.live == ("namespaces.chat.history_size",)
        async with talking(server.node, ends=False) as talk:
            assert "code" not in await talk.subscribe("chat:1")
