"""Callbacks and fetches of token keys go where the settings say, whatever the environment says."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from repeater.access.grants import Caller
from repeater.access.http_client import make_client, parts_of, trusted_certificates
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from repeater.backend.http import HTTPBackend
from repeater.backend.options import CallbackOptions
from repeater.errors import BrokerError
from tests.answering import http
from tests.deadlines import LOOP_ANSWERS

VERDICT = http(b'{"result":{"data":"yes"}}')
NO_KEYS = http(b'{"keys":[]}')


class Proxy:
    """An HTTP proxy that answers every request itself, and notes what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self.url = ""
        self._answer = answer

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            self.asked.append(bytes(await stream.receive_some()))
            await stream.send_all(self._answer)


@asynccontextmanager
async def proxying(answer: bytes) -> AsyncIterator[Proxy]:
    proxy = Proxy(answer)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, proxy.handle, 0, host="127.0.0.1"))
        proxy.url = f"http://me:hush@127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def secured(ca: trustme.CA, answer: bytes) -> AsyncIterator[str]:
    """The URL of a server with a certificate of this authority; it says this to everybody."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.aclose()
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, handle, 0, context, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        yield f"https://localhost:{port}/"
        nursery.cancel_scope.cancel()


async def ask_application(url: str, proxy: str = "", ca_file: str = "") -> None:
    """Let an application answer one call. Raises BrokerError if it does not."""
    options = CallbackOptions(rpc_url=url, proxy=proxy, ca_file=ca_file, timeout=LOOP_ANSWERS)
    async with make_client(proxy=options.proxy, ca_file=options.ca_file) as client:
        await HTTPBackend(options, client).rpc(Caller("c", "websocket"), "m", b"")


async def fetch_keys(url: str, proxy: str = "", ca_file: str = "") -> None:
    """Fetch an issuer's keys once. Raises BrokerError if they can't be had."""
    options = TokenOptions(
        jwks_url=url, jwks_proxy=proxy, jwks_ca_file=ca_file, jwks_timeout=LOOP_ANSWERS
    )
    failure: BrokerError | None = None
    async with open_verifier(options) as verifier:
        (key_set,) = verifier._key_sets
        try:
            assert await key_set.find("unknown") == []
        except BrokerError as error:  # the verifier's nursery would wrap it
            failure = error
    if failure is not None:
        raise failure


Ask = Callable[..., Awaitable[None]]
both = pytest.mark.parametrize(
    ("ask", "answer", "start"),
    [(ask_application, VERDICT, b"POST "), (fetch_keys, NO_KEYS, b"GET ")],
    ids=["callbacks", "token keys"],
)


@both
async def test_the_proxy_of_the_settings_is_used(ask: Ask, answer: bytes, start: bytes) -> None:
    """It is asked for the whole URL, with its own user and password."""
    async with proxying(answer) as proxy:
        await ask("http://app.invalid/path", proxy=proxy.url)
    (asked,) = proxy.asked
    assert asked.startswith(start + b"http://app.invalid/path HTTP/1.1\r\n")
    assert b"proxy-authorization: basic " in asked.lower()


@both
async def test_the_environment_s_proxy_is_not(
    ask: Ask, answer: bytes, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY, HTTPS_PROXY and ALL_PROXY change nothing; neither does a .netrc file."""
    async with proxying(answer) as proxy, proxying(answer) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        await ask(server.url.replace("me:hush@", "") + "/path")
    assert proxy.asked == []
    (asked,) = server.asked
    assert asked.startswith(start + b"/path HTTP/1.1\r\n")


@both
async def test_the_file_of_authorities_is_used(
    ask: Ask, answer: bytes, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of an authority in the file is good; without the file it is not, whatever
    SSL_CERT_FILE says."""
    ca, file = trustme.CA(), tmp_path / "authorities.pem"
    ca.cert_pem.write_to_path(str(file))
    async with secured(ca, answer) as url:
        await ask(url, ca_file=str(file))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(BrokerError):
            await ask(url)


async def test_each_kind_of_token_has_its_own_way() -> None:
    """Connection and subscription tokens of two issuers are proven with keys fetched by two
    proxies."""
    async with proxying(NO_KEYS) as first, proxying(NO_KEYS) as second:
        options = [
            TokenOptions(jwks_url="http://issuer.invalid/", jwks_proxy=one.url)
            for one in (first, second)
        ]
        async with open_verifier(*options) as verifier:
            for key_set in verifier._key_sets:
                await key_set.find("unknown")
    assert (len(first.asked), len(second.asked)) == (1, 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot read the file: No such file"), ("nonsense", "does not hold a certificate")],
)
def test_a_file_without_authorities_is_named(
    content: str | None, text: str, tmp_path: Path
) -> None:
    """What is wrong with it is said in words, without OpenSSL's."""
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=text):
        trusted_certificates(str(file))


async def test_cookies_are_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading those of one answer took 50 ms; none is sent back."""

    def fail(*_given: object) -> None:
        raise AssertionError("a cookie was read")

    monkeypatch.setattr(CookieJar, "make_cookies", fail)
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, headers=[("Set-Cookie", f"a{n}=b") for n in range(100)])

    async with make_client(httpx.MockTransport(answer)) as client:
        for _ in range(2):
            await client.get("http://app.example/")
    assert not any("cookie" in one.headers for one in asked)


async def test_an_answer_in_many_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn while it is read, once a millisecond."""
    times = itertools.count(0, 0.0005)
    monkeypatch.setattr("repeater.access.http_client.perf_counter", lambda: next(times))
    turns = 0

    async def small() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b"x"

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        parts = [one async for one in parts_of(httpx.Response(200, content=small()))]
        nursery.cancel_scope.cancel()
    assert b"".join(parts) == b"x" * 1_000
    assert turns >= 300
