"""A callback that fails leaves one line about each client that was refused, with the reason."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from repeater.errors import SERVER_ERROR, Disconnect
from repeater.node import open_node
from repeater.options import ChannelOptions, NodeOptions
from tests.application import ASKED, Application, open_asking_node
from tests.conversation import talking
from tests.refusing import RefusedLines


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.mark.parametrize(
    ("answer", "text", "mend"),
    [
        (httpx.Response(500), "answered 500", "see the back end's log"),
        (httpx.Response(401), "answered 401", "does the back end check the signature with the"),
        (httpx.Response(404), "answered 404", "does it take POST at the path of connect_url?"),
        (httpx.Response(302), "answered 302", "Redirects are not followed"),
        (httpx.Response(418), "answered 418", "or give the status a meaning by status_codes"),
        ({}, "the answer has no result, error or disconnect", 'answer {"result": {"user": "42"}}'),
        ({"user": "42"}, "the answer has no result", 'answer {"result": {"user": "42"}}'),
        (b"<html>", "the answer is not JSON", 'answer {"result": {"user": "42"}}'),
        (b"", "the answer is not JSON", 'answer {"result": {"user": "42"}}'),
        (
            {"result": {"user": 42}},
            "the answer's field result.user must be text, not a number",
            'answer {"result": {"user": "42"}}',
        ),
        (
            {"result": {"channels": "news"}},
            "the answer's field result.channels must be a list, not text",
            "",
        ),
        ({"error": {"message": "no"}}, "the answer's field error.code is missing", ""),
        ({"error": {"code": 5}}, "the answer's field error.code must be 100 or more", ""),
        ({"disconnect": {"code": 9_000}}, "disconnect.code must be at most 4999", ""),
        (b"x" * 70_000, "the answer is longer than 65536 bytes", "see response_limit"),
        (
            httpx.ConnectError("refused"),
            "no connection (ConnectError: refused)",
            "does the back end run at http://app.example? See connect_url",
        ),
        (httpx.ReadError("reset"), "the connection broke (ReadError)", "See connect_url"),
    ],
)
async def test_a_failing_connect_callback(
    answer: Any, text: str, mend: str, application: Application, refused: RefusedLines
) -> None:
    """The line has the kind, what was wrong with the answer, and a right answer."""
    application.answers["connect"] = answer
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        error = await talk.connect()
        assert (error["code"], error["message"]) == (100, "internal server error")
    line = refused.one()
    assert "what=connect cause=callback" in line
    assert f"the connect callback: {text}" in line or text in line
    assert mend in line
    assert node.refusals.counts == {"callback": 1}


async def test_no_answer_in_time(
    application: Application, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """The line has the time that was waited."""
    application.delays["connect"] = 5
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        await talk.connect()
    line = refused.one()
    assert "the connect callback: no answer in 1 s" in line
    assert "answer sooner, or see timeout" in line


async def test_a_back_end_that_is_taken_for_down(
    application: Application, refused: RefusedLines, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is refused without a question is told the last failure; the operator once."""
    application.answers["connect"] = httpx.Response(502)
    async with open_asking_node(application, circuit_failures=1) as node:
        for _ in range(2):
            async with talking(node, connected=False) as talk:
                await talk.connect()
        assert len(application.asked("connect")) == 1
    first, second = refused.all()
    assert "the connect callback: answered 502" in first
    text = "the connect callback: it is taken for down, because it failed 1 times in a row"
    assert f"{text}; last: answered 502" in second
    assert caplog.text.count("callbacks fail") == 1


@pytest.mark.parametrize(
    ("kind", "what", "command"),
    [
        ("subscribe", "subscribe", {"subscribe": {"channel": "news"}}),
        ("publish", "publish", {"publish": {"channel": "news", "data": 1}}),
        ("rpc", "rpc", {"rpc": {"method": "m", "data": 1}}),
    ],
)
async def test_other_failing_callbacks(
    kind: str, what: str, command: dict[str, Any], application: Application, refused: RefusedLines
) -> None:
    """Each kind is named, and shows what it may answer."""
    application.answers[kind] = {}
    async with open_asking_node(application) as node, talking(node) as talk:
        reply = await talk.ask(**command)
        assert reply["error"]["code"] == 100
    line = refused.one()
    assert f"what={what} cause=callback" in line
    assert f"the {kind} callback: the answer has no result, error or disconnect" in line
    assert 'answer {"result": {' in line


async def test_the_application_refuses(application: Application, refused: RefusedLines) -> None:
    """An error of the application's own is no failure of the callback, and has its own cause."""
    application.answers["subscribe"] = {"error": {"code": 403, "message": "alice only"}}
    async with open_asking_node(application) as node, talking(node) as talk:
        await talk.subscribe("news")
    line = refused.one()
    assert "cause=application" in line
    assert "the back end answered with error 403: alice only" in line


@pytest.mark.parametrize("code", [3_501, 4_501])
async def test_the_application_disconnects(
    code: int, application: Application, refused: RefusedLines
) -> None:
    """So has a disconnect, whatever its code."""
    application.answers["connect"] = {"disconnect": {"code": code, "reason": "sign in first"}}
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        await talk.connect()
        assert talk.client.end == Disconnect(code, "sign in first")
    line = refused.one()
    assert "what=connect cause=application" in line
    assert f"the back end answered with disconnect {code}: sign in first" in line


async def test_the_application_ends_a_connection(
    application: Application, autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """An answer to `refresh` that ends the connection is the application's refusal."""
    options = NodeOptions(channel=ASKED, ping_interval=1_000)
    for answer in ({"result": {"expired": True}}, {"disconnect": {"code": 4_501}}):
        async with open_asking_node(application, options) as node:
            until = int(node.unix_time()) + 60
            application.answers["connect"] = {"result": {"user": "a", "expire_at": until}}
            application.answers["refresh"] = answer
            before = len(refused.all())
            async with talking(node, ends=True) as talk:
                await trio.sleep(100)
                assert talk.client.end is not None
            (line,) = refused.all()[before:]
            assert "what=refresh cause=application" in line


async def test_expired_answer(application: Application, refused: RefusedLines) -> None:
    """An `expire_at` of the past is named."""
    application.answers["connect"] = {"result": {"user": "u", "expire_at": 1}}
    async with open_asking_node(application) as node, talking(node, connected=False) as talk:
        assert (await talk.connect())["code"] == 110
    line = refused.one()
    assert "cause=token_expired" in line
    assert "the expire_at of the answer of the connect callback passed" in line


@pytest.mark.parametrize("kind", ["subscribe", "publish"])
async def test_a_back_end_that_is_not_asked(kind: str, refused: RefusedLines) -> None:
    """Where the options leave the decision to a back end without an address, the line names it."""
    asked = ChannelOptions(**{f"{kind}_proxy_enabled": True})  # type: ignore[arg-type]
    options = NodeOptions(allow_anonymous=True, namespaces={"chat": asked})
    command = {"channel": "chat:1", **({"data": 1} if kind == "publish" else {})}
    async with open_node(options) as node, talking(node) as talk:
        assert (await talk.ask(**{kind: command}))["error"]["code"] == 108
    line = refused.one()
    assert f"what={kind} cause=not_offered" in line
    assert f"set callbacks.{kind}_url, or take the option out of [namespaces.chat]" in line


async def test_commands_behind_a_failed_connect(
    application: Application, refused: RefusedLines
) -> None:
    """They come in a later frame, before the SDK has the error: no bad request, one line, 3004."""
    application.answers["connect"] = httpx.Response(500)
    async with open_asking_node(application) as node:
        async with talking(node, connected=False) as talk:
            assert (await talk.connect())["temporary"] is True
            await talk.subscribe("news")
            await talk.subscribe("other")
        assert talk.transport.closed_with == SERVER_ERROR
    assert "the connect callback: answered 500" in refused.one()
