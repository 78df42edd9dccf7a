"""Connect: whose connection it is, what it hears without asking, and how that expires."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access.grants import (
    ConnectionGrant,
    Overrides,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenExpiredError,
    TokenInvalidError,
)
from repeater.brokers.memory_presence import MemoryPresence
from repeater.errors import (
    BAD_REQUEST,
    CHANNEL_LIMIT,
    EXPIRED,
    INSUFFICIENT_STATE,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    SERVER_ERROR,
    TOO_MANY_REQUESTS,
    BrokerError,
    Disconnect,
    ErrorCode,
    ReplyError,
)
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON, CENTRIFUGE_JSON_ASGI, Codec
from repeater.publication import Publication
from repeater.testing import MemoryTransport, UnixClock, open_test_node
from tests.brokers import TestBroker
from tests.conversation import FakeVerifier, members, talking
from tests.engines import FailingPresence
from tests.refusing import RefusedLines, usual

NOW = 1_900_000_000
ANN = ConnectionGrant("ann", info=b'{"name":"Ann"}', data=b'{"hello":1}')
QUIET = NodeOptions(ping_interval=1e6)


def knowing(grant: ConnectionGrant | Exception = ANN, **others: ConnectionGrant) -> FakeVerifier:
    return FakeVerifier(connections={"t": grant, **others})


def started_at(node: Node, unix_time: float = NOW) -> None:
    """Have the node's clock show this time now."""
    assert isinstance(node._now, UnixClock)
    node._now.step(unix_time - node._now())


async def end_of_connect(
    options: NodeOptions, token: str = "", verifier: FakeVerifier | None = None, **more: Any
) -> Disconnect | None:
    """What a connect ends with, nothing having been sent."""
    async with open_node(options, verifier=verifier) as node:
        async with talking(node, connected=False) as talk:
            await talk.connect(token, **more)
        assert not talk.transport.sent
        assert not node.registry.users
        return usual(talk.transport.closed_with)


class TestAuthentication:
    """Section 3.3, decision by decision."""

    async def test_token_says_who_it_is(self) -> None:
        """The user is known by its token; data goes into the result, info to the others."""
        async with open_node(verifier=knowing()) as node:
            async with talking(node, connected=False) as talk:
                result = await talk.connect("t")
                assert result["client"] == talk.client.id
                assert result["data"] == {"hello": 1}
                assert result["version"]
                assert (result["ping"], result["pong"]) == (25, True)
                assert "expires" not in result
                assert "ttl" not in result
                assert talk.client.user == "ann"
                assert set(node.registry.users) == {"ann"}
            assert not node.registry.users

    @pytest.mark.parametrize(
        ("known", "code", "end"),
        [
            (TokenExpiredError(), 109, EXPIRED),
            (BrokerError("no keys"), 100, SERVER_ERROR),
            (ConnectionGrant("ann", expire_at=1), 109, EXPIRED),
            (ReplyError(ErrorCode.TOO_MANY_REQUESTS), 111, TOO_MANY_REQUESTS),
            (ReplyError(ErrorCode.PERMISSION_DENIED), 103, PERMISSION_DENIED),
        ],
    )
    async def test_error_is_a_reply(
        self,
        known: ConnectionGrant | Exception,
        code: int,
        end: Disconnect,
        refused: RefusedLines,
    ) -> None:
        """Expired 109, also by `expire_at`; unavailable keys 100; more ends it as the reply said.

        Only who may not connect (103) is ended for good. The failure is logged once, and what was
        sent behind it is no failure of its own.
        """
        async with open_node(verifier=knowing(known)) as node:
            async with talking(node, connected=False) as talk:
                error = await talk.connect("t")
                assert error["code"] == code
                assert error["message"]
                assert error.get("temporary", False) is (code in (100, 111))
                assert talk.client.end is None
                await talk.subscribe()
            assert talk.transport.closed_with == end
        assert "what=connect" in refused.one()

    @pytest.mark.parametrize(
        ("options", "known", "end"),
        [
            (NodeOptions(), TokenInvalidError(), INVALID_TOKEN),
            (NodeOptions(), ConnectionGrant(""), PERMISSION_DENIED),
            (
                NodeOptions(channel_limit=0),
                ConnectionGrant("a", channels={"c": SubscriptionGrant()}),
                CHANNEL_LIMIT,
            ),
        ],
    )
    async def test_fault_is_a_disconnect(
        self, options: NodeOptions, known: ConnectionGrant | Exception, end: Disconnect
    ) -> None:
        """Invalid 3500, anonymous 3507, too many channels 3505; no reply."""
        assert await end_of_connect(options, "t", knowing(known)) == end

    async def test_no_credentials(self) -> None:
        """No token where one is needed: 3501. A token where nothing verifies it: 3500."""
        assert await end_of_connect(NodeOptions()) == BAD_REQUEST
        assert await end_of_connect(NodeOptions(allow_anonymous=True), "t") == INVALID_TOKEN

    async def test_anonymous_where_allowed(self) -> None:
        """Without a token, or with one of the empty user, where anonymous clients may connect."""
        options = NodeOptions(allow_anonymous=True)
        async with open_node(options, verifier=knowing(ConnectionGrant())) as node:
            for token in ("", "t"):
                async with talking(node, connected=False) as talk:
                    assert (await talk.connect(token))["client"]

    async def test_user_known_by_the_transport(self) -> None:
        """A connection whose handler knows its user needs no token."""
        async with open_node() as node, talking(node, connected=False) as talk:
            talk.client.grant = ConnectionGrant("ann")
            assert (await talk.connect())["client"]
            assert set(node.registry.users) == {"ann"}

    async def test_second_connect(self) -> None:
        """Connecting twice ends the connection with 3501."""
        async with open_test_node() as node:
            async with talking(node) as talk:
                await talk.connect()
            assert usual(talk.transport.closed_with) == BAD_REQUEST

    async def test_ended_while_its_token_is_verified(self) -> None:
        """A client that is ended in the turn in which its token is verified is nobody."""

        class Waiting(FakeVerifier):
            def __init__(self) -> None:
                super().__init__()
                self.answered = trio.Event()

            async def verify_connection(self, token: str) -> ConnectionGrant:
                await self.answered.wait()
                return ConnectionGrant("ann", channels={"c": SubscriptionGrant()})

        verifier = Waiting()
        async with open_node(verifier=verifier) as node, trio.open_nursery() as nursery:

            async def live() -> None:
                async with talking(node, connected=False) as talk:
                    await talk.connect("t")

            nursery.start_soon(live)
            await wait_all_tasks_blocked()
            (client,) = node.registry.clients
            verifier.answered.set()
            client.disconnect(SERVER_ERROR)
            await wait_all_tasks_blocked()
            assert not node.registry.users
            assert not node.hub.channels


class TestExpiry:
    """Connections that expire, and their refresh (protocol, sections 4.8 and 13)."""

    async def test_expires(self, autojump_clock: MockClock) -> None:
        """25 s past its expiry a connection that was not refreshed ends with 3005."""
        verifier = knowing(ConnectionGrant("ann", expire_at=NOW + 60))
        async with open_node(QUIET, verifier=verifier) as node:
            started_at(node)
            async with talking(node, connected=False) as talk:
                result = await talk.connect("t")
                assert result["expires"] is True
                assert result["ttl"] in (59, 60)
                await trio.sleep(84)
                assert talk.client.end is None
                await trio.sleep(3)
            assert usual(talk.transport.closed_with) == EXPIRED

    async def test_refreshed(self, autojump_clock: MockClock) -> None:
        """`refresh` moves the expiry, and without one the connection never ends."""
        verifier = knowing(
            ConnectionGrant("ann", expire_at=NOW + 60),
            later=ConnectionGrant("ann", expire_at=NOW + 200),
            never=ConnectionGrant("ann"),
        )
        async with open_node(QUIET, verifier=verifier) as node:
            started_at(node)
            async with talking(node, connected=False) as talk:
                await talk.connect("t")
                await trio.sleep(80)
                reply = await talk.ask(refresh={"token": "later"})
                assert reply["refresh"] == {"expires": True, "ttl": 120}
                await trio.sleep(140)
                assert talk.client.end is None
                assert (await talk.ask(refresh={"token": "never"}))["refresh"] == {}
                await trio.sleep(1_000)
                assert talk.client.end is None

    async def test_last_second(self) -> None:
        """A fraction of a second left is a `ttl` of 1, since 0 would be left out."""
        verifier = knowing(ConnectionGrant("ann", expire_at=NOW + 1))
        async with open_node(verifier=verifier) as node:
            started_at(node, NOW + 0.5)
            async with talking(node, connected=False) as talk:
                assert (await talk.connect("t"))["ttl"] == 1

    @pytest.mark.parametrize(
        ("token", "end"),
        [
            ("", BAD_REQUEST),
            ("invalid", INVALID_TOKEN),
            ("bob", INVALID_TOKEN),
            ("expired", EXPIRED),
            ("past", EXPIRED),
            ("more channels", INSUFFICIENT_STATE),
        ],
    )
    async def test_bad_refresh(self, token: str, end: Disconnect) -> None:
        """No token 3501, invalid or another user's 3500, expired 3005, other channels 3010."""
        verifier = FakeVerifier(
            connections={
                "t": ANN,
                "invalid": TokenInvalidError(),
                "bob": ConnectionGrant("bob"),
                "expired": TokenExpiredError(),
                "past": ConnectionGrant("ann", expire_at=1),
                "more channels": ConnectionGrant("ann", channels={"c": SubscriptionGrant()}),
            }
        )
        async with open_node(verifier=verifier) as node:
            async with talking(node, connected=False) as talk:
                await talk.connect("t")
                await talk.ask(refresh={"token": token})
            assert usual(talk.transport.closed_with) == end

    async def test_keys_that_can_not_be_had(self) -> None:
        """A refresh without available keys is error 100, temporary; the connection goes on."""
        verifier = FakeVerifier(connections={"t": ANN, "later": BrokerError("no keys")})
        async with open_node(verifier=verifier) as node, talking(node, connected=False) as talk:
            await talk.connect("t")
            reply = await talk.ask(refresh={"token": "later"})
            assert reply["error"]["code"] == 100
            assert reply["error"]["temporary"] is True

    async def test_stale_without_connect(self, autojump_clock: MockClock) -> None:
        """Without a `connect` within 10 s: 3502."""
        async with open_test_node() as node:
            async with talking(node, connected=False) as talk:
                await trio.sleep(12)
            assert usual(talk.transport.closed_with) == Disconnect(3502, "stale")


class TestServerSide:
    """What a connection hears without asking (sections 3.3 and 9.6)."""

    async def test_granted(self) -> None:
        """Channels of the grant are in the result and heard; data and overrides count."""
        grant = ConnectionGrant(
            "ann",
            channels={
                "news": SubscriptionGrant(data=b"[1]"),
                "$bare": SubscriptionGrant(overrides=Overrides(presence=True)),
            },
        )
        async with (
            open_node(verifier=knowing(grant)) as node,
            talking(node, connected=False) as talk,
        ):
            subs = (await talk.connect("t"))["subs"]
            assert set(subs) == {"news", "$bare"}
            assert subs["news"]["data"] == [1]
            # Recovery is granted where it is allowed, and it is not here.
            assert "recoverable" not in subs["news"]
            assert list(await members(node, "$bare")) == [talk.client.id]
            assert not await members(node, "news")
            await node.publish(Publication("news", b"1"))
            await talk.news()
            await node.publish(Publication("$bare", b"2"))
            assert await talk.data() == [2]

    @pytest.mark.parametrize("forced", [True, False])
    async def test_forced_recovery_by_override(self, forced: bool) -> None:
        """An override turns recovery on, or off where the channel forces it."""
        grant = SubscriptionGrant(overrides=Overrides(force_recovery=forced))
        options = NodeOptions(channel=ChannelOptions(force_recovery=not forced))
        verifier = knowing(ConnectionGrant("ann", channels={"c": grant}))
        async with (
            open_node(options, verifier=verifier) as node,
            talking(node, connected=False) as talk,
        ):
            sub = (await talk.connect("t"))["subs"]["c"]
            assert sub.get("recoverable", False) is forced

    @pytest.mark.parametrize(("namespace", "name"), [("", "#ann"), ("me", "me:#ann")])
    async def test_personal_channel(self, namespace: str, name: str) -> None:
        """A user hears its personal channel; an anonymous connection has none."""
        options = NodeOptions(
            allow_anonymous=True,
            user_personal_channel=True,
            personal_channel_namespace=namespace,
            namespaces={"me": ChannelOptions()},
        )
        async with open_node(options, verifier=knowing()) as node:
            async with talking(node, connected=False) as talk:
                assert list((await talk.connect("t"))["subs"]) == [name]
            async with talking(node, connected=False) as talk:
                assert "subs" not in await talk.connect()

    async def test_named_by_the_client(self) -> None:
        """Channels that the client names are heard where it may, and left out where not."""
        options = NodeOptions(
            namespaces={
                "open": ChannelOptions(allow_subscribe_for_client=True, allow_recovery=True)
            }
        )
        async with (
            open_node(options, verifier=knowing()) as node,
            talking(node, connected=False) as talk,
        ):
            result = await talk.connect("t", subs={"open:c": {}, "closed": {}, "$private": {}})
            assert set(result["subs"]) == {"open:c"}
            assert result["subs"]["open:c"]["recoverable"] is True

    @pytest.mark.parametrize("name", ["unknown:c", "", "\u00e9", "x" * 256])
    async def test_names_that_cannot_be(self, name: str) -> None:
        """A name that cannot be, of the client or of its token, is left out; the rest is heard.

        A client names what it heard before, which a reload may have removed since.
        """
        granted = {"news": SubscriptionGrant(), name: SubscriptionGrant()}
        verifier = knowing(ConnectionGrant("ann", channels=granted))
        async with open_test_node(verifier=verifier) as node:
            async with talking(node, connected=False) as talk:
                assert set((await talk.connect(subs={name: {}, "c": {}}))["subs"]) == {"c"}
            async with talking(node, connected=False, ends=False) as talk:
                assert set((await talk.connect("t"))["subs"]) == {"news"}

    async def test_already_subscribed(self) -> None:
        """What the server subscribed can't be subscribed again: 105."""
        async with open_test_node() as node, talking(node, connected=False) as talk:
            await talk.connect(subs={"c": {}})
            assert (await talk.subscribe())["code"] == 105

    async def test_recovery(self) -> None:
        """Positions in the request bring what was missed, channel by channel."""
        async with open_test_node() as node, talking(node, connected=False) as talk:
            for number in (1, 2, 3):
                top = await node.publish(Publication("a", b"%d" % number))
                await node.publish(Publication("b", b"%d" % number))
            assert top is not None
            subs = (
                await talk.connect(
                    subs={
                        "a": {"recover": True, "offset": 1, "epoch": top.epoch},
                        "b": {"recover": True, "offset": 1, "epoch": "another"},
                        "d": {},
                    }
                )
            )["subs"]
            assert [one["data"] for one in subs["a"]["publications"]] == [2, 3]
            assert (subs["a"]["offset"], subs["a"]["recovered"]) == (1, True)
            assert subs["b"]["offset"] == 3
            assert subs["b"]["was_recovering"] is True
            assert "recovered" not in subs["b"]
            assert "publications" not in subs["b"]
            assert "was_recovering" not in subs["d"]

    async def test_published_while_other_channels_are_read(self) -> None:
        """What is published behind a channel's reading and before the reply comes after it."""
        broker = TestBroker()
        async with (
            open_test_node(broker=broker) as node,
            talking(node, connected=False) as talk,
            trio.open_nursery() as nursery,
        ):
            broker.before["b"].shut()
            command = talk.command(connect={"subs": {"a": {}, "b": {}}})
            nursery.start_soon(talk.session.receive, command)
            await wait_all_tasks_blocked()
            for number in (1, 2):
                await node.publish(Publication("a", b"%d" % number))
            await wait_all_tasks_blocked()
            assert await talk.news() == []
            broker.before["b"].open()
            reply, *pushes = await talk.news()
            assert set(reply["connect"]["subs"]) == {"a", "b"}
            assert "offset" not in reply["connect"]["subs"]["a"]
            await node.publish(Publication("a", b"3"))
            pushes += await talk.news()
            assert [push["push"]["pub"]["data"] for push in pushes] == [1, 2, 3]

    async def test_missed_while_other_channels_are_read(self) -> None:
        """If something of that is lost, the reply comes, and the end behind it: 3010, no join."""
        broker = TestBroker(lambda event: [] if event.data == b"1" else [event])
        channel = ChannelOptions(join_leave=True, force_push_join_leave=True)
        async with (
            open_test_node(NodeOptions(channel=channel), broker=broker) as node,
            talking(node) as other,
            trio.open_nursery() as nursery,
        ):
            await other.subscribe("a")
            await other.news()
            transports: list[MemoryTransport] = []

            async def live() -> None:
                async with talking(node, connected=False) as talk:
                    transports.append(talk.transport)
                    await talk.connect(subs={"a": {}, "b": {}})

            broker.before["b"].shut()
            nursery.start_soon(live)
            await wait_all_tasks_blocked()
            for number in (1, 2):
                await node.publish(Publication("a", b"%d" % number))
            await wait_all_tasks_blocked()
            broker.before["b"].open()
            await wait_all_tasks_blocked()
            assert usual(transports[0].closed_with) == INSUFFICIENT_STATE
            assert len(transports[0].sent) == 1
            assert not await other.pushes("join")
            assert not await other.pushes("leave")

    async def test_ended_while_a_channel_is_read(self) -> None:
        """A client that is ended in the turn in which history answers hears no further channel."""
        broker = TestBroker()
        async with open_test_node(broker=broker) as node, trio.open_nursery() as nursery:

            async def live() -> None:
                async with talking(node, connected=False) as talk:
                    await talk.connect(subs={"a": {}, "b": {}})

            broker.after["a"].shut()
            nursery.start_soon(live)
            await wait_all_tasks_blocked()
            (client,) = node.registry.clients
            broker.after["a"].open()
            client.cut(SERVER_ERROR)
            await wait_all_tasks_blocked()
            assert not node.hub.channels

    async def test_failing_history_fails_the_connect(self) -> None:
        """If one channel's history cannot be read, the SDK is asked to come back: 100."""
        broker = TestBroker()
        async with open_test_node(broker=broker) as node:
            broker.failing = True
            async with talking(node, connected=False, ends=False) as talk:
                error = await talk.connect(subs={"a": {}, "b": {}})
                assert (error["code"], error["temporary"]) == (100, True)
                assert not node.hub.channels
                assert not talk.client.ready

    async def test_limit(self) -> None:
        """As many channels as the limit are fine; one more is 3505."""
        options = NodeOptions(insecure=True, channel_limit=2)
        async with open_node(options) as node, talking(node, connected=False) as talk:
            assert len((await talk.connect(subs={"a": {}, "b": {}}))["subs"]) == 2
            assert (await talk.subscribe("c"))["code"] == 106
        async with open_node(options) as node:
            async with talking(node, connected=False) as talk:
                await talk.connect(subs={"a": {}, "b": {}, "c": {}})
            assert usual(talk.transport.closed_with) == CHANNEL_LIMIT


async def test_commands_wait_for_connect() -> None:
    """What is pipelined behind a `connect` that waits is carried out after it, in order."""
    broker = TestBroker()
    async with (
        open_test_node(broker=broker) as node,
        talking(node, connected=False) as talk,
        trio.open_nursery() as nursery,
    ):
        broker.before["a"].shut()
        commands = [
            talk.command(connect={"subs": {"a": {}}}),
            talk.command(subscribe={"channel": "b"}),
            talk.command(publish={"channel": "b", "data": 1}),
        ]
        nursery.start_soon(talk.session.receive, "\n".join(commands))
        await wait_all_tasks_blocked()
        assert await talk.news() == []
        broker.before["a"].open()
        messages = await talk.news()
        assert [message["id"] for message in messages if "id" in message] == [1, 2, 3]


class TestGuests:
    """Signed tokens without a user, where `allow_guest_tokens` is on."""

    @pytest.mark.parametrize("allowed", [True, False])
    async def test_guest_tokens(self, allowed: bool) -> None:
        """They connect as the anonymous user; connections without a token stay refused."""
        granted = ConnectionGrant("", channels={"c": SubscriptionGrant()})
        options = NodeOptions(allow_guest_tokens=allowed)
        assert await end_of_connect(options) == BAD_REQUEST
        if not allowed:
            assert await end_of_connect(options, "t", knowing(granted)) == PERMISSION_DENIED
            return
        async with (
            open_node(options, verifier=knowing(granted, later=granted)) as node,
            talking(node, connected=False, ends=False) as talk,
        ):
            assert set((await talk.connect("t"))["subs"]) == {"c"}
            assert set(node.registry.users) == {""}
            assert "error" not in await talk.ask(refresh={"token": "later"})
            assert (await talk.subscribe("d"))["code"] == 103


async def test_commands_with_a_refused_connect() -> None:
    """What was sent along with it gets no answer and no close; more ends it, but not for good."""
    ends: list[Disconnect | None] = []
    async with open_node(verifier=knowing(TokenExpiredError())) as node:
        async with talking(node, connected=False) as talk:
            (reply,) = await talk.say(
                {"id": 1, "connect": {"token": "t"}},
                {"id": 2, "subscribe": {"channel": "c"}},
                {"id": 3, "rpc": {"method": "m"}},
            )
            assert reply["error"]["code"] == 109
            ends.append(talk.client.end)  # a client that is ended does not come this far
            await talk.say({"id": 4, "connect": {"token": "t"}})
        assert ends == [None]
        assert talk.transport.closed_with == EXPIRED


@pytest.mark.parametrize("codec", [CENTRIFUGE_JSON, CENTRIFUGE_JSON_ASGI])
async def test_presence_follows_a_refresh(codec: Codec) -> None:
    """The info of the new token is what presence shows of the client, in all its channels."""
    channel = ChannelOptions(presence=True)
    verifier = FakeVerifier(
        {
            "t": ConnectionGrant("ann", info=b"1", expire_at=NOW + 60),
            "later": ConnectionGrant("ann", info=b"2", expire_at=NOW + 600),
        },
        {
            "s": SubscriptionClaims("ann", "b", grant=SubscriptionGrant(info=b"3")),
            "next": SubscriptionClaims("ann", "b", grant=SubscriptionGrant(info=b"4")),
        },
    )
    options = NodeOptions(channel=channel)
    async with (
        open_test_node(options, verifier=verifier) as node,
        talking(node, connected=False, codec=codec) as talk,
    ):

        async def shown(name: str) -> tuple[bytes, bytes]:
            (info,) = (await node.presence(name)).values()
            return bytes(info.conn_info or b""), bytes(info.chan_info or b"")

        async def say(**command: Any) -> None:
            await talk.session.receive(talk.command(**command))

        started_at(node)
        await say(connect={"token": "t", "subs": {"a": {}}})
        await say(subscribe={"channel": "b", "token": "s"})
        assert (await shown("a"), await shown("b")) == ((b"1", b""), (b"1", b"3"))
        await say(refresh={"token": "later"})
        assert (await shown("a"), await shown("b")) == ((b"2", b""), (b"2", b"3"))
        await say(sub_refresh={"channel": "b", "token": "next"})
        assert (await shown("a"), await shown("b")) == ((b"2", b""), (b"2", b"4"))


async def test_a_refresh_while_presence_fails() -> None:
    """The refresh holds, the failure is counted, and the client does not notice."""
    store = MemoryPresence()
    verifier = knowing(ConnectionGrant("ann", info=b"1"), later=ConnectionGrant("ann", info=b"2"))
    options = NodeOptions(channel=ChannelOptions(presence=True))
    async with (
        open_test_node(options, verifier=verifier, presence=store) as node,
        talking(node, connected=False, ends=False) as talk,
    ):
        await talk.connect("t", subs={"a": {}})
        node.attendance._store = FailingPresence()
        assert (await talk.ask(refresh={"token": "later"}))["refresh"] == {}
        assert talk.client.grant.info == b"2"
        assert node.broker_errors["presence"] == 1
        node.attendance._store = store
