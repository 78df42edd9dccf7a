"""Values that are hostile by their depth, their number, their size or their spelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

DEPTHS = (1, 2, 127, 128, 129, 130, 500, 972, 974, 975, 976, 978, 980, 1_500, 10_000, 30_000)
SIZES = (0, 1, 63, 64, 127, 128, 254, 255, 256, 257, 4_095, 4_096, 16_384, 40_000, 65_500, 65_537)
BLANKS = ("", "\r", "\n", " ", "\t", "\r\n")
SPELLINGS = (
    '"\\ud83d"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\u2028"', '"\x7f"', "null", "true", "-0",
    "1e999", "1e-999", "9" * 400, "0.1" + "0" * 300, '""', "{}", "[]", '{"":null}', '{"a":1,"a":2}',
    " 1 ", "\r\n1\r\n", '"a\\nb"', "NaN", "Infinity", "'a'", "[1,]", "\ufeff1", '"é"', '"\x80"',
    "01", "[[]]",
)  # fmt: skip


def deep(rng: Random) -> str:
    """Brackets in brackets, with blanks between them that JSON ignores."""
    depth = rng.choice(DEPTHS)
    blank = rng.choice(BLANKS)
    if rng.random() < 0.5:
        text = f"[{blank}" * depth + "]" * depth
    else:
        text = f'{{"a":{blank}' * depth + "1" + "}" * depth
    return text if rng.random() < 0.9 else text[: rng.randrange(len(text))]


def long(rng: Random) -> str:
    """One text or number of a length near some bound."""
    size = rng.choice(SIZES)
    character = rng.choice(("a", "é", "\\\\", '\\"', "\\n", "\\u0041", "#", ",", ":"))
    return f'"{character * size}"' if rng.random() < 0.8 else "1" * max(1, size)


def many(rng: Random) -> str:
    """Many small members."""
    count = rng.choice((0, 1, 64, 65, 500, 5_000))
    if rng.random() < 0.5:
        return "[" + ",".join(rng.choice(("1", "[]", '""', "null")) for _ in range(count)) + "]"
    return "{" + ",".join(f'"k{number}":{number}' for number in range(count)) + "}"


def odd(rng: Random) -> str:
    """A value that writers of JSON disagree about, or that is not JSON."""
    return rng.choice(SPELLINGS)


KINDS: tuple[Callable[[Random], str], ...] = (deep, long, many, odd)


def value(rng: Random) -> str:
    """Any hostile value, as text."""
    return rng.choice(KINDS)(rng)


NAMES = ("a", "b", "news", "#1", "$p", "a#1,2", "nowhere:x", "", "é", "x" * 255, "x" * 256, "a:b:c")
FIELDS: dict[str, tuple[str, ...]] = {
    "connect": ("token", "data", "name", "subs", "headers"),
    "subscribe": ("channel", "data", "recover", "offset", "epoch", "tf", "delta", "token", "info"),
    "unsubscribe": ("channel",),
    "publish": ("channel", "data"),
    "presence": ("channel",),
    "presence_stats": ("channel",),
    "history": ("channel", "limit", "since", "reverse"),
    "rpc": ("method", "data"),
    "refresh": ("token",),
    "sub_refresh": ("channel", "token"),
    "send": ("data",),
}
API_FIELDS: dict[str, tuple[str, ...]] = {
    "publish": ("channel", "data", "b64data", "tags", "idempotency_key", "version", "delta"),
    "broadcast": ("channels", "data", "tags", "idempotency_key"),
    "batch": ("commands", "parallel"),
    "history": ("channel", "limit", "since", "reverse"),
    "subscribe": ("channel", "user", "info", "client", "recover_since", "override"),
    "unsubscribe": ("channel", "user"),
    "disconnect": ("user", "disconnect", "whitelist"),
    "refresh": ("user", "expired", "expire_at", "info"),
    "presence": ("channel",),
    "block_user": ("user", "expire_at"),
    "rpc": ("method", "params"),
    "info": ("a",),
    "channels": ("pattern",),
}


def _members(rng: Random, fields: tuple[str, ...]) -> str:
    """Some of these fields, most of them good, one or two of them hostile."""
    good: dict[str, Any] = {"channel": rng.choice(NAMES), "data": 1, "limit": 10, "user": "u"}
    texts = {name: json.dumps(good[name]) for name in fields if name in good}
    for name in rng.sample(fields, min(len(fields), rng.choice((0, 1, 1, 2)))):
        texts[name] = value(rng)
    return "{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}"


def command(rng: Random) -> str:
    """One command of a client."""
    method = rng.choice(tuple(FIELDS))
    number = rng.choice(("1", "2", "4294967295", "0", "-1", "null", '"a"', "1.5"))
    if rng.random() < 0.8:
        number = str(rng.randint(1, 1_000))
    return f'{{"id":{number},"{method}":{_members(rng, FIELDS[method])}}}'


def message(rng: Random) -> str:
    """Some commands in one message, perhaps the same one very often."""
    one = command(rng)
    repeats = rng.choice((1, 1, 1, 2, 20, 400, 1_500))
    most = max(1, 70_000 // (len(one) + 1))
    return "\n".join([one] * min(repeats, most))


def call(rng: Random) -> tuple[str, str]:
    """A method of the server API and a body for it."""
    method = rng.choice(tuple(API_FIELDS))
    body = _members(rng, API_FIELDS[method]) if rng.random() < 0.9 else value(rng)
    return method, body
