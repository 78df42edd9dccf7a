"""The token in a cookie: no other cookie hides it, and no bytes of a stranger cost much work."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import repeater
from repeater.front.request import Request, token_of_cookies
from tests.knocking import UPGRADE, WAYS, every_kind, every_way, guarded, status_of
from tests.serving import peer

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2ln-nature_x"
OTHERS = [
    "a=b",
    'g_state={"i_l":0}',
    'g_state={"i_l": 0, "i_p": 1}',
    "cart[items]=3",
    "version=2",
    "path=/somewhere",
    "domain=example.com",
    "expires=never",
    "max-age=1",
    "secure",
    "httponly",
    "name without a value",
    "two words=1",
    "said=two words",
    'quote="unclosed',
    "backslash=a\\b",
    'escaped="\\"\\073"',
    "=nameless",
    "=",
    "",
    "equals=a=b=c",
    "comma=a,b",
    "utf8=gr\u00fc\u00dfe \u2713",
    "repeater_token_old=x",
    "my_repeater_token=x",
    "$Version=1",
    "Repeater_Token=x",
    "percent=%00%3B%20repeater_token%3Dx",
]


def token(*headers: str) -> str:
    return token_of_cookies(one.encode() for one in headers)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("form", ["{0}; {1}", "{1}; {0}", "{0};{1};{0}", "{0}\t;\t{1} ; {0}"])
def test_no_cookie_hides_another(other: str, form: str) -> None:
    """The token is found before, behind and between any other cookie."""
    assert token(form.format(other, f"repeater_token={TOKEN}")) == TOKEN


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (["repeater_token=first; repeater_token=second"], "first"),
        (["repeater_token=; repeater_token=second"], "second"),
        (["repeater_token=a b; repeater_token=second"], "second"),
        (['repeater_token="quoted"'], "quoted"),
        (['repeater_token="'], ""),
        (['repeater_token=""'], ""),
        (['repeater_token="half'], ""),
        (["repeater_token=a\\073b"], ""),
        (["repeater_token"], ""),
        (["repeater_token=a,b"], ""),
        (["repeater_token=gr\u00fcn"], ""),
        (["repeater_token = spaced "], "spaced"),
        (["repeater_token=padded=="], "padded=="),
        (["a=1", "repeater_token=second.header"], "second.header"),
        ([], ""),
    ],
)
def test_which_value_counts(headers: list[str], found: str) -> None:
    """The first that can be a token, without its quotes; nothing is decoded."""
    assert token(*headers) == found


@every_way
@every_kind
async def test_on_every_way_in(way: str, kind: str) -> None:
    """Beside ordinary cookies the token opens the connection."""
    cookie = 'g_state={"i_l":0}; cart[items]=3; repeater_token=ann; version=2'
    async with guarded() as server:
        assert await status_of(server, way, kind, "", Cookie=cookie) == 200
        assert await status_of(server, way, kind, "", Cookie="repeater_token=wrong") == 401


async def test_two_cookie_headers() -> None:
    """A WebSocket's request may have more than one (RFC 9113 lets proxies split them)."""
    async with guarded() as server, peer(server) as client:
        lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        lines += "Cookie: repeater_token=ann\r\nCookie: a=b\r\nHost: test\r\n"
        await client.stream.send_all(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
        assert b" 101 " in await client.until(b"\r\n\r\n")


@pytest.mark.parametrize("way", WAYS)
async def test_a_page_that_only_the_star_allows_has_no_cookie(way: str) -> None:
    """Its user's browser sends the cookie unasked; a token that the page itself knows counts."""
    async with guarded(allowed_origins=["*", "https://friend.test"]) as server:
        for kind in ("websocket", "stream"):
            for origin, status in (("https://evil.test", 401), ("https://friend.test", 200)):
                headers = {"Origin": origin, "Cookie": "repeater_token=ann"}
                assert await status_of(server, way, kind, "", **headers) == status
            headers = {"Origin": "https://evil.test", "Authorization": "Bearer ann"}
            assert await status_of(server, way, kind, "", **headers) == 200


# ---- work


def lines_of(function: Callable[[], Any]) -> int:
    """How many lines of Python run in a call."""
    count = 0

    def trace(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("piece", [";", "a=b;", 'x="\\', "repeater_token=a b;", "\\", "=", '"'])
def test_the_work_is_linear(piece: str) -> None:
    """Twice the bytes are at most twice the lines, whatever they are."""

    def work(size: int) -> int:
        value = ("repeater_token" + piece * size).encode()
        pairs = [(b"cookie", value)]
        request = Request("GET", "/ws", b"", pairs, dict(pairs))
        return lines_of(request.credentials)

    assert work(2_000) <= 2 * work(1_000) + 10


SLOW_MODULES = {"http.cookies", "cgi", "email.message", "email.parser", "email.header"}


def test_nothing_quadratic_of_the_standard_library_is_used() -> None:
    """No module of ours imports a parser that takes quadratic time for a stranger's bytes."""
    for file in Path(repeater.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in SLOW_MODULES, file
            elif isinstance(node, ast.Import):
                assert not SLOW_MODULES & {one.name for one in node.names}, file
