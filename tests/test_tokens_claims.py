"""What the claims of a good token grant."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from repeater.access.grants import (
    ConnectionGrant,
    Overrides,
    SubscriptionClaims,
    SubscriptionGrant,
    TokenInvalidError,
)
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from tests.signing import HMAC_OPTIONS, NOW, SECRET, now, sign_text


async def connect(claims: object, **options: Any) -> ConnectionGrant:
    wanted = TokenOptions(hmac_secret_key=SECRET, **options)
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    async with open_verifier(wanted, now=now) as verifier:
        try:
            return await verifier.verify_connection(sign_text(payload))
        except TokenInvalidError as error:
            caught = error  # Out of the block, whose nursery would wrap it.
    raise caught


async def subscribe(claims: object) -> SubscriptionClaims:
    async with open_verifier(HMAC_OPTIONS, now=now) as verifier:
        try:
            return await verifier.verify_subscription(sign_text(json.dumps(claims).encode()))
        except TokenInvalidError as error:
            caught = error
    raise caught


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


async def test_every_claim_of_a_connection() -> None:
    """A connection token's claims arrive in the grant, JSON as one line, else as written."""
    grant = await connect(
        b"""{"sub": "42", "jti": "t1", "iat": 1699999990.9, "exp": 1700000060,
        "info": {"name": "Ann",\n "n": 1.0e10}, "meta": [1,\n 2],
        "subs": {"news": {"info": {"a": 1}, "data": [1, 2],
            "override": {"presence": {"value": true}, "join_leave": {"value": false},
                "force_recovery": {"value": true}, "force_positioning": {},
                "force_push_join_leave": null}}},
        "channels": ["ignored"], "unknown": {"x": 1}}"""
    )
    assert grant == ConnectionGrant(
        user="42",
        info=b'{"name": "Ann", "n": 1.0e10}',
        meta=b"[1, 2]",
        expire_at=1_700_000_060,
        channels={
            "news": SubscriptionGrant(
                info=b'{"a": 1}',
                data=b"[1, 2]",
                overrides=Overrides(
                    presence=True,
                    join_leave=False,
                    force_recovery=True,
                    force_positioning=False,
                    force_push_join_leave=None,
                ),
            )
        },
        token_id="t1",
        issued_at=1_699_999_990,
    )


async def test_every_claim_of_a_subscription() -> None:
    """A subscription token's claims arrive too."""
    claims = await subscribe(
        {"sub": "42", "channel": "news", "client": "c1", "jti": "t1", "iat": 5, "info": {"a": 1},
         "b64data": b64(b'{"b": 2}'), "exp": NOW + 60, "override": {"presence": {"value": True}}}
    )  # fmt: skip
    assert claims == SubscriptionClaims(
        user="42",
        channel="news",
        client="c1",
        token_id="t1",
        issued_at=5,
        grant=SubscriptionGrant(
            info=b'{"a": 1}',
            data=b'{"b": 2}',
            expire_at=int(NOW) + 60,
            overrides=Overrides(presence=True),
        ),
    )


async def test_empty_tokens() -> None:
    """A connection token that says nothing is an anonymous user's; null is the same as nothing."""
    names = "sub exp nbf iat jti aud iss expire_at channel info b64info channels subs meta"
    assert await connect({}) == ConnectionGrant()
    assert await connect(dict.fromkeys(names.split())) == ConnectionGrant()
    assert await connect({"channel": "", "subs": {}, "channels": []}) == ConnectionGrant()


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, 0),
        ({"exp": NOW + 5}, int(NOW) + 5),
        ({"exp": NOW + 5, "expire_at": 0}, 0),
        ({"exp": NOW + 5, "expire_at": -1}, 0),
        ({"exp": NOW + 5, "expire_at": int(NOW) + 99}, int(NOW) + 99),
        ({"expire_at": 7}, 7),
    ],
)
async def test_expire_at(claims: dict[str, Any], expected: int) -> None:
    """`expire_at` replaces `exp` as the end of what is granted; 0 is never."""
    assert (await connect(claims)).expire_at == expected
    assert (await subscribe({"channel": "c", **claims})).grant.expire_at == expected


async def test_channels() -> None:
    """`channels` subscribes to each once; `subs` wins over it if it names any."""
    assert (await connect({"channels": ["a", "b", "a"]})).channels == {
        "a": SubscriptionGrant(), "b": SubscriptionGrant()
    }  # fmt: skip
    assert list((await connect({"channels": ["a"], "subs": {"b": {}}})).channels) == ["b"]
    assert list((await connect({"channels": ["a"], "subs": {}})).channels) == ["a"]
    assert (await connect({"subs": {"b": None}})).channels == {"b": SubscriptionGrant()}


async def test_base64_wins() -> None:
    """`b64info` and `b64data` hold the same JSON in base64, and win over the plain claims."""
    grant = await connect({"info": 1, "b64info": b64(b'{"a":\n 1}')})
    assert grant.info == b'{"a": 1}'
    grant = await connect({"subs": {"a": {"data": 1, "b64data": b64(b"2")}}})
    assert grant.channels["a"].data == b"2"
    assert (await connect({"info": 1, "b64info": ""})).info == b"1"


@pytest.mark.parametrize(
    "text", ["!", "e30", "e3 0=", "é", b64(b"nope"), b64(b'"\xff"'), b64(b" ")]
)
async def test_base64_must_be_of_json(text: str) -> None:
    """Whatever else it is makes the token invalid, since clients get it as JSON."""
    for claims in ({"b64info": text}, {"subs": {"a": {"b64info": text}}},
                   {"subs": {"a": {"b64data": text}}}):  # fmt: skip
        with pytest.raises(TokenInvalidError, match="a claim of info or data"):
            await connect(claims)
    for claims in ({"b64info": text}, {"b64data": text}):
        with pytest.raises(TokenInvalidError, match="a claim of info or data"):
            await subscribe({"channel": "c", **claims})


async def test_the_kinds_do_not_stand_in_for_each_other() -> None:
    """A token with a channel opens no connection; one without opens no channel."""
    with pytest.raises(TokenInvalidError, match="not a connection token"):
        await connect({"sub": "42", "channel": "news"})
    for claims in ({"sub": "42"}, {"sub": "42", "channel": ""}, {"channels": ["news"]}):
        with pytest.raises(TokenInvalidError, match="no channel"):
            await subscribe(claims)


@pytest.mark.parametrize(("value", "user"), [("ann", "ann"), (42, "42"), (None, ""), ("", "")])
async def test_user_id_claim(value: object, user: str) -> None:
    """Another claim than `sub` may hold the user's id, as text or as a whole number."""
    assert (await connect({"sub": "x", "uid": value}, user_id_claim="uid")).user == user
    assert (await connect({"sub": "x"}, user_id_claim="uid")).user == ""


@pytest.mark.parametrize("value", [b"1.5", b"true", b"[]", b"{}", b"1" * 6_000], ids=len)
async def test_user_id_of_another_type(value: bytes) -> None:
    """Anything else is not a user id."""
    with pytest.raises(TokenInvalidError, match="uid is not a user id"):
        await connect(b'{"uid":' + value + b"}", user_id_claim="uid")
