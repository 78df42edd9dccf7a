"""Bytes of clients that speak Protobuf: published, heard, recovered, and handed to the back end."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from centrifuge.fossil import apply_delta
from trio.testing import wait_all_tasks_blocked

from repeater.access.grants import ConnectionGrant, SubscriptionGrant
from repeater.api.methods import call
from repeater.clients.session import Session
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.protobuf_codecs import CENTRIFUGE_PROTOBUF_ASGI
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.application import ASKED, Application, open_asking_node
from tests.conversation import FakeVerifier, talking
from tests.protobuf_peer import command, whole
from tests.refusing import usual_error

pytestmark = pytest.mark.timeout(60)

ANY = b"\x02\xff\x00\r\n{"
OPEN: dict[str, Any] = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_recovery": True,
    "allowed_delta_types": frozenset({"fossil"}),
    "delta_publish": True,
}
BINARY = ChannelOptions(publication_data_format="binary", **OPEN)
OPTIONS = NodeOptions(insecure=True, channel=ChannelOptions(**OPEN), namespaces={"bin": BINARY})
BAD_REQUEST = {"code": 107, "message": "bad request"}


def b64(data: bytes) -> str:
    return b64encode(data).decode()


class ProtobufTalk:
    """One client's session; what it says and hears as JSON would have it, with data in Base64."""

    def __init__(self, node: Node, client: Any, transport: MemoryTransport) -> None:
        self.client = client
        self._session = Session(node, client)
        self._transport = transport
        self._ids = 0

    async def call(self, name: str, /, **fields: Any) -> Any:
        """Send one command; its result or its error."""
        self._ids += 1
        before = len(self._transport.sent)
        await self._session.receive(command(id=self._ids, **{name: fields}))
        await wait_all_tasks_blocked()
        replies = [one for one in self._heard(before) if one.get("id") == self._ids]
        (reply,) = replies
        return reply.get(name, reply.get("error"))

    def _heard(self, since: int) -> list[Any]:
        return [whole(chunk)[0][0] for chunk in self._transport.sent[since:] if len(chunk) > 1]

    async def publications(self) -> list[Any]:
        """Every publication so far, with its data as bytes."""
        await wait_all_tasks_blocked()
        pushes = [one["push"] for one in self._heard(0) if "push" in one]
        return [self.decoded(one["pub"]) for one in pushes if "pub" in one]

    @staticmethod
    def decoded(publication: Any) -> Any:
        return {**publication, "data": b64decode(publication.get("data", ""))}


@asynccontextmanager
async def protobuf_client(node: Node, **fields: Any) -> AsyncIterator[ProtobufTalk]:
    """A client that has sent `connect` with these fields."""
    transport = MemoryTransport(CENTRIFUGE_PROTOBUF_ASGI)
    async with connect(node, transport, ready=False) as client:
        talk = ProtobufTalk(node, client, transport)
        assert "client" in await talk.call("connect", **fields)
        yield talk


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_test_node(OPTIONS) as opened:
        yield opened


async def test_what_one_says_all_who_can_hear(node: Node) -> None:
    """Bytes from a client to Protobuf clients and plain WebSockets; nothing is bytes, too."""
    plain = MemoryTransport()
    async with (
        protobuf_client(node) as one,
        protobuf_client(node) as other,
        connect(node, plain, ["bin:c"]),
    ):
        assert "code" not in await one.call("subscribe", channel="bin:c")
        assert "code" not in await other.call("subscribe", channel="bin:c")
        for data in (ANY, b"", b"1"):
            assert await one.call("publish", channel="bin:c", data=b64(data)) == {}
        for talk in (one, other):
            heard = await talk.publications()
            assert [publication["data"] for publication in heard] == [ANY, b"", b"1"]
            assert heard[0]["info"]["client"] == one.client.id
        assert plain.messages() == [ANY, b"", b"1"]
        found = await one.call("history", channel="bin:c", limit=-1)
        assert [ProtobufTalk.decoded(p)["data"] for p in found["publications"]] == [ANY, b"", b"1"]


async def test_what_is_no_json_in_a_channel_of_json(node: Node) -> None:
    """107; JSON arrives at clients of either format."""
    async with protobuf_client(node) as talk, talking(node) as json_talk:
        await json_talk.subscribe("c")
        for data in (ANY, b"", b"{", b'"\xff"', b"[" * 200 + b"]" * 200):
            error = await talk.call("publish", channel="c", data=b64(data))
            assert usual_error(error) == BAD_REQUEST
        assert await talk.call("publish", channel="c", data=b64(b'{"a":\n 1}')) == {}
        assert await json_talk.data() == [{"a": 1}]


async def test_recovery_and_history(node: Node) -> None:
    """What was missed is there as bytes, of whichever format it was published."""
    async with protobuf_client(node) as talk:
        await node.publish(Publication("bin:c", b"\xff1"))
        node.reload(msgspec.structs.replace(OPTIONS, namespaces={"bin": ChannelOptions(**OPEN)}))
        await node.publish(Publication("bin:c", b'{"a":2}'))
        node.reload(OPTIONS)
        found = await talk.call("subscribe", channel="bin:c", recover=True, recoverable=True)
        assert found["recovered"]
        publications = [ProtobufTalk.decoded(one) for one in found["publications"]]
        assert [(one["data"], int(one["offset"])) for one in publications] == [
            (b"\xff1", 1),
            (b'{"a":2}', 2),
        ]


async def test_deltas_are_bytes(node: Node) -> None:
    """Each is applied to the bytes before it; the first is whole, and what is recovered as well."""
    base = bytes(range(256)) * 2
    versions = [base, base[:100] + b"\xff\xfe" + base[101:], b"\x80" * 40, b"\x80" * 39 + b"\x81"]
    async with protobuf_client(node) as talk:
        found = await talk.call("subscribe", channel="bin:c", delta="fossil", recoverable=True)
        assert found["delta"]
        for data in versions:
            await node.publish(Publication("bin:c", data))
        heard = await talk.publications()
        assert [bool(one.get("delta")) for one in heard] == [False, True, False, True]
        told = b""
        for publication, data in zip(heard, versions, strict=True):
            delta = publication["data"]
            told = bytes(apply_delta(told, delta)) if publication.get("delta") else delta
            assert told == data
        async with protobuf_client(node) as late:
            found = await late.call(
                "subscribe", channel="bin:c", delta="fossil", recover=True, recoverable=True
            )
            assert [ProtobufTalk.decoded(one)["data"] for one in found["publications"]] == versions


async def test_server_side_subscriptions() -> None:
    """A client that speaks Protobuf has all of them."""
    grant = ConnectionGrant("ann", channels={"bin:c": SubscriptionGrant()})
    async with (
        open_node(OPTIONS, verifier=FakeVerifier({"t": grant})) as node,
        protobuf_client(node, token="t") as talk,
    ):
        await node.subscribe("ann", "bin:d")
        assert list(talk.client.channels) == ["bin:c", "bin:d"]
        await node.publish(Publication("bin:d", ANY))
        assert [one["data"] for one in await talk.publications()] == [ANY]


class TestBackEnd:
    """Questions and answers carry bytes as `b64data`."""

    async def test_connect_subscribe_and_rpc(self) -> None:
        """What such a client hands in is not looked at: it may be JSON, too."""
        application = Application()
        application.answers["connect"] = {"result": {"user": "ann", "data": {"a": 1}}}
        application.answers["rpc"] = {"result": {"b64data": b64(ANY)}}
        async with (
            open_asking_node(application) as node,
            protobuf_client(node, data=b64(ANY)) as talk,
        ):
            await talk.call("subscribe", channel="c", data=b64(b'{"a":1}'))
            found = await talk.call("rpc", method="m", data=b64(ANY))
            assert found == {"data": b64(ANY)}
            assert await talk.call("rpc", method="m") == {"data": b64(ANY)}
            client = talk.client.id
        about = {"client": client, "transport": "memory", "protocol": "protobuf"}
        (asked,) = application.asked("connect")
        assert asked == {**about, "encoding": "binary", "user": "", "b64data": b64(ANY)}
        (asked,) = application.asked("subscribe")
        about["user"] = "ann"
        data = b64(b'{"a":1}')
        assert asked == {**about, "encoding": "binary", "channel": "c", "b64data": data}
        first, second = application.asked("rpc")
        assert first == {**about, "encoding": "binary", "method": "m", "b64data": b64(ANY)}
        assert second == {**about, "encoding": "json", "method": "m"}

    @pytest.mark.parametrize(
        ("answer", "result"),
        [
            ({"b64data": b64(b'{"a":1}')}, {"data": {"a": 1}}),
            ({"data": {"a": 1}}, {"data": {"a": 1}}),
            ({}, {}),
        ],
    )
    async def test_results_of_rpc_in_both_formats(self, answer: Any, result: Any) -> None:
        """JSON, as `data` or as `b64data`, is the same for clients of both."""
        application = Application()
        application.answers["rpc"] = {"result": answer}
        async with open_asking_node(application) as node:
            async with protobuf_client(node) as talk:
                found = await talk.call("rpc", method="m")
                assert {k: json.loads(b64decode(v)) for k, v in found.items()} == result
            async with talking(node) as json_talk:
                assert (await json_talk.call("rpc", method="m"))["rpc"] == result

    async def test_a_result_that_is_no_json(self) -> None:
        """Error 100 for a client of JSON: the back end may not know who asks."""
        application = Application()
        application.answers["rpc"] = {"result": {"b64data": b64(ANY)}}
        async with open_asking_node(application) as node, talking(node) as talk:
            reply = await talk.call("rpc", method="m")
            assert reply["error"]["code"] == 100

    @pytest.mark.parametrize(
        ("answer", "kept"),
        [
            ({}, ANY),
            ({"b64data": b64(b"\xfe")}, b"\xfe"),
            ({"data": {"a": 1}}, b'{"a": 1}'),
        ],
    )
    async def test_publish(self, answer: Any, kept: bytes) -> None:
        """Of a binary channel the question has `b64data`, and the answer may have any bytes."""
        application = Application()
        application.answers["publish"] = {"result": answer}
        options = NodeOptions(
            namespaces={"bin": msgspec.structs.replace(ASKED, publication_data_format="binary")}
        )
        async with open_asking_node(application, options) as node:
            async with protobuf_client(node) as talk:
                assert await talk.call("publish", channel="bin:c", data=b64(ANY)) == {}
            (asked,) = application.asked("publish")
            assert (asked["b64data"], asked["encoding"]) == (b64(ANY), "binary")
            assert "data" not in asked
            (publication,), _ = await node.history("bin:c")
            assert (publication.data, publication.binary) == (kept, True)

    async def test_publish_into_a_channel_of_json(self) -> None:
        """The question has `data`; bytes that are no JSON are 107, in the answer 100."""
        application = Application()
        async with open_asking_node(application) as node, protobuf_client(node) as talk:
            data = b64(b'{"a": 1}')
            assert await talk.call("publish", channel="c", data=b64(ANY)) == BAD_REQUEST
            assert await talk.call("publish", channel="c", data="") == BAD_REQUEST
            assert await talk.call("publish", channel="c", data=data) == {}
            application.answers["publish"] = {"result": {"b64data": b64(ANY)}}
            assert (await talk.call("publish", channel="c", data=data))["code"] == 100
        asked, _ = application.asked("publish")
        assert asked["data"] == {"a": 1}
        assert (asked["protocol"], asked["encoding"]) == ("protobuf", "json")
        assert "b64data" not in asked


async def test_the_server_api_shows_what_a_client_published(node: Node) -> None:
    """As Base64, with the client's info."""
    async with protobuf_client(node) as talk:
        await talk.call("publish", channel="bin:c", data=b64(ANY))
        answer = await call(node, "history", b'{"channel":"bin:c","limit":1}')
        (found,) = json.loads(answer.body)["result"]["publications"]
        assert found["b64data"] == b64(ANY)
        assert found["info"]["client"] == talk.client.id
