"""An issuer's published keys: when they are fetched, how long they serve, what can go wrong."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA512
from jwt.warnings import InsecureKeyLengthWarning
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.access import http_client
from repeater.access.grants import TokenInvalidError
from repeater.access.tokens.jwks import KEY_ID_LIMIT
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import JWTVerifier, open_verifier
from repeater.errors import BrokerError
from tests.answering import answering, http
from tests.deadlines import LOOP_ANSWERS
from tests.signing import (
    SECRET,
    base64url,
    jwk_of,
    key_for,
    key_set,
    now,
    pem_of,
    rsa_key,
    sign,
    sign_text,
)

URL = "https://id.example/keys"
OPTIONS = TokenOptions(jwks_url=URL, jwks_ttl=100, jwks_retry_interval=10, jwks_timeout=2)
FIRST, SECOND = rsa_key("first"), rsa_key("second")


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body that is still to be read, as one from a network is."""
    for start in range(0, len(body), 65_536):
        await trio.lowlevel.checkpoint()
        yield body[start : start + 65_536]


class Issuer:
    """Publishes what is in `keys`, after `delay` seconds; or fails with `error`."""

    def __init__(self, *keys: object) -> None:
        self.keys = keys
        self.delay = 0.0
        self.error: Exception | None = None
        self.requests = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return httpx.Response(200, content=pieces(key_set(*self.keys)))


@asynccontextmanager
async def open_with(
    answer: Callable[[httpx.Request], Awaitable[httpx.Response]], options: TokenOptions = OPTIONS
) -> AsyncIterator[JWTVerifier]:
    """A verifier whose issuer is a function."""
    transport = httpx.MockTransport(answer)  # type: ignore[arg-type]  # async ones are taken too
    async with (
        httpx.AsyncClient(transport=transport) as client,
        open_verifier(options, now=now, client=client) as verifier,
    ):
        yield verifier
        assert not client.is_closed


def token(kid: str, key: object = FIRST, algorithm: str = "RS256") -> str:
    return sign({"sub": "42"}, key, algorithm, kid=kid)  # type: ignore[arg-type]


async def accept(verifier: JWTVerifier, text: str) -> None:
    assert (await verifier.verify_connection(text)).user == "42"


async def refuse(verifier: JWTVerifier, text: str) -> None:
    with pytest.raises(TokenInvalidError):
        await verifier.verify_connection(text)


async def put_off(verifier: JWTVerifier, text: str) -> None:
    with pytest.raises(BrokerError):
        await verifier.verify_connection(text)


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "ES256", "ES384", "ES512", "EdDSA"])
async def test_every_type_of_key(autojump_clock: MockClock, algorithm: str) -> None:
    """RSA, EC and Ed25519 keys are found by their `kid`, with or without `alg` and `use`."""
    key = key_for(algorithm)
    for members in ({}, {"alg": algorithm, "use": "sig"}, {"key_ops": ["verify"]}):
        issuer = Issuer(jwk_of(SECOND, "b"), jwk_of(key, "a", **members))
        async with open_with(issuer.answer) as verifier:
            await accept(verifier, token("a", key, algorithm))
            await refuse(verifier, token("b", key, algorithm))


async def test_keys_are_cached(autojump_clock: MockClock) -> None:
    """One fetch serves for the whole of `jwks_ttl`; then the next token has them fetched again."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        assert issuer.requests == 0
        for _ in range(10):
            await accept(verifier, token("a"))
        await trio.sleep(99)
        await accept(verifier, token("a"))
        assert issuer.requests == 1
        await trio.sleep(1)
        await accept(verifier, token("a"))
        assert issuer.requests == 2


async def test_concurrent_verifications_share_one_fetch(autojump_clock: MockClock) -> None:
    """A hundred connections at once ask the issuer once, and all get its answer."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    issuer.delay = 1
    async with open_with(issuer.answer) as verifier:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                verify = accept if number % 2 else refuse
                nursery.start_soon(verify, verifier, token("a" if number % 2 else f"b{number}"))
        assert issuer.requests == 1
        assert trio.current_time() < 2


async def test_who_asked_first_may_leave(autojump_clock: MockClock) -> None:
    """The one whose token started a fetch can be cancelled without harm to the others."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    issuer.delay = 1
    async with open_with(issuer.answer) as verifier, trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            nursery.start_soon(accept, verifier, token("a"))
            await wait_all_tasks_blocked()
            first.cancel()
            await accept(verifier, token("a"))
        assert first.cancelled_caught
        await accept(verifier, token("a"))
        assert issuer.requests == 1
        assert verifier.statistics().invalid == 0


async def test_rotation(autojump_clock: MockClock) -> None:
    """A key that the issuer added is found at once; one that it dropped is gone with it."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await accept(verifier, token("a"))
        issuer.keys = (jwk_of(SECOND, "b"),)
        await trio.sleep(10)
        await accept(verifier, token("a"))
        await accept(verifier, token("b", SECOND))
        assert issuer.requests == 2
        await trio.sleep(10)
        await refuse(verifier, token("a"))
        assert issuer.requests == 3


async def test_unknown_keys_do_not_hammer_the_issuer(autojump_clock: MockClock) -> None:
    """However many keys tokens invent, there is one fetch in ten seconds."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        for second in range(100):
            for number in range(10):
                header = b'{"alg":"RS256","kid":"%d-%d"}' % (second, number)
                with pytest.raises((TokenInvalidError, BrokerError)):
                    await verifier.verify_connection(sign_text(b"{}", header))
            await accept(verifier, token("a"))
            await trio.sleep(1)
        assert issuer.requests == 10


async def test_verdict_on_unknown_keys(autojump_clock: MockClock) -> None:
    """A key is called unknown only after a fetch for it; till the next one is due, try again."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await refuse(verifier, token("b", SECOND))
        # The issuer adds two keys. One was looked for a moment ago, the other was not.
        issuer.keys = (jwk_of(FIRST, "a"), jwk_of(SECOND, "b"), jwk_of(SECOND, "c"))
        await refuse(verifier, token("b", SECOND))
        await put_off(verifier, token("c", SECOND))
        await trio.sleep(10)
        await accept(verifier, token("c", SECOND))
        await accept(verifier, token("b", SECOND))
        assert issuer.requests == 2


async def test_names_that_are_no_key(autojump_clock: MockClock) -> None:
    """Without `kid`, with one that is too long or no text, or for HMAC, nothing is fetched."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await refuse(verifier, sign({}, FIRST, "RS256"))
        await refuse(verifier, token(""))
        await refuse(verifier, token("a" * (KEY_ID_LIMIT + 1)))
        await refuse(verifier, sign_text(b"{}", b'{"alg":"RS256","kid":1}'))
        await refuse(verifier, sign_text(b"{}", b'{"alg":"HS256","kid":"a"}'))
        await refuse(verifier, sign_text(b"{}", b'{"alg":"none","kid":"a"}'))
        assert issuer.requests == 0


async def test_key_decides_the_algorithm(autojump_clock: MockClock) -> None:
    """A published key proves its type's algorithms only, and only `alg` if it has one."""
    curve = key_for("ES256")
    issuer = Issuer(
        jwk_of(FIRST, "rsa"),
        jwk_of(FIRST, "rs512", alg="RS512"),
        jwk_of(FIRST, "ps256", alg="PS256"),
        jwk_of(FIRST, "enc", use="enc"),
        jwk_of(FIRST, "ops", key_ops=["encrypt"]),
        jwk_of(curve, "ec"),
        jwk_of(curve, "es384", alg="ES384"),
        {"kty": "oct", "kid": "oct", "k": base64url(SECRET.encode())},
    )
    async with open_with(issuer.answer) as verifier:
        await accept(verifier, token("rsa"))
        await accept(verifier, token("rsa", FIRST, "RS384"))
        await accept(verifier, token("rs512", FIRST, "RS512"))
        await accept(verifier, token("ec", curve, "ES256"))
        for kid in ("rs512", "ps256", "enc", "ops"):
            await refuse(verifier, token(kid))
        await refuse(verifier, token("ps256", FIRST, "PS256"))
        await refuse(verifier, token("rsa", curve, "ES256"))
        await refuse(verifier, token("ec"))
        await refuse(verifier, token("es384", curve, "ES256"))
        # A right signature, but of another algorithm than the header says.
        header = b'{"alg":"RS256","kid":"rsa"}'
        text = base64url(header) + "." + base64url(b'{"sub":"42"}')
        signature = FIRST.sign(text.encode(), PKCS1v15(), SHA512())
        await refuse(verifier, f"{text}.{base64url(signature)}")
        for kid, secret in (("oct", SECRET), ("rsa", pem_of(FIRST)), ("ec", pem_of(curve))):
            header = json.dumps({"alg": "HS256", "kid": kid}).encode()
            await refuse(verifier, sign_text(b'{"sub":"42"}', header, secret=secret))


async def test_published_and_configured_keys_together(autojump_clock: MockClock) -> None:
    """A configured key is tried first; a token that it does not prove is the issuer's matter."""
    issuer = Issuer(jwk_of(SECOND, "b"))
    options = TokenOptions(jwks_url=URL, rsa_public_key=pem_of(FIRST), hmac_secret_key=SECRET)
    async with open_with(issuer.answer, options) as verifier:
        await accept(verifier, token("b", FIRST))
        await accept(verifier, sign({"sub": "42"}, kid="b"))
        assert issuer.requests == 0
        await accept(verifier, token("b", SECOND))


async def test_issuer_down_from_the_start(autojump_clock: MockClock) -> None:
    """Without any keys no verdict is possible: the client is told to try again."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    issuer.error = httpx.ConnectError("refused")
    async with open_with(issuer.answer) as verifier:
        await put_off(verifier, token("a"))
        issuer.error = None
        await put_off(verifier, token("a"))
        assert issuer.requests == 1
        await trio.sleep(10)
        await accept(verifier, token("a"))
        seen = verifier.statistics()
        assert (seen.proven, seen.invalid, seen.unavailable) == (1, 0, 2)
        assert [(one.keys, one.fetches, one.failures) for one in seen.key_sets] == [(1, 2, 1)]


async def test_keys_outlive_an_issuer_that_is_down(autojump_clock: MockClock) -> None:
    """Old keys serve on, at one attempt in ten seconds; unknown ones get no verdict."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await accept(verifier, token("a"))
        issuer.error = httpx.ReadError("reset")
        await trio.sleep(100)
        for _ in range(20):
            await accept(verifier, token("a"))
            await put_off(verifier, token("b", SECOND))
            await trio.sleep(1)
        assert issuer.requests == 3
        issuer.error = None
        issuer.keys = (jwk_of(SECOND, "b"),)
        await accept(verifier, token("b", SECOND))
        await trio.sleep(10)
        await refuse(verifier, token("a"))


async def test_old_verdicts_end_with_the_issuer(autojump_clock: MockClock) -> None:
    """A key found missing once is not called unknown any more when the next fetch fails."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await refuse(verifier, token("b", SECOND))
        issuer.error = httpx.ReadError("reset")
        await trio.sleep(10)
        await put_off(verifier, token("b", SECOND))
        await put_off(verifier, token("b", SECOND))


async def test_slow_issuer(autojump_clock: MockClock) -> None:
    """A fetch ends after `jwks_timeout`, whether the issuer keeps its head or its body back."""

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await trio.sleep(1)

    async def slow_body(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=drip())

    slow_head = Issuer(jwk_of(FIRST, "a"))
    slow_head.delay = 1_000
    for answer in (slow_head.answer, slow_body):
        async with open_with(answer) as verifier:
            start = trio.current_time()
            await put_off(verifier, token("a"))
            assert trio.current_time() - start == pytest.approx(2)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""), (200, b"<html>"), (200, b"null"), (200, b"[]"), (200, b'{"keys": 1}'),
        (200, b"{}"), (200, b'{"keys": [' + b"[" * 50_000), (200, b"\xff\xfe"),
        (200, b" " * 262_145), (200, b'{"keys": [{"kid": "\xff"}]}'),
        (301, key_set(jwk_of(FIRST, "a"))), (404, key_set(jwk_of(FIRST, "a"))), (500, b""),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
async def test_answers_that_are_no_key_set(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, status: int, body: bytes
) -> None:
    """They count as a failed fetch: logged once, by the issuer's name, and old keys are kept."""
    good = key_set(jwk_of(FIRST, "a"))
    answers = [(200, good), (status, body)]

    async def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        code, content = answers.pop(0)
        return httpx.Response(code, content=pieces(content), headers={"location": URL})

    async with open_with(answer) as verifier:
        await accept(verifier, token("a"))
        await trio.sleep(100)
        await accept(verifier, token("a"))
        assert not answers
        assert verifier.statistics().key_sets[0].failures == 1
    assert caplog.text.count("id.example") == 1


async def test_members_of_no_use_are_left_out(autojump_clock: MockClock) -> None:
    """A set's odd members, weak keys and unknown types do no harm to the good ones."""
    rsa, curve = jwk_of(FIRST, "a"), jwk_of(key_for("ES256"), "a")
    issuer = Issuer(
        1, None, [], {}, {"kty": "RSA"}, {"kid": "a"}, {"kty": 1, "kid": "a"},
        {"kty": "RSA", "kid": "a"}, {**rsa, "n": 5}, {**rsa, "n": "!"}, {**rsa, "n": ""},
        {**rsa, "e": "AA"}, {**rsa, "n": "é"}, {**rsa, "kid": None},
        {**curve, "x": "AA"}, {**curve, "x": curve["y"]}, {**curve, "crv": "P-999"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "a"}, {"kty": "OKP", "kid": "a"},
        {"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "a"}, {"kty": "new", "kid": "a"},
        jwk_of(rsa_key("weak", 1_024), "weak"), rsa,
    )  # fmt: skip
    async with open_with(issuer.answer) as verifier:
        await accept(verifier, token("a"))
        with pytest.warns(InsecureKeyLengthWarning):
            weak = token("weak", rsa_key("weak", 1_024))
        await refuse(verifier, weak)


async def test_no_keys_is_an_answer(autojump_clock: MockClock) -> None:
    """An issuer that withdraws all its keys is believed."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    async with open_with(issuer.answer) as verifier:
        await accept(verifier, token("a"))
        issuer.keys = ()
        await trio.sleep(100)
        await refuse(verifier, token("a"))


async def test_closing_ends_a_fetch(autojump_clock: MockClock) -> None:
    """At the end of the block a fetch is cancelled, and waiting tasks get an error."""
    issuer = Issuer(jwk_of(FIRST, "a"))
    issuer.delay = 1
    async with trio.open_nursery() as nursery:
        async with open_with(issuer.answer) as verifier:
            nursery.start_soon(put_off, verifier, token("a"))
            await wait_all_tasks_blocked()
        assert trio.current_time() < 1


# Over real sockets, with the verifier's own client.


@asynccontextmanager
async def serve(answer: bytes | None) -> AsyncIterator[TokenOptions]:
    """An HTTP server that says this to everybody; options for it. None says nothing."""

    async with answering(answer, b"GET /keys") as url:
        yield TokenOptions(jwks_url=url, jwks_timeout=LOOP_ANSWERS)


async def test_over_a_socket() -> None:
    """The verifier's own client fetches the keys, and is closed with the verifier."""
    answer = http(key_set(jwk_of(FIRST, "a")))
    async with serve(answer) as options, open_verifier(options, now=now) as verifier:
        await accept(verifier, token("a"))
        await put_off(verifier, token("b"))
        await accept(verifier, token("a"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"\x00" * 1_000, http(b"{", 2), b"HTTP/1.1 200 OK\r\n\r\n",
     b"HTTP/1.1 204 No Content\r\n\r\n", http(b" " * 300_000)],
    ids=lambda answer: repr(answer)[:24],
)  # fmt: skip
async def test_broken_answers_over_a_socket(answer: bytes) -> None:
    """An answer that is not HTTP, or breaks off, is a failed fetch like any other."""
    async with serve(answer) as options, open_verifier(options, now=now) as verifier:
        await put_off(verifier, token("a"))
        assert verifier.statistics().key_sets[0].failures == 1


async def test_a_long_answer_that_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is given up in the middle of its parts leaves no generator behind."""
    monkeypatch.setattr(http_client, "_TURN", -1.0)  # a turn for each part
    async with serve(http(b" " * 300_000)) as options, open_verifier(options, now=now) as verifier:
        await put_off(verifier, token("a"))
    gc.collect()


async def test_silence_over_a_socket() -> None:
    """A server that accepts and says nothing costs the timeout."""
    async with serve(None) as options:
        quick = TokenOptions(jwks_url=options.jwks_url, jwks_timeout=0.05)
        async with open_verifier(quick, now=now) as verifier:
            await put_off(verifier, token("a"))


async def test_nobody_listens() -> None:
    """A refused connection is a failed fetch."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        async with open_verifier(TokenOptions(jwks_url=url), now=now) as verifier:
            await put_off(verifier, token("a"))
