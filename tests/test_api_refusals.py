"""Every refused call says what is wrong, in JSON: to its caller, and in one line of the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repeater.api.methods import call
from repeater.api.stream import EventStream
from repeater.brokers.memory import MemoryBroker
from repeater.errors import BrokerError
from repeater.options import ChannelOptions, NodeOptions
from repeater.testing import open_test_node
from repeater.web.faults import FaultCheck
from tests.refusing import RefusedLines
from tests.rest_callers import WAYS, caller
from tests.serving import UPGRADE, Peer, peer, running

LONG = b"x" * 256
OPTIONS = NodeOptions(
    insecure=True,
    namespaces={
        "objects": ChannelOptions(publication_data_format="json_object"),
        "bare": ChannelOptions(history_size=0),
        "bytes": ChannelOptions(publication_data_format="binary"),
    },
)


def errors(text: bytes) -> list[dict[str, Any]]:
    """Every error object in an answer, in its order."""
    found: list[dict[str, Any]] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "error" in value:
                found.append(value["error"])
            for one in value.values():
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    look(json.loads(text))
    return found


@pytest.mark.parametrize(
    ("method", "body", "code", "message"),
    [
        ("publish", b"", 107, "the body is empty: send a JSON object"),
        ("publish", b"{'a':1}", 107, "not JSON: object keys must be strings"),
        ("publish", b"{'a':1}", 107, "names and texts need double quotes"),
        ("publish", b"channel=news&data=1", 107, "send a JSON object"),
        ("publish", b'{"channel":"\xff"}', 107, "the body is not JSON in UTF-8"),
        ("publish", b'{"data":%s1%s}' % (b"[" * 200, b"]" * 200), 107, "is nested deeper than"),
        ("publish", b"[]", 107, "the body must be an object, not a list"),
        ("publish", b"{}", 107, "channel: missing or empty"),
        ("publish", b'{"channel":null,"data":1}', 107, "channel: missing or empty"),
        ("publish", b'{"chanel":"a","data":1}', 107, "unknown fields: 'chanel'"),
        ("publish", b'{"channel":"a","message":1}', 107, "data: missing or empty: the body has"),
        ("publish", b'{"channel":"\\ud800","message":1}', 107, "printable ASCII"),
        ("publish", b'{"channel":7,"data":1}', 107, "channel: must be text, not a number"),
        ("publish", b'{"channel":7,"data":1,"tags":null}', 107, "channel: must be text"),
        ("publish", b'{"channel":"a"}', 107, "data: missing or empty: give data, or b64data"),
        ("publish", b'{"channel":"a","data":1,"tags":{"b":1}}', 107, "tags[...]: must be text"),
        ("publish", b'{"channel":"a","data":1,"tags":[]}', 107, "tags: must be an object"),
        ("publish", b'{"channel":"a","data":1,"tags":{"%s":""}}' % LONG, 107, "tags: the name of"),
        ("publish", b'{"channel":"a","data":1,"version":-1}', 107, "version: must be 0 or more"),
        ("publish", b'{"channel":"a","data":1,"version":1.5}', 107, "version: must be a whole"),
        ("publish", b'{"channel":"a","data":1,"version":%d}' % 2**64, 107, "version: must be"),
        ("publish", b'{"channel":"a","data":1,"delta":1}', 107, "delta: must be true or false"),
        (
            "publish",
            b'{"channel":"a","data":1,"idempotency_key":"%s"}' % LONG,
            107,
            "idempotency_key: it has more than 255 characters",
        ),
        (
            "publish",
            b'{"channel":"a","data":1,"version":1,"version_epoch":"%s"}' % LONG,
            107,
            "version_epoch: it has more than 255 characters",
        ),
        ("publish", b'{"channel":"a","b64data":"!"}', 107, "b64data: not Base64"),
        ("publish", b'{"channel":"a","b64data":"/w=="}', 107, "data: not JSON"),
        ("publish", b'{"channel":"objects:a","data":1}', 107, "data: the channel takes JSON obj"),
        ("publish", b'{"channel":"\xc3\xa9","data":1}', 107, "the channel's name has characters"),
        ("publish", b'{"channel":"%s","data":1}' % LONG, 107, "the channel's name is too long"),
        ("publish", b'{"channel":"x:a","data":1}', 102, "there is no namespace 'x'"),
        ("broadcast", b'{"data":1}', 107, "channels: missing or empty"),
        ("broadcast", b'{"channels":["a",1],"data":1}', 107, "channels[1]: must be text"),
        ("history", b"{}", 107, "channel: missing or empty"),
        ("history", b'{"channel":"bare:a"}', 108, "the channel keeps no history: set history_size"),
        (
            "history",
            b'{"channel":"a","since":{"offset":"1"}}',
            107,
            "since.offset: must be a whole",
        ),
        ("history", b'{"channel":"a","since":{"offset":-1}}', 107, "offset: must be a whole"),
        ("history", b'{"channel":"a","reverse":true,"since":{}}', 107, "since.offset: nothing is"),
        ("presence", b'{"channel":"x:a"}', 102, "add [namespaces.x] to the configuration"),
        ("subscribe", b'{"user":"1"}', 107, "channel: missing or empty"),
        ("subscribe", b'{"user":1,"channel":"a"}', 107, "user: must be text"),
        ("subscribe", b'{"channel":"a","expire_at":1}', 107, "expire_at: in the past"),
        ("subscribe", b'{"channel":"a","b64info":"!"}', 107, "b64info: not base64"),
        ("subscribe", b'{"channel":"a","b64data":"eA=="}', 107, "b64data: JSON is malformed"),
        (
            "subscribe",
            b'{"channel":"a","recover_since":{"offset":-1}}',
            107,
            "recover_since.offset: must be a whole number",
        ),
        ("disconnect", b'{"disconnect":{"code":1}}', 107, "disconnect.code: must be 3000"),
        ("disconnect", b'{"disconnect":{"reason":"%s"}}' % LONG, 107, "disconnect.reason: it has"),
        ("disconnect", b'{"disconnect":{"reason":"[]"}}', 107, "disconnect.reason: it is JSON"),
        ("refresh", b'{"expire_at":-1}', 107, "expire_at: must be 0 or more"),
        ("channels", b'{"pattern":"%s"}' % (LONG * 5), 107, "pattern: it has more than"),
        ("rpc", b"{}", 107, "method: missing or empty"),
        ("rpc", b'{"method":"x"}', 104, "method: this server has no extensions"),
        ("batch", b'{"commands":0}', 107, "commands: must be a list"),
        ("block_user", b"{}", 107, "user: missing or empty"),
        ("block_user", b'{"user":"1","expire_at":1}', 107, "expire_at: in the past"),
        ("block_user", b'{"user":"1","expire_at":1,"ttl":1}', 107, "expire_at, ttl: give at"),
        ("unblock_user", b"{}", 107, "user: missing or empty"),
        ("revoke_token", b"{}", 107, "jti, uid, user: give exactly one"),
        ("revoke_token", b'{"jti":"1","user":"2"}', 107, "jti, uid, user: give exactly one"),
        ("revoke_token", b'{"jti":"1","issued_before":1}', 107, "issued_before: it goes with"),
    ],
)
async def test_a_refused_call_names_the_field(
    method: str, body: bytes, code: int, message: str, refused: RefusedLines
) -> None:
    """Its text begins with the code's own. The log has the same in its one line."""
    async with open_test_node(OPTIONS) as node:
        answer = await call(node, method, body)
        assert node.refusals.counts.total() == 1
    assert answer.content_type == "application/json"
    (error,) = errors(answer.body)
    assert error["code"] == code
    said = {102: "unknown channel", 104: "not found", 107: "bad request", 108: "not available"}
    assert error["message"].startswith(f"{said[code]}: ")
    assert message in error["message"]
    line = refused.one()
    assert f'what="api {method}"' in line or f"what='api {method}'" in line
    assert error["message"].split(": ")[1] in line.replace('\\"', '"')


async def test_production_tells_the_caller_too(refused: RefusedLines) -> None:
    """Whoever calls has the key."""
    options = NodeOptions(allow_anonymous=True)
    async with open_test_node(options) as node:
        answer = await call(node, "publish", b'{"channel":"chat:1","data":1}')
        assert node.refusals.counts == {"namespace": 1}
    (error,) = errors(answer.body)
    assert error["message"].startswith("unknown channel: there is no namespace 'chat': add [")
    line = refused.one()
    for part in ("cause=namespace", "code=102", "channel=chat:1", "add [namespaces.chat]"):
        assert part in line


async def test_nothing_of_the_data_is_repeated(refused: RefusedLines) -> None:
    """Data is not ours to show, neither in answers nor in the log."""
    bodies = (
        b'{"channel":"a","data":hunter2}',
        b'{"channel":"a","b64data":"hunter2"}',
        b'{"channel":"objects:a","data":"hunter2"}',
        b'{"channel":"a","data":1,"tags":{"hunter2":2}}',
        b'{"channel":"a","data":1,"delta":"hunter2"}',
    )
    async with open_test_node(OPTIONS) as node:
        for body in bodies:
            assert b"hunter2" not in (await call(node, "publish", body)).body
    assert len(refused.all()) == len(bodies)
    assert "hunter2" not in "".join(refused.all())


async def test_items_of_a_broadcast(refused: RefusedLines) -> None:
    """Each has its own error, one line names the first of them, and all of them count."""
    async with open_test_node(OPTIONS) as node:
        body = b'{"channels":["a","x:1","y:1","\xc3\xa9"],"data":1}'
        first, second, third = errors((await call(node, "broadcast", body)).body)
        assert node.refusals.counts == {"namespace": 2, "channel": 1}
    assert "'x'" in first["message"]
    assert "'y'" in second["message"]
    assert third["code"] == 107
    assert "at=channels[1]" in refused.one()


async def test_items_of_a_batch(refused: RefusedLines) -> None:
    """The same, for commands of any method."""
    commands = (
        b'{"publish":{"channel":"a","data":1}}',
        b'{"publish":{"channel":7}}',
        b'{"history":{}}',
        b'{"publich":{"channel":"a","data":1}}',
        b'{"broadcast":{"data":1}}',
        b'{"presence":{"channel":"x:a"}}',
    )
    async with open_test_node(OPTIONS) as node:
        answer = await call(node, "batch", b'{"commands":[%s]}' % b",".join(commands))
        assert node.refusals.counts == {"request": 3, "method": 1, "namespace": 1}
    told = [error["message"].partition(": ")[2] for error in errors(answer.body)]
    assert told[:4] == [
        "channel: must be text, not a number",
        "channel: missing or empty",
        "there is no method 'publich': did you mean 'publish'?",
        "channels: missing or empty",
    ]
    assert told[4].startswith("there is no namespace 'x'")
    line = refused.one()
    assert "at=commands[1]" in line
    assert "api publish" in line


async def test_lines_of_a_stream(refused: RefusedLines) -> None:
    """Each failed line is logged, because a stream may last for days."""
    lines = (
        b'{"channel":"a","data":1}',
        b"{'channel': 'a'}",
        b'{"channel":"a","data":1,"tags":{"b":1}}',
        b'{"data":1}',
        b'{"channel":"x:a","data":1}',
    )
    async with open_test_node(OPTIONS) as node:
        stream = EventStream(node, 1_000)
        await stream.feed(b"\n".join(lines))
        await stream.end()
        told = errors((await stream.answer()).body)
    assert [one["code"] for one in told] == [107, 107, 107, 102]
    assert [text in one["message"] for text, one in zip(
        ("double quotes", "tags[...]", "channel: missing", "namespace 'x'"), told, strict=True
    )] == [True] * 4  # fmt: skip
    assert [f"line {number}" in line for number, line in enumerate(refused.all(), 2)] == [True] * 4
    assert "channel=x:a" in refused.all()[3]


class DownBroker(MemoryBroker):
    """A back end that is down."""

    def submit(self, *_: object, **__: object) -> None:
        raise BrokerError("the engine is not there")


async def test_an_engine_that_is_down(refused: RefusedLines) -> None:
    """Its failure is told, and where a stream was broken off."""
    async with open_test_node(broker=DownBroker()) as node:
        (error,) = errors((await call(node, "publish", b'{"channel":"a","data":1}')).body)
        stream = EventStream(node, 100)
        await stream.feed(b'{"channel":"a","data":1}\n')
        answer = await stream.answer()
        assert node.refusals.counts == {"engine": 2}
    told = {"code": 100, "message": "internal server error: the engine is not there"}
    assert error == told
    assert (answer.status, errors(answer.body)) == (503, [told])
    assert [line.partition("what=")[2][:14] for line in refused.all()] == [
        *("'api publish' ", "'api stream' c")
    ]


async def told_over_http(client: Peer, method: str, target: str, body: bytes, head: str) -> Any:
    """The status, the head and the error of one call."""
    answer = await client.call(method, target, body, head)
    head_sent, _, text = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json\r\n" in head_sent.lower() + b"\r\n"
    document = json.loads(text)
    error = document.get("error", document)
    assert set(error) == {"code", "message"}
    return int(answer.split(b" ")[1]), head_sent.lower(), error


KEY = "X-API-Key: right\r\n"
TRANSPORT = "X-Centrifugo-Error-Mode: transport\r\n"


@pytest.mark.parametrize("mode", ["", TRANSPORT], ids=["usual", "transport"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("method", "path", "head", "status", "code", "message"),
    [
        ("POST", "publish", "", 401, 101, "unauthorized: the request has no API key: send"),
        ("POST", "publish", "X-API-Key: hunter2\r\n", 401, 101, "the API key is another one"),
        ("POST", "publish?api_key=hunter2", "", 401, 101, "the API key is another one"),
        ("POST", "publish", "Authorization: Bearer hunter2\r\n", 401, 101, "another scheme"),
        ("POST", "publish", "Authorization: apikey \r\n", 401, 101, "the request has no API key"),
        ("POST", "publish", "Authorization: apikey hunter2\r\n", 401, 101, "another one"),
        ("POST", "stream", "", 401, 101, "the request has no API key"),
        ("GET", "publish", KEY, 405, 107, "bad request: a call is a POST, and this was a GET"),
        ("GET", "stream", KEY, 405, 107, "a call is a POST, and this was a GET"),
        ("POST", "publich", KEY, 404, 104, "not found: there is no method 'publich': did you"),
        ("POST", "publish/", KEY, 404, 104, "did you mean 'publish'?"),
        ("POST", "p%75blish", KEY, 404, 104, "the path has escapes"),
        ("POST", "qqq", KEY, 404, 104, "the methods are publish, broadcast,"),
        ("GET", "", KEY, 404, 104, "POST /api/<method>"),
        ("POST", "publish", KEY, 400, 107, "bad request: the body is not JSON"),
    ],
)
async def test_what_is_no_call(
    method: str,
    path: str,
    head: str,
    status: int,
    code: int,
    message: str,
    way: str,
    mode: str,
    refused: RefusedLines,
) -> None:
    """A status in either mode, and a JSON error that says why; a key is nowhere repeated."""
    async with (
        running(api_key="right", dev=False) as server,
        caller(server, way) as client,
    ):
        answer = await told_over_http(client, method, f"/api/{path}", b"{'a':1}", head + mode)
        assert server.node.refusals.counts.total() == (path != "p%75blish")
    assert (answer[0], answer[2]["code"]) == (status, code)
    assert message in answer[2]["message"]
    assert (b"\r\nallow: post" in answer[1]) == (status == 405)
    lines = "".join(refused.all())
    assert "hunter2" not in lines + answer[2]["message"]
    assert (f"status={status}" in lines) == (path != "p%75blish")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", ["", "Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_is_too_large(way: str, head: str, refused: RefusedLines) -> None:
    """413 names the limit, with a length and with chunks."""
    async with running(body_limit=1_024) as server, caller(server, way) as client:
        body = b'{"channel":"a","data":"%s"}' % (b"x" * 2_000)
        if head:
            text = f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode()
            await client.stream.send_all(text + b"%x\r\n%s\r\n" % (len(body), body))
            answer = await client.until(b'"}}')
        else:
            answer = await client.call("POST", "/api/publish", body)
    assert b" 413 " in answer
    assert b'"limit exceeded: the body has more than 1024 bytes' in answer
    assert "api publish" in refused.one()
    assert "cause=limit" in refused.one()


async def test_a_server_without_a_key(refused: RefusedLines) -> None:
    """In production it admits nobody, and says so."""
    async with (
        running(dev=False, token={"hmac_secret_key": "s" * 32}) as server,
        peer(server) as client,
    ):
        answer = await told_over_http(client, "POST", "/api/publish", b"{}", "")
    assert answer[2]["message"].startswith("unauthorized: this server has no API key")
    assert "cause=api_key" in refused.one()
    assert "set api_key" in refused.one()


class BuggyBroker(MemoryBroker):
    """Has a bug."""

    def submit(self, *_: object, **__: object) -> None:
        raise LookupError("a bug")


@pytest.mark.parametrize("way", WAYS)
async def test_a_fault_of_our_own(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 is JSON too, natively and from Quart."""
    monkeypatch.setattr(MemoryBroker, "submit", BuggyBroker.submit)
    async with running() as server, caller(server, way) as client:
        body = b'{"channel":"a","data":1}'
        status, _, error = await told_over_http(client, "POST", "/api/publish", body, "")
    assert status == 500
    assert error["code"] == 100
    assert "a fault of the server's own" in error["message"]


async def test_routes_of_others_answer_as_they_like() -> None:
    """Only what no route takes, and our own routes, are the API's."""
    async with running() as server, peer(server) as client:
        app = server.acceptor._handover._app.app  # type: ignore[attr-defined]

        @app.get("/api/mine/teapot")
        async def teapot() -> tuple[str, int]:
            return "no coffee", 418

        assert b"no coffee" in await client.call("GET", "/api/mine/teapot")
        assert b"<!doctype html>" in await client.call("GET", "/nothing")


@pytest.mark.parametrize("dev", [True, False])
async def test_another_host(dev: bool, refused: RefusedLines) -> None:
    """421 is JSON; only development mode tells a stranger what is allowed."""
    options = {"dev": dev, "api_key": "right", "allowed_hosts": ["secret.example"]}
    async with running(**options) as server, peer(server) as client:
        await client.stream.send_all(b"POST /api/publish HTTP/1.1\r\nHost: elsewhere\r\n\r\n")
        head = await client.until(b"\r\n\r\n")
        (error,) = errors(await client.until(b"}}"))
    assert b" 421 " in head
    assert error["code"] == 103
    assert ("allowed_hosts" in error["message"]) == dev
    assert error["message"].startswith("permission denied: ")
    assert "cause=host" in refused.one()


async def test_a_page_of_another_site(refused: RefusedLines) -> None:
    """403 is JSON, and names the origin."""
    async with running() as server, peer(server) as client:
        head = "Origin: https://elsewhere.example\r\n"
        answer = await told_over_http(client, "POST", "/api/publish", b"{}", head)
    assert (answer[0], answer[2]["code"]) == (403, 103)
    assert "https://elsewhere.example" in answer[2]["message"]
    assert b"\r\nrepeater-refused: " in answer[1]
    assert "cause=origin" in refused.one()


async def test_below_a_prefix(refused: RefusedLines) -> None:
    """Answers and lines know no prefix."""
    async with (
        running(path_prefix="/realtime", dev=False, api_key="right") as server,
        peer(server) as client,
    ):
        wrong = await told_over_http(client, "POST", "/realtime/api/publich", b"{}", KEY)
        closed = await told_over_http(client, "POST", "/realtime/api/publish", b"{}", "")
    assert wrong[2]["message"].endswith("there is no method 'publich': did you mean 'publish'?")
    assert closed[0] == 401
    assert ["api publich" in refused.all()[0], "api publish" in refused.all()[1]] == [True, True]


async def test_a_fault_of_the_request() -> None:
    """Behind an ASGI server, where the path is known, this is JSON as well."""
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def nothing(*_: object) -> None:
        raise AssertionError

    scope = {"type": "http", "http_version": "1.1", "path": "/api/publish", "raw_path": b"/"}
    fields = [(b"host", b"a"), (b"host", b"b")]
    check = FaultCheck(nothing, set)
    await check({**scope, "method": "POST", "headers": fields}, nothing, send)
    assert sent[0]["status"] == 400
    (error,) = errors(sent[1]["body"])
    assert error["code"] == 107
    assert error["message"].startswith("bad request: ")


async def test_a_websocket_to_nowhere() -> None:
    """Is no call: it gets the 404 that it always got, and is no failure."""
    async with running() as server:
        for path in ("/nothing", "/api/publich"):
            async with peer(server) as client:
                await client.stream.send_all(UPGRADE.format(path=path, more="").encode())
                assert b" 404 " in await client.until(b"\r\n\r\n")
        assert server.node.failures.counts.total() == 0
