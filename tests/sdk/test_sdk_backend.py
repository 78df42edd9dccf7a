"""Every SDK with a back end behind the server: what the client sends it, and gets of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from repeater.errors import BAD_REQUEST
from repeater.options import ChannelOptions
from tests.answering import answering_threads
from tests.sdk.clients import PROTOBUF
from tests.sdk.harness import SDK, CallError, running

pytestmark = pytest.mark.sdk

ASKED = ChannelOptions(subscribe_proxy_enabled=True, publish_proxy_enabled=True)
VALUE = {"why": "curious", "é": [1, None, "\U0001f600"]}


class Echo(BaseHTTPRequestHandler):
    """A back end that gives each client its own data back."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(self.answer(question)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if question.get("method") == "refused":
            return {"error": {"code": 404, "message": "no such thing"}}
        if question.get("method") == "banned":
            return {"disconnect": {"code": 4501, "reason": "banned"}}
        data = {name: question[name] for name in ("data", "b64data") if name in question}
        return {"result": {"user": "42", **data} if self.path == "/connect" else data}


@pytest.fixture
def settings() -> Iterator[dict[str, Any]]:
    """Of a server that asks the back end."""
    kinds = ("connect", "subscribe", "publish", "rpc")
    with answering_threads(Echo) as url:
        yield {"callbacks": {f"{kind}_url": f"{url}/{kind}" for kind in kinds}}


async def test_data_goes_to_the_back_end_and_comes_back(sdk: SDK, settings: dict[str, Any]) -> None:
    """Of connect, subscribe, publish and RPC; a refusal of the back end's own is told as it is."""
    async with (
        running(settings=settings, insecure=False, channel=ASKED) as server,
        sdk.client(server, connect=False, data=VALUE) as client,
    ):
        await client.call("connect")
        assert (await client.heard("connected"))["data"] == VALUE
        assert (await client.subscribe("news", data=VALUE))["data"] == VALUE
        await client.call("publish", channel="news", data=VALUE)
        heard = await client.heard("publication", "news")
        assert (heard["data"], heard["info"]["user"]) == (VALUE, "42")
        assert await client.call("rpc", method="echo", data=VALUE) == {"data": VALUE}
        with pytest.raises(CallError) as caught:
            await client.call("rpc", method="refused", data=VALUE)
        assert caught.value.code == 404
        with pytest.raises(CallError):
            await client.call("rpc", method="banned", data=VALUE)
        ended = await client.heard("disconnected")
        assert (ended["code"], ended["reason"]) == (4501, "banned")


@pytest.mark.parametrize("driver", PROTOBUF, indirect=True)
async def test_any_bytes_go_to_the_back_end_and_come_back(
    sdk: SDK, settings: dict[str, Any]
) -> None:
    """What is not JSON goes as Base64."""
    data = base64.b64encode(b"\xff\x00 any").decode()
    async with running(settings=settings) as server, sdk.client(server) as client:
        assert await client.call("rpc", method="echo", b64data=data) == {"b64data": data}


class Failing(BaseHTTPRequestHandler):
    """A back end that fails twice, a moment late, and then lets everybody in."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        if self.asked <= 2:
            time.sleep(0.3)  # of the back end's thread, so that the SDK has time to send more
        text = b'{"result": {"user": "42"}}'
        self.send_response(500 if self.asked <= 2 else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


async def test_what_is_sent_behind_a_failing_connect_is_no_end_for_good(sdk: SDK) -> None:
    """The SDK comes back, also if it has sent more before it had the error of its connect."""
    Failing.asked = 0
    with answering_threads(Failing) as url:
        async with (
            running(
                settings={"callbacks": {"connect_url": f"{url}/connect"}},
                insecure=False,
                channel=ChannelOptions(allow_subscribe_for_client=True),
            ) as server,
            sdk.client(server, connect=False) as client,
        ):
            await client.call("subscribe", channel="a", options={})
            await client.call("connect")
            await client.call("subscribe", channel="b", options={})
            await client.heard("connected")
            await client.heard("subscribed", "a")
            await client.heard("subscribed", "b")
            assert Failing.asked == 3
            assert BAD_REQUEST.code not in server.node.statistics().ended
