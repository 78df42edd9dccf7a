"""Tokens: which are proven, by which keys, and which never are."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from repeater.access.grants import TokenExpiredError, TokenInvalidError
from repeater.access.tokens import verifier
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from tests.signing import (
    HMAC_OPTIONS,
    NOW,
    OTHER_SECRET,
    SECRET,
    base64url,
    key_for,
    now,
    pem_of,
    rsa_key,
    sign,
    sign_text,
)

HMAC = ("HS256", "HS384", "HS512")
RSA = ("RS256", "RS384", "RS512")
EC = ("ES256", "ES384", "ES512")
FAMILIES = {**dict.fromkeys(RSA, "rsa"), **dict.fromkeys(EC, "ecdsa"), "EdDSA": "eddsa"}


def options_for(algorithm: str) -> TokenOptions:
    """The options of a server that takes this algorithm."""
    if algorithm in HMAC:
        return HMAC_OPTIONS
    option = f"{FAMILIES[algorithm]}_public_key"
    return TokenOptions(**{option: pem_of(key_for(algorithm))})  # type: ignore[arg-type]


async def refuse(token: str, options: TokenOptions, clock: float = NOW) -> str:
    """Why both kinds of verification call the token invalid."""
    reasons = set()
    async with open_verifier(options, now=lambda: clock) as verifier:
        for verify in (verifier.verify_connection, verifier.verify_subscription):
            with pytest.raises(TokenInvalidError) as caught:
                await verify(token)
            reasons.add(str(caught.value))
    return " / ".join(sorted(reasons))


@pytest.mark.parametrize("algorithm", [*HMAC, *FAMILIES])
async def test_every_algorithm(algorithm: str) -> None:
    """A token of each algorithm is proven by its key, and by it alone."""
    key = SECRET if algorithm in HMAC else key_for(algorithm)
    token = sign({"sub": "42", "channel": "news"}, key, algorithm)
    async with open_verifier(options_for(algorithm), now=now) as verifier:
        claims = await verifier.verify_subscription(token)
        assert (claims.user, claims.channel) == ("42", "news")
        other = OTHER_SECRET if algorithm in HMAC else key_for(algorithm, "second")
        with pytest.raises(TokenInvalidError, match="wrong signature"):
            await verifier.verify_subscription(sign({"channel": "news"}, other, algorithm))


@pytest.mark.parametrize("algorithm", [*HMAC, *FAMILIES])
async def test_only_configured_keys_count(algorithm: str) -> None:
    """An algorithm that no configured key allows is refused, however well it is signed."""
    key = SECRET if algorithm in HMAC else key_for(algorithm)
    token = sign({"sub": "42"}, key, algorithm)
    for other in ("HS256", "RS256", *EC, "EdDSA"):
        if other == algorithm or (other[:2] == algorithm[:2] and other[:2] in ("HS", "RS")):
            continue
        reason = await refuse(token, options_for(other))
        assert reason.startswith("no key for its algorithm")


async def test_without_keys_every_token_is_invalid() -> None:
    """A server that has no key proves nothing, not even with the empty secret."""
    assert not TokenOptions().enabled
    assert await refuse(sign_text(b'{"sub":"42"}', secret=""), TokenOptions())


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("options", [HMAC_OPTIONS, options_for("RS256"), TokenOptions()])
async def test_alg_none(algorithm: str, options: TokenOptions) -> None:
    """No token without a signature is taken, with or without a last part."""
    header = base64url(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    body = base64url(b'{"sub":"42"}')
    for token in (f"{header}.{body}.", f"{header}.{body}.AAAA", f"{header}.{body}"):
        assert await refuse(token, options)


@pytest.mark.parametrize("algorithm", FAMILIES)
async def test_public_key_is_no_hmac_secret(algorithm: str) -> None:
    """A token signed with HMAC and the public key as its secret is refused, in every spelling."""
    pem = pem_of(key_for(algorithm))
    for secret in (pem, pem.strip(), pem.replace("\n", "")):
        token = sign_text(b'{"sub":"42"}', secret=secret)
        reason = await refuse(token, options_for(algorithm))
        assert reason.startswith("no key for its algorithm")


async def test_header_cannot_bring_a_key() -> None:
    """`jwk`, `jku` and `x5u` in a header are not looked at."""
    header = json.dumps(
        {"alg": "HS256", "jwk": {"kty": "oct", "k": base64url(OTHER_SECRET.encode())},
         "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
    )  # fmt: skip
    token = sign_text(b'{"sub":"42"}', header.encode(), secret=OTHER_SECRET)
    assert await refuse(token, HMAC_OPTIONS) == "wrong signature"


async def test_previous_secret() -> None:
    """While a secret is being replaced both are good; the old one until its date only."""
    options = TokenOptions(
        hmac_secret_key=OTHER_SECRET,
        hmac_previous_secret_key=SECRET,
        hmac_previous_secret_key_valid_until=int(NOW) + 10,
    )
    clock = NOW
    async with open_verifier(options, now=lambda: clock) as verifier:
        for secret in (SECRET, OTHER_SECRET):
            assert (await verifier.verify_connection(sign({"sub": "42"}, secret))).user == "42"
        clock = NOW + 10
        assert (await verifier.verify_connection(sign({"sub": "1"}, OTHER_SECRET))).user == "1"
        with pytest.raises(TokenInvalidError, match="wrong signature"):
            await verifier.verify_connection(sign({"sub": "42"}, SECRET))


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"exp": NOW + 1}, None),
        ({"exp": NOW + 0.5}, None),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -1}, "expired"),
        ({"exp": None}, None),
        ({"nbf": NOW}, None),
        ({"nbf": NOW + 1}, "not valid yet"),
        ({"nbf": NOW - 10, "exp": NOW + 10}, None),
        ({"iat": NOW + 10_000}, None),
    ],
)
async def test_times(claims: dict[str, float], error: str | None) -> None:
    """`exp` passed or `nbf` not reached is an expired token; `iat` decides nothing."""
    async with open_verifier(HMAC_OPTIONS, now=now) as verifier:
        for more in ({}, {"channel": "news"}):
            verify = verifier.verify_subscription if more else verifier.verify_connection
            token = sign_text(json.dumps({**claims, **more}).encode())
            if error is None:
                await verify(token)
            else:
                with pytest.raises(TokenExpiredError, match=error):
                    await verify(token)


async def test_leeway() -> None:
    """It makes `nbf` earlier, for an issuer whose clock is ahead; it does not make `exp` later."""
    options = TokenOptions(hmac_secret_key=SECRET, leeway=5)
    async with open_verifier(options, now=now) as verifier:
        for more in ({}, {"channel": "news"}):
            verify = verifier.verify_subscription if more else verifier.verify_connection
            await verify(sign({"nbf": NOW + 5, **more}))
            for late in ({"nbf": NOW + 6}, {"exp": NOW}, {"exp": NOW - 1}):
                with pytest.raises(TokenExpiredError):
                    await verify(sign({**late, **more}))


async def test_expired_token_of_somebody_else_is_invalid() -> None:
    """Only a proven token is called expired: the client would fetch another one for nothing."""
    token = sign({"exp": int(NOW) - 1, "aud": "b"}, OTHER_SECRET)
    assert await refuse(token, HMAC_OPTIONS) == "wrong signature"
    wanted = TokenOptions(hmac_secret_key=SECRET, audience="a")
    reason = await refuse(sign({"exp": int(NOW) - 1, "aud": "b"}), wanted)
    assert reason.startswith("another audience")


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"audience": "a"}, [{"aud": "a"}, {"aud": ["b", "a"]}],
         [{}, {"aud": "A"}, {"aud": "aa"}, {"aud": []}, {"aud": ["b"]}, {"aud": None}]),
        ({"audience_regex": re.compile("app-[0-9]+")}, [{"aud": "app-1"}, {"aud": ["x", "app-2"]}],
         [{}, {"aud": "app-"}, {"aud": "my-app-1"}, {"aud": "app-1\n"}, {"aud": "app-1x"}]),
        ({"issuer": "https://id.example"}, [{"iss": "https://id.example"}],
         [{}, {"iss": "https://id.example/"}, {"iss": ""}, {"iss": None}]),
        ({"issuer_regex": re.compile("https://[a-z]+\\.example")}, [{"iss": "https://id.example"}],
         [{}, {"iss": "https://id.example.evil"}, {"iss": "x https://id.example"}]),
    ],
)  # fmt: skip
async def test_audience_and_issuer(
    options: dict[str, object], good: list[dict[str, object]], bad: list[dict[str, object]]
) -> None:
    """Both must be as configured: exactly, or by a pattern that the whole value matches."""
    wanted = TokenOptions(hmac_secret_key=SECRET, **options)  # type: ignore[arg-type]
    async with open_verifier(wanted, now=now) as verifier:
        for claims in good:
            payload = json.dumps({"sub": "42", **claims}).encode()
            assert (await verifier.verify_connection(sign_text(payload))).user == "42"
    for claims in bad:
        assert "another" in await refuse(sign_text(json.dumps(claims).encode()), wanted)


async def test_subscription_tokens_may_have_keys_of_their_own() -> None:
    """With a second set of options neither kind of token is proven by the other's key."""
    mine, theirs = sign({"channel": "news"}, OTHER_SECRET), sign({"channel": "news"})
    async with open_verifier(
        HMAC_OPTIONS, TokenOptions(hmac_secret_key=OTHER_SECRET), now=now
    ) as verifier:
        assert (await verifier.verify_subscription(mine)).channel == "news"
        assert (await verifier.verify_connection(sign({"sub": "42"}))).user == "42"
        with pytest.raises(TokenInvalidError):
            await verifier.verify_subscription(theirs)
        with pytest.raises(TokenInvalidError):
            await verifier.verify_connection(sign({"sub": "42"}, OTHER_SECRET))


async def test_statistics() -> None:
    """The verifier counts how its verifications end."""
    async with open_verifier(HMAC_OPTIONS, now=now) as verifier:
        await verifier.verify_connection(sign({"sub": "42"}))
        with pytest.raises(TokenExpiredError):
            await verifier.verify_connection(sign({"exp": 1}))
        for token in ("", "a.b.c"):
            with pytest.raises(TokenInvalidError):
                await verifier.verify_connection(token)
        seen = verifier.statistics()
    assert (seen.proven, seen.expired, seen.invalid, seen.unavailable) == (1, 1, 2, 0)
    assert seen.key_sets == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"audience": "a", "audience_regex": re.compile("a")}, "exclude"),
        ({"issuer": "a", "issuer_regex": re.compile("a")}, "exclude"),
        ({"hmac_previous_secret_key": SECRET}, "needs hmac_secret_key"),
        ({"jwks_url": "ftp://id.example/keys"}, "jwks_url"),
        ({"jwks_url": "http:///keys"}, "jwks_url"),
        ({"jwks_url": "http://[/keys"}, "jwks_url"),
        ({"user_id_claim": ""}, "user_id_claim"),
    ],
)
def test_contradicting_options(options: dict[str, object], text: str) -> None:
    """Options that cannot hold together are refused when they are made."""
    with pytest.raises(ValueError, match=text) as caught:
        TokenOptions(**options)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


async def test_useless_keys_are_named() -> None:
    """A key that cannot serve its option stops the start; the text never holds the key."""
    rsa, curve = pem_of(rsa_key()), pem_of(key_for("ES256"))
    for options, text in (
        (TokenOptions(rsa_public_key="swordfish"), "rsa_public_key: not a public key"),
        (TokenOptions(rsa_public_key=curve), "rsa_public_key: a key of another type"),
        (TokenOptions(ecdsa_public_key=rsa), "ecdsa_public_key: a key of another type"),
        (TokenOptions(eddsa_public_key=rsa), "eddsa_public_key: a key of another type"),
        (TokenOptions(rsa_public_key=pem_of(rsa_key(bits=1_024))), "2048 bits, this has 1024"),
        (TokenOptions(hmac_secret_key=rsa), "must not be a public key"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            async with open_verifier(options):
                pass
        assert "swordfish" not in str(caught.value)
        assert "BEGIN" not in str(caught.value)


async def test_secrets_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """No secret is in the options' text, nor in the log that warns of a short one."""
    options = TokenOptions(hmac_secret_key="hunter2", hmac_previous_secret_key="hunter1")
    assert "hunter" not in repr(options) + str(options)
    async with open_verifier(options) as verifier:
        assert "hunter" not in repr(verifier)
    assert "short" in caplog.text
    assert "hunter" not in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
CLAIMS = ["sub", "exp", "nbf", "iat", "jti", "aud", "iss", "expire_at", "info", "b64info", "meta",
          "channels", "subs", "data", "b64data", "override", "client", "channel"]  # fmt: skip
FUZZED_OPTIONS = TokenOptions(
    hmac_secret_key=SECRET,
    rsa_public_key=pem_of(rsa_key()),
    ecdsa_public_key=pem_of(key_for("ES384")),
    eddsa_public_key=pem_of(key_for("EdDSA")),
)
SUBS = st.dictionaries(st.text(max_size=4), st.dictionaries(st.sampled_from(CLAIMS), JSON))


def verify_both(token: str) -> None:
    """Each kind of verification grants, or raises one of the two errors."""

    async def verify() -> None:
        async with open_verifier(FUZZED_OPTIONS, now=now) as verifier:
            # One of the two errors is as good as a grant; anything else fails the test.
            with suppress(TokenExpiredError, TokenInvalidError):
                connection = await verifier.verify_connection(token)
                for text in (connection.info, connection.data, connection.meta):
                    check_line(text)
                for grant in connection.channels.values():
                    check_line(grant.info)
                    check_line(grant.data)
            with suppress(TokenExpiredError, TokenInvalidError):
                subscription = await verifier.verify_subscription(token)
                check_line(subscription.grant.info)
                check_line(subscription.grant.data)

    trio.run(verify)


def check_line(text: bytes) -> None:
    """The text is nothing, or JSON that fits into one line."""
    assert b"\n" not in text
    assert b"\r" not in text
    if text:
        json.loads(text)


@settings(max_examples=200, derandomize=True)
@given(token=st.text(max_size=60) | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
def test_any_text(token: str) -> None:
    """Whatever a client sends as a token, it is proven, expired or invalid."""
    verify_both(token)


@settings(max_examples=200, derandomize=True)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), JSON)
    | JSON,
    algorithm=st.sampled_from([*HMAC, *FAMILIES, "none", "PS256", "ES256K", None]),
    signature=st.binary(max_size=140),
)
def test_any_header(header: object, algorithm: str | None, signature: bytes) -> None:
    """Whatever a header says and however long a signature is: one of the two errors."""
    if isinstance(header, dict) and algorithm is not None:
        header["alg"] = algorithm
    token = sign_text(b'{"sub":"42"}', json.dumps(header).encode())
    verify_both(token)
    verify_both(f"{token.rpartition('.')[0]}.{base64url(signature)}")


@settings(max_examples=200, derandomize=True)
@given(
    claims=st.dictionaries(st.sampled_from(CLAIMS), JSON),
    subs=SUBS | JSON,
    indent=st.sampled_from([None, 1]),
)
def test_any_claims(claims: dict[str, object], subs: object, indent: int | None) -> None:
    """Whatever a rightly signed token claims, it is proven, expired or invalid."""
    verify_both(sign_text(json.dumps({**claims, "subs": subs}, indent=indent).encode()))
    verify_both(sign_text(json.dumps(claims, indent=indent).encode()))


@settings(max_examples=200, derandomize=True)
@given(payload=st.binary(max_size=30), info=st.binary(max_size=30), b64=st.binary(max_size=20))
def test_any_payload(payload: bytes, info: bytes, b64: bytes) -> None:
    """Also bytes that are not JSON or not text, at every depth."""
    verify_both(sign_text(payload))
    verify_both(sign_text(b'{"info":' + info + b"}"))
    verify_both(sign_text(json.dumps({"b64info": base64url(b64) + "=="}).encode()))


@pytest.mark.parametrize(
    "payload",
    [b'{"info":' + b"[" * 30_000 + b"}", b'{"x":' + b"[" * 30_000, b"[" * 30_000, b'{"exp":1e999}',
     b'{"expire_at":' + b"9" * 5_000 + b"}", b'{"info":"\xff"}',
     b'{"sub":42}', b'{"channels":"news"}', b'{"channels":[1]}', b'{"subs":[]}', b"", b"null"],
    ids=lambda payload: payload[:20],
)  # fmt: skip
async def test_malformed_claims(payload: bytes) -> None:
    """Claims too deep, too large, of a wrong type or no text are invalid, rightly signed or not."""
    assert (await refuse(sign_text(payload), HMAC_OPTIONS)).count("\n") == 0


async def test_header_too_long() -> None:
    """A header of many values is not read: it would take milliseconds before anything is proven."""
    header = b'{"alg":"HS256","x":[' + b"0," * 5_000 + b"0]}"
    assert (await refuse(sign_text(b'{"sub":"42"}', header), HMAC_OPTIONS)).startswith(
        "not a token"
    )
    chain = json.dumps({"alg": "HS256", "x5c": ["M" * 2_000] * 3}).encode()
    assert await refuse(sign_text(b"{}", chain, secret=OTHER_SECRET), HMAC_OPTIONS) == (
        "wrong signature"
    )


async def test_signature_too_long() -> None:
    """No key makes such a signature."""
    signed = sign_text(b'{"sub":"42"}').rpartition(".")[0]
    assert (await refuse(f"{signed}.{'A' * 5_000}", HMAC_OPTIONS)).startswith("not a token")


async def test_a_payload_is_decoded_once_it_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's token may have 60 KiB, whose decoding takes milliseconds."""
    decoded: list[object] = []
    monkeypatch.setattr(verifier, "base64url_decode", decoded.append)
    token = sign_text(b'{"sub":"42"}', secret=OTHER_SECRET)
    assert await refuse(token, HMAC_OPTIONS) == "wrong signature"
    assert decoded == []


async def test_header_too_deep() -> None:
    """A header nested deeper than Python recurses makes the token invalid."""
    header = b'{"alg":"HS256","x":' + b"[" * 20_000
    assert (await refuse(sign_text(b"{}", header), HMAC_OPTIONS)).startswith("not a token")
