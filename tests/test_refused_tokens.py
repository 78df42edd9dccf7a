"""Each token that is refused leaves one line, which says what is wrong with it and what to do."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from repeater.access.grants import Denial, TokenInvalidError
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from repeater.clients.limits import Place
from repeater.errors import Disconnect
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, LimitOptions, NodeOptions
from tests.conversation import talking
from tests.refusing import RefusedLines
from tests.signing import (
    HMAC_OPTIONS,
    NOW,
    OTHER_SECRET,
    SECRET,
    base64url,
    key_for,
    now,
    pem_of,
    sign,
    sign_text,
)

INVALID = Disconnect(3500, "invalid token")
OPEN = ChannelOptions(allow_subscribe_for_client=True)


@asynccontextmanager
async def proving(
    options: TokenOptions = HMAC_OPTIONS,
    subscription: TokenOptions | None = None,
    clock: float = NOW,
    **node_options: Any,
) -> AsyncIterator[Node]:
    """A production node that proves tokens, where it is always the same time."""
    async with (
        open_verifier(options, subscription, now=lambda: clock) as verifier,
        open_node(NodeOptions(**node_options), verifier=verifier) as node,
    ):
        node.unix_time = lambda: clock  # type: ignore[method-assign]
        yield node


async def connect(
    token: str,
    options: TokenOptions = HMAC_OPTIONS,
    subscription: TokenOptions | None = None,
    clock: float = NOW,
) -> Disconnect | None:
    """Connect with this token; how that ended."""
    async with (
        proving(options, subscription, clock) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.connect(token)
        return talk.client.end


async def subscribe(token: str) -> Disconnect | None:
    """Connect as user 42, and subscribe to `news` with this token; how that ended."""
    async with proving(channel=OPEN) as node, talking(node, connected=False) as talk:
        await talk.connect(sign({"sub": "42"}))
        await talk.subscribe("news", token=token)
        return talk.client.end


def line_of(refused: RefusedLines) -> tuple[str, str, str]:
    """Cause, reason and advice of the only line."""
    line = refused.one()
    said = re.fullmatch(
        r"""refused +what=\w+ cause=(\w+) why=(".*?"|'.*?') (?:mend=(".*?"|'.*?'|\S+) )?code.*""",
        line,
    )
    assert said, line
    return said[1], said[2][1:-1], (said[3] or "").strip("\"'")


async def test_integer_sub(refused: RefusedLines) -> None:
    """The key of a row of a database is a number, and a user's id is text."""
    assert await connect(sign_text(b'{"sub":42}')) == INVALID
    assert line_of(refused) == (
        "token",
        "the token is invalid: the claim sub must be text, not a number",
        "write the user's id as text, in Python str(user.pk)",
    )


@pytest.mark.parametrize(
    ("claims", "text", "mend"),
    [
        (b'{"channels":"news"}', "the claim channels must be a list, not text", '["news"]'),
        (b'{"exp":"soon"}', "the claim exp must be a number, not text", "int(time.time()) + 600"),
        (b'{"subs":["a"]}', "the claim subs must be an object, not a list", '{"news": {}}'),
        (b'{"aud":["a",1]}', "the claim aud[1] must be text, not a number", ""),
        (b'{"subs":{"a":{"b64info":5}}}', "the claim subs[...].b64info must be text", ""),
        (b"[]", "the payload must be an object, not a list", "write a JSON object"),
        (b"what", "the payload is not JSON", "write a JSON object"),
        (b'{"b64info":"!"}', "a claim of info or data: not base64 of text", ""),
    ],
)
async def test_claims_of_a_wrong_type(
    claims: bytes, text: str, mend: str, refused: RefusedLines
) -> None:
    """The line names the claim and what it must be."""
    assert await connect(sign_text(claims)) == INVALID
    cause, why, what = line_of(refused)
    assert cause == "token"
    assert text in why
    assert mend in what


async def test_another_secret(refused: RefusedLines) -> None:
    """The line names the setting whose secret did not sign the token."""
    assert await connect(sign({"sub": "42"}, OTHER_SECRET)) == INVALID
    assert line_of(refused) == (
        "token",
        "the token is invalid: wrong signature",
        "sign with the secret of token.hmac_secret_key, byte for byte",
    )


async def test_short_secret(refused: RefusedLines) -> None:
    """Some libraries refuse a short secret, so the line says that the server's is one."""
    assert await connect(sign({"sub": "42"}), TokenOptions(hmac_secret_key="hunter2")) == INVALID
    cause, why, mend = line_of(refused)
    assert (cause, why) == ("token", "the token is invalid: wrong signature")
    assert mend.endswith("that one is short, some libraries refuse it: take 32 bytes")
    assert "hunter2" not in refused.one()


@pytest.mark.parametrize(
    ("configured", "used", "text"),
    [
        (f" {SECRET}\n", SECRET, "token.hmac_secret_key without the white space around it"),
        (SECRET, f"{SECRET}\n", "token.hmac_secret_key and a line break"),
        (f'"{SECRET}"', SECRET, "token.hmac_secret_key without the quotes around it"),
        (
            base64.b64encode(SECRET.encode()).decode().rstrip("="),
            SECRET,
            "token.hmac_secret_key decoded from base64",
        ),
        (SECRET.encode().hex(), SECRET, "token.hmac_secret_key decoded from hex"),
    ],
)
async def test_a_secret_in_another_form(
    configured: str, used: str, text: str, refused: RefusedLines
) -> None:
    """A form of the secret that did sign the token is found by trying, and named."""
    options = TokenOptions(hmac_secret_key=configured)
    assert await connect(sign({"sub": "42"}, used), options) == INVALID
    cause, why, _ = line_of(refused)
    assert cause == "token"
    assert why == f"the token is invalid: wrong signature: it is signed with {text}"
    assert SECRET not in refused.one()


async def test_secret_of_before(refused: RefusedLines) -> None:
    """The previous secret's time is over: the line says that it signed the token."""
    options = TokenOptions(
        hmac_secret_key=OTHER_SECRET,
        hmac_previous_secret_key=SECRET,
        hmac_previous_secret_key_valid_until=int(NOW) - 1,
    )
    assert await connect(sign({"sub": "42"}), options) == INVALID
    assert "hmac_previous_secret_key_valid_until" in line_of(refused)[1]


async def test_key_of_the_other_kind(refused: RefusedLines) -> None:
    """A connection token that is signed with the key of subscription tokens says so."""
    theirs = TokenOptions(hmac_secret_key=OTHER_SECRET)
    assert await connect(sign({"sub": "42"}, OTHER_SECRET), subscription=theirs) == INVALID
    _, why, mend = line_of(refused)
    assert "it is signed with a key of [subscription_token]" in why
    assert "[token]" in mend


async def test_an_algorithm_without_a_key(refused: RefusedLines) -> None:
    """The line has the token's algorithm, those that have a key, and the setting for it."""
    assert await connect(sign({"sub": "42"}, key_for("RS256"), "RS256")) == INVALID
    _, why, mend = line_of(refused)
    assert "it is signed with 'RS256', and [token] has keys for HS256, HS384, HS512" in why
    assert "token.rsa_public_key" in mend


async def test_a_token_that_is_not_signed(refused: RefusedLines) -> None:
    """`alg: none` is named."""
    header, body = base64url(b'{"alg":"none"}'), base64url(b'{"sub":"42"}')
    assert await connect(f"{header}.{body}.") == INVALID
    assert "it is not signed" in line_of(refused)[1]


async def test_a_public_key_of_another_pair(refused: RefusedLines) -> None:
    """With public keys the line asks for the private key."""
    options = TokenOptions(rsa_public_key=pem_of(key_for("RS256")))
    assert await connect(sign({"sub": "42"}, key_for("RS256", "second"), "RS256"), options)
    assert line_of(refused)[2] == "sign with the private key of token.rsa_public_key"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Bearer {}", "begins with 'Bearer'"),
        ("b'{}'", "bytes, printed by Python"),
        ('"{}"', "in quotes"),
        ("{}\n", "white space"),
        ("42", "three parts"),
    ],
)
async def test_what_is_around_a_token(text: str, reason: str, refused: RefusedLines) -> None:
    """What libraries and copying leave around a token is named; the token is not repeated."""
    token = sign({"sub": "42"})
    assert await connect(text.format(token)) == INVALID
    assert reason in line_of(refused)[1]
    assert token not in refused.one()


async def test_wrong_audience(refused: RefusedLines) -> None:
    """The line has both: what the token has, and what the setting wants."""
    options = TokenOptions(hmac_secret_key=SECRET, audience="chat")
    assert await connect(sign({"sub": "42", "aud": ["shop", "x" * 200]}), options) == INVALID
    cause, why, mend = line_of(refused)
    assert cause == "token"
    assert (
        f"another audience: its aud is 'shop', '{'x' * 100}', and token.audience is 'chat'" in why
    )
    assert "write that as aud into the token" in mend


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"audience": "chat"}, "it has no claim aud, and token.audience is 'chat'"),
        ({"audience_regex": re.compile("app-.")}, "and token.audience_regex is 'app-.'"),
        ({"issuer": "https://id.example"}, "another issuer: it has no claim iss, and token.issuer"),
    ],
)
async def test_no_audience(options: dict[str, Any], text: str, refused: RefusedLines) -> None:
    """A claim that is missing is named; so is a pattern."""
    wanted = TokenOptions(hmac_secret_key=SECRET, **options)
    assert await connect(sign({"sub": "42"}), wanted) == INVALID
    assert text in line_of(refused)[1]


async def test_expired(refused: RefusedLines) -> None:
    """The line says since when, by both clocks."""
    token = sign({"sub": "42", "iat": NOW - 700, "exp": NOW - 100})
    assert await connect(token) is None
    cause, why, mend = line_of(refused)
    assert cause == "token_expired"
    assert why == (
        "the token is good, but expired 100 s ago: its exp is 2023-11-14T22:11:40Z, "
        "our time is 2023-11-14T22:13:20Z"
    )
    assert mend.startswith("fetch a new one; if this one was new, a clock is off: it was made at ")
    assert "2023-11-14T22:01:40Z by its issuer's clock, 700 s ago by ours" in mend


async def test_a_clock_that_is_off(refused: RefusedLines) -> None:
    """A server an hour behind finds tokens not valid yet; the line compares the clocks."""
    token = sign({"sub": "42", "iat": NOW, "nbf": NOW, "exp": NOW + 600})
    assert await connect(token, clock=NOW - 3_600) is None
    assert line_of(refused) == (
        "token_expired",
        "the token is good, but not valid yet, only in 3600 s: its nbf is 2023-11-14T22:13:20Z, "
        "our time is 2023-11-14T21:13:20Z",
        "the issuer's clock is ahead or ours is behind: set both right, or allow for it by leeway",
    )


@pytest.mark.parametrize(
    ("claims", "mend"),
    [
        ({"exp": 600}, "exp is a time, not a duration"),
        ({"nbf": NOW * 1_000}, "nbf is Unix seconds, not milliseconds"),
        ({"iat": NOW + 60, "exp": NOW - 1}, "its exp must be after its iat"),
        ({"exp": NOW - 1}, "set the clocks of issuer and server right"),
        ({"exp": -(2**53)}, "exp is a time"),
    ],
)
async def test_odd_times(claims: dict[str, float], mend: str, refused: RefusedLines) -> None:
    """Durations, milliseconds and ends before the begin are called what they are."""
    assert await connect(sign_text(json.dumps({"sub": "42", **claims}).encode())) is None
    assert mend in line_of(refused)[2]


async def test_a_past_expire_at(refused: RefusedLines) -> None:
    """The claim that ends the connection itself is named."""
    assert await connect(sign({"sub": "42", "expire_at": int(NOW) - 7})) is None
    cause, why, _ = line_of(refused)
    assert cause == "token_expired"
    assert "the expire_at of the token passed 7 s ago" in why


async def test_kinds_of_tokens(refused: RefusedLines) -> None:
    """A subscription token opens no connection."""
    assert await connect(sign({"sub": "42", "channel": "news"})) == INVALID
    _, why, mend = line_of(refused)
    assert "this is a subscription token, not a connection token" in why
    assert mend == "connect with a token without the claim channel"


async def test_a_connection_token_for_a_channel(refused: RefusedLines) -> None:
    """The other way round it costs the subscription only."""
    assert await subscribe(sign({"sub": "42"})) is None
    _, why, mend = line_of(refused)
    assert "no channel: this is no subscription token" in why
    assert mend == "write the channel's name as the claim channel"


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"sub": "41", "channel": "news"}, "its user is '41', the connection's is '42'"),
        ({"sub": "42", "channel": "old"}, "another channel: its claim channel is 'old'"),
        ({"sub": "42", "channel": "news", "client": "x"}, "its claim client is not this one's id"),
    ],
)
async def test_a_subscription_token_of_another(
    claims: dict[str, str], text: str, refused: RefusedLines
) -> None:
    """The line says which claim differs: the user, the channel or the connection."""
    assert await subscribe(sign(claims)) == INVALID
    cause, why, _ = line_of(refused)
    assert cause == "token"
    assert text in why
    assert "channel=news" in refused.one()


async def test_a_token_without_a_user(refused: RefusedLines) -> None:
    """Where guests may not come, the line says how they could."""
    end = await connect(sign({"info": {}}))
    assert end is not None
    assert end.code == 3507
    cause, why, mend = line_of(refused)
    assert (cause, "names no user" in why) == ("credentials", True)
    assert "allow_guest_tokens = true" in mend


async def test_a_token_where_there_is_no_key(refused: RefusedLines) -> None:
    """The line names the setting."""
    assert await connect(sign({"sub": "42"}), TokenOptions()) == INVALID
    assert line_of(refused)[1:] == (
        "the token is invalid: the server has no key for tokens",
        "set token.hmac_secret_key, or another key",
    )


async def test_no_token(refused: RefusedLines) -> None:
    """Nothing that says who the client is: the line names all three ways."""
    end = await connect("")
    assert end is not None
    assert end.code == 3501
    cause, why, mend = line_of(refused)
    assert cause == "credentials"
    assert "sent no token" in why
    assert all(name in mend for name in ("token", "connect_url", "allow_anonymous = true"))


async def test_keys_that_cannot_be_fetched(refused: RefusedLines) -> None:
    """The line says which issuer, and what was wrong with it."""
    options = TokenOptions(jwks_url="http://127.0.0.1:1/keys")
    token = sign({"sub": "42"}, key_for("RS256"), "RS256", kid="a")
    assert await connect(token, options) is None
    cause, why, mend = line_of(refused)
    assert cause == "callback"
    assert "the issuer's keys are not available now: 127.0.0.1: no connection" in why
    assert "see jwks_url" in mend


async def test_refreshing_with_another_users_token(refused: RefusedLines) -> None:
    """A refresh names the user of the token, and that of the connection."""
    async with proving() as node, talking(node, connected=False) as talk:
        await talk.connect(sign({"sub": "42"}))
        await talk.ask(refresh={"token": sign({"sub": "41"})})
        assert talk.client.end == INVALID
    assert "what=refresh" in refused.one()
    assert "its user is '41', the connection's is '42'" in line_of(refused)[1]


async def test_too_many_connections_of_a_user(refused: RefusedLines) -> None:
    """The line names the limit and its value."""
    async with (
        proving(limits=LimitOptions(connections_per_user=1)) as node,
        talking(node, connected=False) as one,
        talking(node, connected=False) as other,
    ):
        place = one.client.place = Place(node.places)
        other.client.place = Place(node.places)
        for talk in (one, other):
            await talk.connect(sign({"sub": "42"}))
        assert other.client.end == Disconnect(3504, "connection limit")
        place.leave()
    cause, _, mend = line_of(refused)
    assert cause == "limit"
    assert mend == "see the setting limits.connections_per_user, which is 1"


async def test_a_blocked_user(refused: RefusedLines) -> None:
    """A block refuses with its own cause; that it ends who is there is no refusal."""
    async with proving() as node:
        async with talking(node, connected=False) as one:
            await one.connect(sign({"sub": "42"}))
            await node.denials.change(Denial(user="42"))
            assert one.client.end is not None
        assert refused.all() == []
        async with talking(node, connected=False) as two:
            await two.connect(sign({"sub": "42"}))
    assert line_of(refused) == ("denial", "the user is blocked", "lift it by unblock_user")


async def test_development_mode_says_it_to_the_client(refused: RefusedLines) -> None:
    """As much of the reason as a close frame takes."""
    async with proving(insecure=True) as node, talking(node, connected=False) as talk:
        await talk.connect(sign_text(b'{"sub":42}'))
        assert talk.client.end is not None
        assert talk.client.end.reason.startswith(
            "invalid token: the token is invalid: the claim sub must be text, not a number"
        )
    assert refused.one()


async def test_no_guess_without_proof() -> None:
    """A wrong signature that no form of the secret explains is only called wrong."""
    async with open_verifier(HMAC_OPTIONS, now=now) as verifier:
        with pytest.raises(TokenInvalidError) as caught:
            await verifier.verify_connection(sign_text(b"{}", secret=OTHER_SECRET))
    assert str(caught.value) == "wrong signature"
