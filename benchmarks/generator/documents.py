"""Events that look like those of applications, for what depends on their content: compression.

The events of `wire.event` are mostly padding, which compresses to nothing. These are a feed's, of
four kinds in turn: comments, prices, a match, and devices. Their keys repeat, their numbers are
random, their texts are words in random order, which compress less well than sentences. Pure; the
same arguments always give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Final

from benchmarks.generator.wire import event_head

Item = dict[str, object]

_NAMES: Final = "amelia bruno chiara daniel elif farid greta hiroshi ines jakub katja liam nadia"
_WORDS: Final = (
    "the a of to and in that it is was for on are with as they be at one have this from or had by "
    "hot word but what some we can out other were all there when up use your how said an each she "
    "which do their time if will way about many then them write would like so these her long make "
    "thing see him two has look more day could go come did number sound no most people my over "
    "know water than call first who may down side been now find train market price weather update"
)
_NAME: Final = tuple(_NAMES.split())
_WORD: Final = tuple(_WORDS.split())
_ITEM: Final = 230  # bytes of an item at most


def document(number: int, published_ns: int = 0, size: int = 1_024) -> bytes:
    """One event's JSON of exactly `size` bytes, 350 at least, with the marks of `wire.event`."""
    rng = Random(number)
    name, make = _KINDS[number % len(_KINDS)]
    items = list[Item]()
    head = event_head(number, published_ns)
    head += f'"type":"{name}.changed","time":"{_time(rng)}","items":'
    text = "[]"
    while len(head) + len(text) + _ITEM + len(',"text":""}') < size:
        items.append(make(rng))
        text = json.dumps(items, separators=(",", ":"))
    left = size - len(head) - len(text) - len(',"text":""}')
    return f'{head}{text},"text":"{_sentence(rng, left)}"}}'.encode()


def _comment(rng: Random) -> Item:
    user = rng.randint(1, 99_999)
    return {
        "id": rng.randint(10**6, 10**7),
        "user": {"id": user, "name": rng.choice(_NAME), "picture": f"/pictures/{user}.png"},
        "likes": rng.randint(0, 500),
        "text": _sentence(rng, rng.randint(20, 90)),
    }


def _price(rng: Random) -> Item:
    bid = round(rng.uniform(1, 900), 2)
    symbol = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4))
    return {
        "symbol": symbol,
        "bid": bid,
        "ask": round(bid + 0.02, 2),
        "volume": rng.randint(1, 90_000),
        "change": round(rng.uniform(-5, 5), 2),
    }


def _play(rng: Random) -> Item:
    return {
        "minute": rng.randint(1, 90),
        "team": rng.choice(("home", "away")),
        "player": {"number": rng.randint(1, 23), "name": rng.choice(_NAME)},
        "kind": rng.choice(("shot", "pass", "foul", "corner", "goal")),
        "x": rng.randint(0, 105),
        "y": rng.randint(0, 68),
    }


def _reading(rng: Random) -> Item:
    return {
        "device": f"pump-{rng.randint(1, 400):03}",
        "status": rng.choice(("ok", "ok", "ok", "warning", "off")),
        "temperature": round(rng.uniform(15, 90), 1),
        "pressure": round(rng.uniform(1, 9), 3),
        "at": _time(rng),
    }


_KINDS: Final[tuple[tuple[str, Callable[[Random], Item]], ...]] = (
    ("comments", _comment),
    ("prices", _price),
    ("match", _play),
    ("devices", _reading),
)


KINDS: Final = len(_KINDS)


def _time(rng: Random) -> str:
    return f"2026-11-{rng.randint(1, 30):02}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:00Z"


def _sentence(rng: Random, size: int) -> str:
    return " ".join(rng.choices(_WORD, k=size // 2 + 1))[:size].ljust(size)
