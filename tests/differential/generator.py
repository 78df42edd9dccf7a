"""Conversations from seeds: what clients and back ends say, wisely and unwisely."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.differential.keys import FIXED, PUBLISHED
from tests.differential.settings import NAMESPACES
from tests.differential.steps import Conversation, Step

_STEPS: Final = (6, 15)
_ACTORS: Final = ("a", "b", "c")
_WAYS: Final = ("websocket",) * 7 + (
    "http_stream",
    "sse",
    "uni_websocket",
    "uni_sse",
    "uni_http_stream",
)
_DATA: Final[Sequence[Any]] = (
    {},
    {"n": 1},
    {"title": "a text that is long enough for a difference", "n": 2},
    {"title": "a text that is long enough for a difference", "n": 3},
    "text",
    0,
    [],
    "ü\u2028 <&>",
)


_OCTETS: Final = (
    {"octets": "05"},
    {"octets": "ffffffffffffffffffff01"},
    {"octets": "0a08072202"},
    {"octets": "0508079a0601"},
    {"octets": "040807a20100"},
    {"octets": "060807520308ff"},
    {"octets": "00"},
)


def conversation(seed: int) -> Conversation:
    """The conversation of a seed; it is always the same."""
    dice = random.Random(seed)
    return _Maker(dice, f"seed {seed}").made()


def _expires(step: Step) -> bool:
    """Whether a token of the step expires soon; the other servers' options give it a second."""
    return '{"$in": 2}' in json.dumps(step)


class _Maker:
    """Makes one conversation; few channels and users, so that its steps have to do with another."""

    def __init__(self, dice: random.Random, name: str) -> None:
        self._dice = dice
        self._name = name
        self._codec = dice.choice(("json", "json", "protobuf"))
        # JSON clients hear nothing of binary channels, so these have Protobuf clients only.
        binary = self._codec == "protobuf" and dice.random() < 0.2
        spaces = ["bytes", ""] if binary else dice.sample(["", *NAMESPACES], 2)
        self._possible = ("websocket", "http_stream") if binary else _WAYS
        self._channels = [f"{one}:x@" if one else "x@" for one in spaces]
        if "dialog" in spaces:
            self._channels.append("dialog:y@#u1@,u2@")
        if dice.random() < 0.2:
            self._channels.append("$" + self._channels[0])
        self._ways = dict[str, str]()
        self._ids = dict[str, int]()

    def made(self) -> Conversation:
        steps = list[Step]()
        for number in range(self._dice.randint(*_STEPS)):
            steps.append(self._step() if number else self._open("a"))
            if _expires(steps[-1]):
                steps.append({"wait": 4.5})
        return Conversation(self._name, self._codec, steps)

    def _step(self) -> Step:
        dice = self._dice
        talkers = [one for one, way in self._ways.items() if way[:3] != "uni"]
        kind = dice.random()
        if len(self._ways) < 3 and (not self._ways or kind < 0.12):
            return self._open(next(one for one in _ACTORS if one not in self._ways))
        if kind < 0.17:
            actor = dice.choice(list(self._ways))
            del self._ways[actor]
            return {"leave": actor}
        if talkers and kind < 0.72:
            actor = dice.choice(talkers)
            count = dice.choice((1, 1, 1, 2, 3))
            return {"say": actor, "commands": [self._command(actor) for _ in range(count)]}
        return self._call()

    def _open(self, actor: str) -> Step:
        dice = self._dice
        way = self._ways[actor] = dice.choice(self._possible)
        self._ids[actor] = 1
        connect: dict[str, Any] = {}
        if dice.random() < 0.7:
            claims: dict[str, Any] = {"sub": f"u{dice.choice((1, 1, 2))}@"}
            if dice.random() < 0.3:
                claims["info"] = {"name": "N"}
            if dice.random() < 0.25:
                claims["exp"] = {"$in": dice.choice((3_600, 3_600, 3_600, -60, 2))}
            if dice.random() < 0.25:
                claims["channels"] = [self._channel()]
            elif dice.random() < 0.15:
                claims["subs"] = {self._channel(): dice.choice(({}, {"info": {"i": 1}}))}
            key = "wrong" if dice.random() < 0.03 else dice.choice(FIXED)
            connect["token"] = {"$token": claims, "key": key}
        if dice.random() < 0.2:
            connect["name"] = "differential"
        if dice.random() < 0.2:
            channel = self._channel()
            connect["subs"] = {channel: self._position(channel)}
        return {"open": actor, "way": way, "connect": connect}

    def _channel(self) -> str:
        return self._dice.choice(self._channels)

    def _position(self, channel: str) -> Step:
        offset = self._dice.choice((0, 1, 2, 3, 9))
        position: Step = {"recover": True, "offset": offset}
        if self._dice.random() < 0.8:
            position["epoch"] = self._epoch(channel)
        return position

    def _epoch(self, channel: str) -> str:
        return f"$epoch:{channel}" if self._dice.random() < 0.9 else "other"

    def _flags(self, chance: float, *names: str) -> Step:
        return {name: True for name in names if self._dice.random() < chance}

    # Commands of clients.

    def _command(self, actor: str) -> Step:
        self._ids[actor] += 1
        kinds: Sequence[tuple[int, Callable[[], Step]]] = (
            (30, self._subscribe),
            (6, lambda: {"unsubscribe": {"channel": self._channel()}}),
            (18, lambda: {"publish": {"channel": self._channel(), "data": self._data()}}),
            (5, lambda: {"presence": {"channel": self._channel()}}),
            (5, lambda: {"presence_stats": {"channel": self._channel()}}),
            (12, self._history),
            (3, lambda: {"rpc": {"method": "m", "data": self._data()}}),
            (2, lambda: {"refresh": {"token": self._connection_token()}}),
            (3, self._sub_refresh),
            (1, self._odd),
        )
        weights = [weight for weight, _ in kinds]
        ((_, make),) = self._dice.choices(kinds, weights)
        return {"id": self._ids[actor], **make()}

    def _data(self) -> Any:
        if self._codec == "protobuf" and self._dice.random() < 0.05:
            return {"octets": "ff007b"}  # no JSON
        return self._dice.choice(_DATA)

    def _subscribe(self) -> Step:
        dice = self._dice
        channel = self._channel()
        request: Step = {"channel": channel}
        request |= self._flags(0.25, "positioned", "recoverable", "join_leave")
        if dice.random() < 0.35:
            request |= self._position(channel)
        if dice.random() < (0.6 if channel.startswith("delta") else 0.03):
            request["delta"] = "fossil"
        if dice.random() < (0.6 if channel.startswith("tags") else 0.02):
            request["tf"] = self._filter(2)
        if dice.random() < (0.7 if channel.startswith("$") else 0.08):
            request["token"] = self._subscription_token(channel)
        if dice.random() < 0.1:
            request["flag"] = dice.choice((1, 2, 3))
        if dice.random() < 0.1:
            request["data"] = self._data()
        return {"subscribe": request}

    def _filter(self, depth: int) -> Step:
        dice = self._dice
        if depth and dice.random() < 0.4:
            op = dice.choice(("and", "or", "not"))
            count = 1 if op == "not" else dice.randint(1, 3)
            return {"op": op, "nodes": [self._filter(depth - 1) for _ in range(count)]}
        cmp = dice.choice(("eq", "neq", "in", "nin", "ex", "nex", "sw", "ew", "ct", "lt", "gte"))
        node: Step = {"key": dice.choice(("k", "n")), "cmp": cmp}
        if cmp in ("in", "nin"):
            node["vals"] = ["1", "v"]
        elif cmp not in ("ex", "nex"):
            node["val"] = dice.choice(("1", "v"))
        return node

    def _history(self) -> Step:
        dice = self._dice
        channel = self._channel()
        request: Step = {"channel": channel, "limit": dice.choice((0, 1, 2, 10, -1))}
        request |= self._flags(0.3, "reverse")
        if dice.random() < 0.4:
            request["since"] = {
                "offset": dice.choice((0, 1, 2, 3, 9)),
                "epoch": self._epoch(channel),
            }
        return {"history": request}

    def _connection_token(self) -> Step:
        claims = {"sub": f"u{self._dice.choice((1, 2))}@", "exp": {"$in": 3_600}}
        return {"$token": claims, "key": self._dice.choice(("wrong", *FIXED))}

    def _subscription_token(self, channel: str) -> Step:
        dice = self._dice
        claims: Step = {"sub": f"u{dice.choice((1, 1, 2))}@", "channel": channel}
        if dice.random() < 0.3:
            claims["exp"] = {"$in": dice.choice((3_600, 3_600, -60, 2))}
        if dice.random() < 0.3:
            claims["info"] = {"i": 2}
        if dice.random() < 0.1:
            claims["channel"] = self._channel()
        key = "wrong" if dice.random() < 0.05 else f"jwks:{dice.choice(PUBLISHED)}"
        return {"$token": claims, "key": key}

    def _sub_refresh(self) -> Step:
        channel = self._channel()
        return {"sub_refresh": {"channel": channel, "token": self._subscription_token(channel)}}

    def _odd(self) -> Step:
        """What no SDK sends."""
        return self._dice.choice(
            (
                {"connect": {}},
                {"send": {"data": {}}},
                {"ping": {}},
                {"subscribe": {"channel": ""}},
                {"subscribe": {"channel": "nowhere:x@"}},
                {"subscribe": {"channel": self._channel(), "delta": "other"}},
                {"publish": {"channel": ""}},
                {"history": {"channel": "nowhere:x@"}},
                {"presence": {"channel": "shut:x@"}},
                {"unsubscribe": {"channel": ""}},
                {
                    "rpc": {
                        "method": "m",
                        "data": {"answer": {"error": {"code": 404, "message": "no"}}},
                    }
                },
                {"id": 0, "publish": {"channel": "x@", "data": {}}},
                {},
                *self._octets(),
            )
        )

    def _octets(self) -> Sequence[Step]:
        """Protobuf that is cut, has an unknown field, or a known one of another type."""
        return _OCTETS if self._codec == "protobuf" else ()

    # Calls of back ends.

    def _call(self) -> Step:
        kinds: Sequence[tuple[int, str, Callable[[], Step]]] = (
            (40, "publish", self._publication),
            (6, "broadcast", self._broadcast),
            (8, "subscribe", lambda: {**self._who(), "channel": self._channel()}),
            (5, "unsubscribe", lambda: {**self._who(), "channel": self._channel()}),
            (3, "disconnect", self._disconnect),
            (3, "refresh", lambda: {**self._who(), "expire_at": {"$in": 3_600}}),
            (5, "presence", lambda: {"channel": self._channel()}),
            (5, "presence_stats", lambda: {"channel": self._channel()}),
            (12, "history", self._history_of),
            (3, "history_remove", lambda: {"channel": self._channel()}),
            (4, "channels", lambda: {"pattern": "*@*"}),
            (5, "batch", self._batch),
            (1, "rpc", lambda: {"method": "other"}),
        )
        weights = [weight for weight, _, _ in kinds]
        ((_, method, make),) = self._dice.choices(kinds, weights)
        return {"call": method, "body": make()}

    def _who(self) -> Step:
        who: Step = {"user": self._dice.choice(("u1@", "u1@", "u2@"))}
        if self._dice.random() < 0.2:
            who["client"] = f"$client:{self._dice.choice(_ACTORS)}"
        return who

    def _publication(self) -> Step:
        dice = self._dice
        call = {"channel": self._channel(), "data": self._data()}
        call |= self._flags(0.08, "skip_history", "delta")
        if dice.random() < 0.25:
            call["tags"] = {"k": dice.choice(("1", "v"))}
        if dice.random() < 0.08:
            call["idempotency_key"] = dice.choice(("k1@", "k2@"))
        if dice.random() < 0.08:
            call["version"] = dice.randint(1, 3)
        return call

    def _broadcast(self) -> Step:
        channels = self._dice.sample(self._channels, self._dice.randint(1, 2))
        return {"channels": channels, "data": self._data()}

    def _disconnect(self) -> Step:
        code = self._dice.choice((3_000, 3_503, 4_000, 4_500))
        return {**self._who(), "disconnect": {"code": code, "reason": "told"}}

    def _history_of(self) -> Step:
        return self._history()["history"]  # type: ignore[no-any-return]

    def _batch(self) -> Step:
        commands: list[Step] = []
        for _ in range(self._dice.randint(1, 3)):
            call = self._call()
            if call["call"] not in ("batch", "rpc"):
                commands.append({call["call"]: call["body"]})
        return {"commands": commands}
