"""Questions to a back end: what it is asked, and what its answers do to a client."""

from __future__ import annotations

import base64
import hmac
import itertools
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from repeater.access.grants import ConnectionGrant
from repeater.backend.http import HTTPBackend
from repeater.backend.signature import HEADER, sign
from repeater.brokers.receipts import settled
from repeater.errors import BAD_REQUEST, EXPIRED, Disconnect
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect
from tests.application import ASKED, URL, Application, dumps, open_asking_node
from tests.conversation import members, talking
from tests.refusing import RefusedLines
from tests.signing import SECRET
from tests.signing import sign as sign_token

INTERNAL = {"error": {"code": 100, "message": "internal server error", "temporary": True}}
ALICE = {"result": {"user": "alice", "info": {"name": "Alice"}, "meta": {"plan": "gold"}}}


@pytest.fixture
def application() -> Application:
    application = Application()
    application.answers["connect"] = ALICE
    return application


async def test_connect(application: Application) -> None:
    """Without a token the back end says who it is, what it hears, and what it is told."""
    application.answers["connect"] = {
        "result": {
            "user": "alice",
            "b64info": base64.b64encode(b'{"name": "Alice"}').decode(),
            "data": {"hello": [1, 2]},
            "channels": ["news"],
            "meta": {"plan": "gold"},
        }
    }
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        reply = await talk.call("connect", data={"a": 1}, name="js", version="7")
        assert reply["connect"]["data"] == {"hello": [1, 2]}
        assert "news" in reply["connect"]["subs"]
        (asked,) = application.asked("connect")
        assert asked == {
            "client": talk.client.id, "transport": "memory", "protocol": "json",
            "encoding": "json", "user": "", "data": {"a": 1}, "name": "js", "version": "7",
        }  # fmt: skip
        assert talk.client.user == "alice"
        assert talk.client.grant.info == b'{"name": "Alice"}'
        assert "gold" not in str(reply)
        assert await talk.call("rpc", method="m") == {"rpc": {}}
        assert application.asked("rpc")[0]["meta"] == {"plan": "gold"}
        assert application.asked("rpc")[0]["user"] == "alice"


async def test_connect_with_subs(application: Application) -> None:
    """`subs` grants channels with their own info and options."""
    subs = {"news": {"info": {"x": 1}, "data": 5, "override": {"presence": {"value": True}}}}
    application.answers["connect"] = {"result": {"user": "u", "subs": subs}}
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        reply = await talk.call("connect")
        assert reply["connect"]["subs"]["news"]["data"] == 5
        present = await members(node, "news")
        assert bytes(present[talk.client.id].chan_info or b"") == b'{"x": 1}'


async def test_a_token_comes_first(application: Application) -> None:
    """Where tokens are proven, a token alone decides, and the back end is not asked."""
    from repeater.access.tokens.options import TokenOptions
    from repeater.access.tokens.verifier import open_verifier

    async with (
        open_verifier(TokenOptions(hmac_secret_key=SECRET)) as verifier,
        open_asking_node(application, verifier=verifier) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.call("connect", token=sign_token({"sub": "42"}))
        assert talk.client.user == "42"
        assert not application.requests
        async with talking(node) as other:
            assert other.client.user == "alice"


async def test_a_token_that_nobody_proves_is_the_back_ends(application: Application) -> None:
    """Without keys of ours, the back end gets the token to judge."""
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        await talk.call("connect", token="opaque")
        assert application.asked("connect")[0]["token"] == "opaque"


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ({"error": {"code": 403, "message": "no", "temporary": True}},
         {"error": {"code": 403, "message": "no", "temporary": True}}),
        ({"error": {"code": 103}}, {"error": {"code": 103, "message": "refused"}}),
        ({"result": {"user": "u", "expire_at": 1}}, {"error": {"code": 110, "message": "expired"}}),
        ({"error": {"code": 5, "message": "x"}}, INTERNAL),
        ({"error": {"code": 2_000, "message": "x"}}, INTERNAL),
        ({"disconnect": {"code": 200, "reason": "x"}}, INTERNAL),
        ({}, INTERNAL), ({"result": None}, INTERNAL), ([], INTERNAL), (None, INTERNAL),
        ({"result": {"user": 5}}, INTERNAL), ({"result": {"b64info": "!"}}, INTERNAL),
        ({"result": {"channels": "news"}}, INTERNAL), ({"result": {"expire_at": "x"}}, INTERNAL),
        (b"", INTERNAL), (b"<html>", INTERNAL), (b"\xff", INTERNAL),
        (b'{"result":{"user":"\xff"}}', INTERNAL), (b'{"result":{"info":"\xff"}}', INTERNAL),
        (b'{"result":{"info":' + b"[" * 20_000, INTERNAL), (b" " * 65_537, INTERNAL),
        (b'{"result":{}} x', INTERNAL),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_other_answers_to_connect(
    application: Application, answer: Any, reply: dict[str, Any]
) -> None:
    """Errors are passed on; what can't be understood permits nothing and is a temporary error."""
    application.answers["connect"] = answer
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        assert await talk.call("connect") == reply
        assert not talk.client.ready


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"disconnect": {"code": 4_501, "reason": "banned"}}, Disconnect(4_501, "banned")),
        ({"disconnect": {"code": 3_000}},
         Disconnect(3_000, "disconnected by the application")),
        ({"disconnect": {"code": 4_000, "reason": "x"}, "result": {}}, Disconnect(4_000, "x")),
    ],
)  # fmt: skip
async def test_disconnect(
    application: Application, answer: dict[str, Any], expected: Disconnect
) -> None:
    """The back end may end the connection; a reason is never empty; it goes before a result."""
    application.answers["rpc"] = answer
    async with open_asking_node(application) as node:
        async with talking(node, ends=True) as talk:
            await talk.say({"rpc": {"method": "m"}, "id": 2})
        assert talk.client.end == expected


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500), httpx.Response(404), httpx.Response(204),
        httpx.Response(302, headers={"location": f"{URL}rpc"}),
        httpx.Response(307, headers={"location": f"{URL}elsewhere"}),
        httpx.Response(200, headers={"content-encoding": "gzip"}, content=b"\x1f\x8b"),
        httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("odd"),
    ],
    ids=repr,
)  # fmt: skip
async def test_failures_are_temporary_errors(
    application: Application, answer: httpx.Response | Exception
) -> None:
    """Another status, a redirect or no answer: error 100, temporary; the connection goes on."""
    async with open_asking_node(application) as node, talking(node) as talk:
        application.answers["rpc"] = answer
        assert await talk.call("rpc", method="m") == INTERNAL
        assert len(application.asked("rpc")) == 1
        assert not application.asked("elsewhere")
        application.answers["rpc"] = {"result": {"data": 1}}
        assert await talk.call("rpc", method="m") == {"rpc": {"data": 1}}
        seen = node.statistics()
        assert seen.backend is not None
        counted = seen.backend.endpoints["rpc"]
        assert (counted.asked, counted.answered, counted.failed) == (2, 1, 1)


async def test_statuses_may_have_meanings(application: Application) -> None:
    """A configured status is an error or a disconnect of the configured code."""
    codes = frozenset({"404=104", "422=1000", "403=4500"})
    async with open_asking_node(application, status_codes=codes) as node:
        async with talking(node, ends=True) as talk:
            for status, code in ((404, 104), (422, 1_000)):
                application.answers["rpc"] = httpx.Response(status)
                reply = await talk.call("rpc", method="m")
                assert reply == {"error": {"code": code, "message": "refused"}}
            application.answers["rpc"] = httpx.Response(403)
            await talk.say({"rpc": {}, "id": 1})
        assert talk.client.end == Disconnect(4_500, "disconnected by the application")


async def test_rpc(application: Application) -> None:
    """A call's data goes there and back as it is; an unknown method is the back end's error."""
    async with open_asking_node(application) as node, talking(node) as talk:
        application.answers["rpc"] = b'{"result": {"data": {"n":\n 1.50}}}'
        await talk.say({"rpc": {"method": "get", "data": {"q": None}}, "id": 3})
        assert talk.transport.sent[-1] == b'{"id":3,"rpc":{"data":{"n": 1.50}}}'
        (asked,) = application.asked("rpc")
        assert (asked["method"], asked["data"]) == ("get", {"q": None})
        application.answers["rpc"] = {"error": {"code": 104, "message": "method not found"}}
        assert (await talk.call("rpc", method="x"))["error"]["code"] == 104


async def test_what_is_not_configured_is_not_available(application: Application) -> None:
    """Without an address: 108, also where a namespace leaves the matter to the back end."""
    none: dict[str, Any] = {"rpc_url": "", "subscribe_url": "", "publish_url": ""}
    async with open_asking_node(application, **none) as node, talking(node) as talk:
        for method in ("rpc", "subscribe", "publish"):
            reply = await talk.call(method, channel="c", data=1)
            assert reply["error"]["code"] == 108


async def test_subscribe(application: Application) -> None:
    """The back end permits a subscription, with its info, data and options."""
    application.answers["subscribe"] = {
        "result": {
            "info": {"role": "admin"}, "data": {"topic": "x"},
            "override": {"presence": {"value": True}},
        }
    }  # fmt: skip
    async with open_asking_node(application) as node, talking(node) as talk:
        reply = await talk.call("subscribe", channel="news", data={"why": 1})
        assert reply == {"subscribe": {"data": {"topic": "x"}}}
        (asked,) = application.asked("subscribe")
        assert (asked["channel"], asked["data"], asked["user"]) == ("news", {"why": 1}, "alice")
        present = await members(node, "news")
        assert bytes(present[talk.client.id].chan_info or b"") == b'{"role": "admin"}'


async def test_subscribe_refused(application: Application) -> None:
    """The back end's error is the client's; nothing is subscribed. An expiry in the past: 110."""
    async with open_asking_node(application) as node, talking(node) as talk:
        application.answers["subscribe"] = {"error": {"code": 403, "message": "no"}}
        reply = await talk.call("subscribe", channel="news")
        assert reply == {"error": {"code": 403, "message": "no"}}
        application.answers["subscribe"] = {"result": {"expire_at": 5}}
        assert (await talk.call("subscribe", channel="news"))["error"]["code"] == 110
        application.answers["subscribe"] = httpx.ReadError("x")
        assert await talk.call("subscribe", channel="news") == INTERNAL
        assert not node.hub.channels


async def test_order_of_permissions_to_subscribe(application: Application) -> None:
    """Private prefix and user lists come before the back end, `allow_` settings after it."""
    channel = msgspec.structs.replace(
        ASKED, allow_user_limited_channels=True, allow_subscribe_for_client=True
    )
    refused = {"error": {"code": 403, "message": "no"}}
    application.answers["subscribe"] = refused
    async with (
        open_asking_node(application, NodeOptions(channel=channel)) as node,
        talking(node) as talk,
    ):
        assert (await talk.call("subscribe", channel="$private"))["error"]["code"] == 103
        assert (await talk.call("subscribe", channel="dialog#bob"))["error"]["code"] == 103
        assert "subscribe" in await talk.call("subscribe", channel="dialog#bob,alice")
        assert not application.asked("subscribe")
        assert await talk.call("subscribe", channel="news") == refused


async def test_nobody_passes_the_back_end_by(application: Application) -> None:
    """A client's wish at connect and a plain subscriber get no channel that it decides about."""
    options = NodeOptions(channel=ASKED, insecure=True)
    async with open_asking_node(application, options) as node:
        assert not node.channels.may_subscribe("news", "alice")
        async with talking(node, connected=False) as talk:
            reply = await talk.call("connect", subs={"news": {"recover": True}})
            assert "subs" not in reply["connect"]


async def test_publish(application: Application) -> None:
    """The back end may replace the data, add tags, and keep it out of the history."""
    async with open_asking_node(application) as node, talking(node) as talk:
        await talk.call("subscribe", channel="news")
        messages = await talk.say({"publish": {"channel": "news", "data": {"a": 1}}, "id": 2})
        assert {"id": 2, "publish": {}} in messages
        application.answers["publish"] = {
            "result": {"data": {"b": 2}, "tags": {"k": "v"}, "skip_history": True}
        }
        messages = await talk.say({"publish": {"channel": "news", "data": {"a": 1}}, "id": 3})
        (push,) = [one["push"]["pub"] for one in messages if "push" in one]
        assert (push["data"], push["tags"]) == ({"b": 2}, {"k": "v"})
        assert "offset" not in push
        assert [one["data"] for one in application.asked("publish")] == [{"a": 1}, {"a": 1}]
        found, _ = await settled(node.broker.history("news", ChannelOptions()))
        assert [one.data for one in found] == [b'{"a": 1}']


async def test_publish_refused(application: Application) -> None:
    """Nothing is published that the back end does not permit; empty data does not reach it."""
    async with open_asking_node(application) as node, talking(node) as talk:
        application.answers["publish"] = {"error": {"code": 403, "message": "no"}}
        assert (await talk.call("publish", channel="news", data=1))["error"]["code"] == 403
        application.answers["publish"] = httpx.Response(500)
        assert await talk.call("publish", channel="news", data=1) == INTERNAL
        assert (await talk.call("publish", channel="news"))["error"]["code"] == 107
        assert len(application.asked("publish")) == 2
        assert (await settled(node.broker.history("news", ChannelOptions())))[0] == ()


async def test_bodies_are_signed(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a secret, each question carries the HMAC of its time, kind, path, query and body."""
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.9)
    url = f"{URL}rpc/%C3%A9?x=1"
    async with (
        open_asking_node(application, secret="s3cret", rpc_url=url) as node,
        talking(node) as talk,
    ):
        await talk.call("rpc", method="m")
        first, second = application.requests
        at = 1_700_000_000
        assert first.headers[HEADER] == sign("s3cret", at, "connect", b"/connect", first.content)
        assert second.headers[HEADER] == sign(
            "s3cret", at, "rpc", b"/rpc/%C3%A9?x=1", second.content
        )
        signed = b"1700000000\nconnect\n/connect\n" + first.content
        digest = hmac.new(b"s3cret", signed, "sha256").hexdigest()
        assert first.headers[HEADER] == f"t=1700000000,kind=connect,v1={digest}"


async def test_allowed_headers_are_forwarded(application: Application) -> None:
    """Of HTTP request and connect command only what is listed; real ones win; nothing is kept."""
    application.answers["rpc"] = httpx.Response(
        200, headers={"set-cookie": "sid=theirs"}, content=dumps({"result": {}})
    )
    async with open_asking_node(
        application,
        forward_headers=frozenset({"Cookie", "X-Real"}),
        forward_emulated_headers=frozenset({"Authorization", "X-Real"}),
    ) as node:
        async with talking(node, connected=False) as talk:
            talk.client.headers = {"x-real": "http", "cookie": "sid=mine"}
            emulated = {
                "authorization": "Bearer x", "X-Real": "faked", "Cookie": "sid=faked",
                "X-Other": "1",
            }  # fmt: skip
            await talk.call("connect", headers=emulated)
            await talk.call("rpc", method="m")
            for request in application.requests:
                assert request.headers["authorization"] == "Bearer x"
                assert request.headers["x-real"] == "http"
                assert request.headers["cookie"] == "sid=mine"
                assert "x-other" not in request.headers
        async with talking(node) as other:
            await other.call("rpc", method="m")
            assert "cookie" not in application.requests[-1].headers


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "\x00", "\x7f", "é", "\u2028"])
async def test_values_that_are_no_header_stay_behind(application: Application, value: str) -> None:
    """A value that could become a second header is not forwarded, and does no harm otherwise."""
    allowed = frozenset({"authorization"})
    async with (
        open_asking_node(application, forward_emulated_headers=allowed) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.call("connect", headers={"authorization": value})
        assert "authorization" not in application.requests[0].headers


# Slow, down, back again.


async def test_timeout(application: Application, autojump_clock: MockClock) -> None:
    """A client that gets no answer within a second gets error 100; the question is not repeated."""
    application.delays["rpc"] = 60
    async with open_asking_node(application) as node, talking(node) as talk:
        start = trio.current_time()
        assert await talk.call("rpc", method="m") == INTERNAL
        assert trio.current_time() - start == pytest.approx(1)
        seen = node.statistics().backend
        assert seen is not None
        assert seen.endpoints["rpc"].timeouts == 1


async def test_a_slow_back_end_delays_nobody_else(
    application: Application, autojump_clock: MockClock
) -> None:
    """While one client waits for an answer, others connect, subscribe and hear publications."""
    application.delays["rpc"] = 60
    answered: list[float] = []

    async def call(node: Any) -> None:
        async with talking(node) as talk:
            assert await talk.call("rpc", method="m") == INTERNAL
            answered.append(trio.current_time())

    async with open_asking_node(application, concurrency=1) as node, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call, node)
        await trio.sleep(0.1)
        start = trio.current_time()
        async with talking(node) as talk:
            await talk.call("subscribe", channel="news")
            await node.publish(Publication("news", b"1"))
            (push,) = await talk.say({})
            assert push["push"]["pub"]["data"] == 1
        assert trio.current_time() == start
        assert not answered


async def test_turns_are_bounded(application: Application, autojump_clock: MockClock) -> None:
    """No more are under way than allowed; whose turn does not come in time gets error 100."""
    application.delays["rpc"] = 0.9

    async def call(node: Any, replies: list[Any]) -> None:
        async with talking(node) as talk:
            replies.append(await talk.call("rpc", method="m"))

    replies: list[Any] = []
    async with open_asking_node(application, concurrency=2, wait_timeout=0.5) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call, node, replies)
            await trio.sleep(0.1)
            seen = node.statistics().backend
            assert seen is not None
            assert (seen.endpoints["rpc"].under_way, seen.endpoints["rpc"].waiting) == (2, 3)
            assert len(application.asked("rpc")) == 2
        assert replies.count({"rpc": {}}) == 2
        assert replies.count(INTERNAL) == 3
        seen = node.statistics().backend
        assert seen is not None
        counted = seen.endpoints["rpc"]
        assert (counted.crowded, counted.under_way, counted.waiting) == (3, 0, 0)
        assert counted.circuit == "closed"


async def test_circuit_opens_and_closes(
    application: Application, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """After three users' failures nobody is sent there; after a pause a probe is, and closes it."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_asking_node(application, circuit_failures=3))
        talks = []
        for user in ("ann", "bob", "cid"):
            application.answers["connect"] = {"result": {"user": user}}
            talks.append(await stack.enter_async_context(talking(node)))
        following = itertools.cycle(talks)

        async def call() -> Any:
            return await next(following).call("rpc", method="m")

        application.answers["rpc"] = httpx.Response(503)
        for _ in range(10):
            assert await call() == INTERNAL
        assert len(application.asked("rpc")) == 3
        async with talking(node):
            pass  # Another address has a circuit of its own.
        await trio.sleep(5)
        for _ in range(10):
            assert await call() == INTERNAL
        assert len(application.asked("rpc")) == 4
        application.answers["rpc"] = {"result": {"data": 1}}
        assert await call() == INTERNAL
        await trio.sleep(5)
        for _ in range(10):
            assert await call() == {"rpc": {"data": 1}}
        seen = node.statistics().backend
        assert seen is not None
        counted = seen.endpoints["rpc"]
        assert (counted.asked, counted.answered, counted.failed) == (31, 10, 4)
        assert (counted.refused, counted.opened, counted.circuit) == (17, 1, "closed")
        assert caplog.text.count("callbacks fail") == 1


async def test_a_refusal_is_no_failure(application: Application) -> None:
    """A client can't have the circuit opened by asking for what is refused or crashes."""
    answers = [{"error": {"code": 403, "message": "no"}}, httpx.Response(500), b"garbage"]
    async with open_asking_node(application, circuit_failures=1) as node, talking(node) as talk:
        for answer in answers:
            application.answers["rpc"] = answer
            await talk.call("rpc", method="m")
        assert len(application.asked("rpc")) == 3


async def test_only_one_probe(application: Application, autojump_clock: MockClock) -> None:
    """While a probe is under way the others fail at once; a cancelled probe leaves room for one."""
    application.answers["rpc"] = httpx.ConnectError("refused")
    async with open_asking_node(application, circuit_failures=1) as node, talking(node) as talk:
        await talk.call("rpc", method="m")
        await trio.sleep(5)
        application.answers["rpc"] = {"result": {}}
        application.delays["rpc"] = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.say, {"rpc": {"method": "probe"}, "id": 2})
            await trio.sleep(0.1)
            async with talking(node) as other:
                assert await other.call("rpc", method="m") == INTERNAL
                nursery.cancel_scope.cancel()
        assert await talk.call("rpc", method="m") == {"rpc": {}}
        assert [one["method"] for one in application.asked("rpc")] == ["m", "probe", "m"]


async def test_a_client_that_leaves_takes_its_question_along(
    application: Application, autojump_clock: MockClock
) -> None:
    """A cancelled question gives its turn back at once."""
    application.delays["rpc"] = 60
    async with open_asking_node(application, concurrency=1, timeout=50) as node:
        async with talking(node) as talk:
            with trio.move_on_after(1):
                await talk.call("rpc", method="m")
        application.delays["rpc"] = 0
        async with talking(node) as other:
            assert await other.call("rpc", method="m") == {"rpc": {}}


# Renewing.


async def test_connection_is_renewed(application: Application, autojump_clock: MockClock) -> None:
    """When it expires the back end is asked, not the client; info and meta may change."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    async with open_asking_node(application, options) as node:
        begin = int(node.unix_time())
        application.answers["connect"] = {"result": {"user": "alice", "expire_at": begin + 60}}
        application.answers["refresh"] = {
            "result": {"expire_at": begin + 200, "info": {"n": 2}, "meta": {"m": 3}}
        }
        async with talking(node, ends=True) as talk:
            client = talk.client
            assert b"expires" not in talk.transport.sent[0]
            await trio.sleep(59)
            assert not application.asked("refresh")
            await trio.sleep(5)
            (asked,) = application.asked("refresh")
            assert (asked["user"], asked["client"]) == ("alice", client.id)
            assert (client.grant.info, client.grant.meta) == (b'{"n": 2}', b'{"m": 3}')
            application.answers["refresh"] = {"result": {"expired": True}}
            await trio.sleep(1_000)
        assert client.end == EXPIRED
        assert 200 <= node.unix_time() - begin < 203
        assert len(application.asked("refresh")) == 2


async def test_renewal_is_tried_until_the_delay_is_over(
    application: Application, autojump_clock: MockClock
) -> None:
    """A back end that is down is asked again, after 5 s rising to 60; nobody is sent away."""
    asked: list[float] = []

    async def failing() -> httpx.Response:
        asked.append(trio.current_time())
        raise httpx.ConnectError("refused")

    options = NodeOptions(channel=ASKED, ping_interval=1_000_000)
    async with open_asking_node(application, options, circuit_failures=100) as node:
        begin = int(node.unix_time())
        application.answers["connect"] = {"result": {"user": "a", "expire_at": begin + 60}}
        async with talking(node) as talk:
            application.answers["refresh"] = failing
            await trio.sleep(600)
            pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
            assert 5 <= pauses[0] < 6
            assert 10 <= pauses[1] < 12
            assert all(b >= a - 1e-6 for a, b in itertools.pairwise(pauses))
            assert pauses[-1] == pytest.approx(60, abs=1)
            assert talk.client.end is None
            application.answers["refresh"] = {"result": {"expire_at": begin + 5_000}}
            await trio.sleep(61)
            assert talk.client.grant.expire_at == begin + 5_000
            await trio.sleep(3_000)
            assert talk.client.end is None
        assert not node.renewals._under_way


async def test_renewal_that_never_comes(
    application: Application, autojump_clock: MockClock
) -> None:
    """After `expiry_grace` the connection ends as expired, and nobody asks any more."""
    application.answers["refresh"] = httpx.Response(500)
    options = NodeOptions(channel=ASKED, ping_interval=1_000_000)
    async with open_asking_node(application, options) as node:
        begin = int(node.unix_time())
        application.answers["connect"] = {"result": {"user": "a", "expire_at": begin + 60}}
        ended: list[float] = []
        async with talking(node, ends=True) as talk:
            try:
                await trio.sleep(1_000)
            finally:
                ended.append(node.unix_time())
        assert talk.client.end == EXPIRED
        assert 660 <= ended[0] - begin < 663
        before = len(application.asked("refresh"))
        assert before > 5
        await trio.sleep(100)
        assert len(application.asked("refresh")) == before
        assert not node.renewals._under_way


async def test_refresh_command_where_the_back_end_is_asked(application: Application) -> None:
    """A client must not refresh what the back end renews: 3501; a subscription: 108."""
    async with open_asking_node(application) as node:
        async with talking(node, ends=True) as talk:
            await talk.call("subscribe", channel="news")
            reply = await talk.call("sub_refresh", channel="news", token="t")
            assert reply["error"]["code"] == 108
            await talk.say({"refresh": {"token": "t"}, "id": 3})
        assert talk.client.end == BAD_REQUEST


async def test_subscription_is_renewed_or_ends(
    application: Application, autojump_clock: MockClock
) -> None:
    """The same for a subscription; one that is over ends with 2501, and the connection goes on."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    async with open_asking_node(application, options) as node, talking(node) as talk:
        begin = int(node.unix_time())
        application.answers["subscribe"] = {"result": {"expire_at": begin + 60}}
        application.answers["sub_refresh"] = {"result": {"expire_at": begin + 200, "info": 5}}
        reply = await talk.call("subscribe", channel="news")
        assert reply == {"subscribe": {}}
        await trio.sleep(65)
        (asked,) = application.asked("sub_refresh")
        assert asked["channel"] == "news"
        subscription = talk.client.channels["news"]
        assert (subscription.expire_at, subscription.grant.info) == (begin + 200, b"5")
        application.answers["sub_refresh"] = {"result": {"expired": True}}
        await trio.sleep(140)
        assert b'"unsubscribe":{"code":2501' in talk.transport.sent[-1]
        assert not talk.client.channels
        assert talk.client.end is None


async def test_plain_clients_are_not_asked_about(
    application: Application, autojump_clock: MockClock
) -> None:
    """Neither at its start nor when its token ends, which ends the subscriber at once."""
    options = NodeOptions(allow_anonymous=True)
    async with open_asking_node(application, options) as node:
        transport = MemoryTransport()
        async with connect(node, transport, ["news"]) as client:
            client.identify(ConnectionGrant("ann", expire_at=int(node.unix_time()) + 10))
            client.expiry_changed()
            await trio.sleep(12)
        assert transport.closed_with == EXPIRED
        assert not application.requests


async def test_a_refresh_without_expiry_closes(
    application: Application, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """A connection would never be asked about again: 3005 and one line; a subscription lives on."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    for answer in ({}, {"expire_at": 0}):
        async with open_asking_node(application, options) as node:
            begin = int(node.unix_time())
            application.answers["connect"] = {"result": {"user": "a", "expire_at": begin + 60}}
            application.answers["subscribe"] = {"result": {"expire_at": begin + 30}}
            application.answers["sub_refresh"] = application.answers["refresh"] = {"result": answer}
            before = len(refused.all())
            async with talking(node, ends=True) as talk:
                await talk.call("subscribe", channel="news")
                await trio.sleep(40)
                assert talk.client.channels["news"].expire_at == 0
                await trio.sleep(1_000)
            assert talk.client.end == EXPIRED
            (line,) = refused.all()[before:]
            assert "what=refresh cause=callback" in line
            assert "the answer has no expire_at" in line


async def test_presence_follows_a_renewal(
    application: Application, autojump_clock: MockClock
) -> None:
    """The info of the newest answers is what presence shows, of connection and subscription."""
    channel = msgspec.structs.replace(ASKED, presence=True)
    options = NodeOptions(channel=channel, ping_interval=1_000)
    async with open_asking_node(application, options) as node:
        later = int(node.unix_time()) + 60
        application.answers["connect"] = {"result": {"user": "a", "expire_at": later, "info": 1}}
        application.answers["subscribe"] = {"result": {"expire_at": later, "info": 2}}
        renewed = {"expire_at": later + 1_000}
        application.answers["refresh"] = {"result": {**renewed, "info": 3}}
        application.answers["sub_refresh"] = {"result": {**renewed, "info": 4}}
        async with talking(node) as talk:
            await talk.call("subscribe", channel="news")

            async def shown() -> tuple[bytes, bytes]:
                (info,) = (await node.presence("news")).values()
                return bytes(info.conn_info or b""), bytes(info.chan_info or b"")

            assert await shown() == (b"1", b"2")
            await trio.sleep(65)
            assert await shown() == (b"3", b"4")


@pytest.mark.parametrize("answer", ["refresh", "sub_refresh"])
async def test_a_renewal_that_breaks_costs_one_client(
    application: Application, autojump_clock: MockClock, answer: str
) -> None:
    """An error that nobody foresaw in a renewal ends that client, and not the node."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    async with open_asking_node(application, options) as node:
        later = int(node.unix_time()) + 60
        application.answers["connect"] = {"result": {"user": "a"}}
        application.answers["subscribe"] = {"result": {}}
        application.answers[answer] = ZeroDivisionError("a mistake")
        async with talking(node, ends=False) as other:
            application.answers["connect"] = {"result": {"user": "b", "expire_at": later}}
            application.answers["subscribe"] = {"result": {"expire_at": later}}
            application.answers.setdefault("refresh", {"result": {"expire_at": later + 1_000}})
            async with talking(node, ends=True) as talk:
                await talk.call("subscribe", channel="news")
                await trio.sleep(70)
            assert node.failures.counts["renewal"] == 1
            assert await other.call("rpc", method="m") == {"rpc": {}}


# Whose questions are sent.


async def test_a_client_has_one_question_under_way(
    application: Application, autojump_clock: MockClock
) -> None:
    """Renewals of its subscriptions and its commands wait for each other; none is lost."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    under_way, most = 0, 0

    async def renewed() -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(0.01)
        under_way -= 1
        return {"result": {"expire_at": later + 1_000}}

    async with open_asking_node(application, options, wait_timeout=5) as node:
        later = int(node.unix_time()) + 60
        application.answers["connect"] = {"result": {"user": "a"}}
        application.answers["subscribe"] = {"result": {"expire_at": later}}
        application.answers["sub_refresh"] = application.answers["rpc"] = renewed
        async with talking(node, ends=False) as talk:
            for number in range(100):
                await talk.call("subscribe", channel=f"c{number}")
            await trio.sleep(60)
            assert "rpc" in await talk.ask(rpc={"method": "m"})
            await trio.sleep(5)
            assert most == 1
            assert {one.expire_at for one in talk.client.channels.values()} == {later + 1_000}


async def test_one_users_failures_open_no_circuit(
    application: Application, autojump_clock: MockClock
) -> None:
    """However many connections a user has: others are asked about as ever."""
    application.answers["rpc"] = httpx.Response(503)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_asking_node(application))
        application.answers["connect"] = {"result": {"user": "mallory"}}
        for _ in range(10):
            talk = await stack.enter_async_context(talking(node))
            assert await talk.call("rpc", method="m") == INTERNAL
        application.answers["connect"] = {"result": {"user": "alice"}}
        application.answers["rpc"] = {"result": {"data": 1}}
        alice = await stack.enter_async_context(talking(node))
        assert await alice.call("rpc", method="m") == {"rpc": {"data": 1}}


async def test_an_open_circuit_is_probed_by_others(
    application: Application, autojump_clock: MockClock
) -> None:
    """Who provokes failures cannot keep it open by being every probe: others need not wait."""
    answers = {"slow": httpx.Response(504), "quick": {"result": {"data": 1}}}

    async def answer() -> Any:
        return answers[application.asked("rpc")[-1]["method"]]

    application.answers["rpc"] = answer
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_asking_node(application, circuit_failures=1))
        application.answers["connect"] = {"result": {"user": "mallory"}}
        mallory = await stack.enter_async_context(talking(node))
        application.answers["connect"] = {"result": {"user": "alice"}}
        alice = await stack.enter_async_context(talking(node))
        assert await mallory.call("rpc", method="slow") == INTERNAL
        assert await alice.call("rpc", method="quick") == INTERNAL
        await trio.sleep(5)
        assert await mallory.call("rpc", method="slow") == INTERNAL
        assert await mallory.call("rpc", method="slow") == INTERNAL
        assert len(application.asked("rpc")) == 2
        assert await alice.call("rpc", method="quick") == {"rpc": {"data": 1}}


async def test_who_waited_for_a_turn_asks_the_circuit_again(
    application: Application, autojump_clock: MockClock
) -> None:
    """A question that got its turn because the one before failed is not sent to a back end down."""
    application.answers["rpc"] = httpx.Response(503)
    application.delays["rpc"] = 0.5
    replies: list[Any] = []
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            open_asking_node(application, circuit_failures=1, concurrency=1)
        )
        talks = []
        for user in ("ann", "bob"):
            application.answers["connect"] = {"result": {"user": user}}
            talks.append(await stack.enter_async_context(talking(node)))
        async with trio.open_nursery() as nursery:
            for talk in talks:

                async def call(talk: Any = talk) -> None:
                    replies.append(await talk.ask(rpc={"method": "m"}))

                nursery.start_soon(call)
        assert [one["error"]["code"] for one in replies] == [100, 100]
        assert len(application.asked("rpc")) == 1


@pytest.mark.parametrize("who", ["user", "address"])
async def test_one_party_does_not_hold_every_turn(
    application: Application, autojump_clock: MockClock, who: str
) -> None:
    """A hundred slow questions of one user, or of one address's strangers, shut out nobody."""
    application.delays["rpc"] = 0.9
    options = NodeOptions(channel=ASKED, allow_anonymous=True)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            open_asking_node(application, options, connect_url="", concurrency=8)
        )

        async def connected(user: str, address: str) -> Any:
            talk = await stack.enter_async_context(talking(node))
            grant = ConnectionGrant(user)
            node.registry.identify(talk.client, grant)
            talk.transport.address = lambda: address  # type: ignore[method-assign]
            return talk

        attackers = [
            await connected("mallory", f"10.0.0.{number}:80")
            if who == "user"
            else await connected("", f"[2001:db8::{number}]:80")
            for number in range(100)
        ]
        good = [
            await connected("alice", "10.1.0.1:80"),
            await connected("", "10.1.0.1:81"),
        ]
        async with trio.open_nursery() as nursery:
            for one in attackers:
                nursery.start_soon(partial(one.ask, rpc={"method": "m"}))
            await trio.sleep(0.1)
            seen = node.statistics().backend
            assert seen is not None
            assert (seen.endpoints["rpc"].under_way, seen.endpoints["rpc"].waiting) == (6, 94)
            for one in good:
                assert await one.ask(rpc={"method": "m"}) == {"id": one.ids, "rpc": {}}
            nursery.cancel_scope.cancel()
        seen = node.statistics().backend
        assert seen is not None
        assert (seen.endpoints["rpc"].under_way, seen.endpoints["rpc"].waiting) == (0, 0)
        backend = node.backend
        assert isinstance(backend, HTTPBackend)
        assert not backend._endpoints["rpc"]._turns._waiting
        assert not backend._endpoints["rpc"]._turns._held
        assert not backend._endpoints["rpc"]._lines


async def test_headers_of_a_command_are_bounded(application: Application) -> None:
    """Forwarded headers of `connect` above 16 KiB are error 107; other headers do not count."""
    async with open_asking_node(application, forward_emulated_headers=frozenset({"x-a"})) as node:
        async with talking(node, connected=False) as talk:
            reply = await talk.call("connect", headers={"X-A": "a" * 16_384})
            assert reply["error"]["code"] == 107
        async with talking(node, connected=False) as talk:
            headers = {"X-A": "a" * 16_000, "X-B": "b" * 20_000}
            assert "connect" in await talk.call("connect", headers=headers)


async def test_failures_in_turn_with_answers_are_one_line_a_second(
    application: Application, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A client may know which question fails, and ask that and another in turn."""
    with caplog.at_level(logging.WARNING, "repeater"):
        async with open_asking_node(application) as node, talking(node) as talk:
            for _ in range(20):
                answers: tuple[Any, ...] = (b"not JSON", {"result": {}})
                for answer in answers:
                    application.answers["rpc"] = answer
                    await talk.call("rpc", method="x")
            assert len(caplog.records) == 1
            await trio.sleep(1)
            application.answers["rpc"] = b"not JSON"
            await talk.call("rpc", method="x")
    assert len(caplog.records) == 2
