"""Plays a conversation with one server, and writes down what each step brought."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from tests.differential import keys
from tests.differential.codecs import CODECS
from tests.differential.links import Link, Stream, WebSocket, request
from tests.differential.settings import API_KEY
from tests.differential.steps import Conversation, Seen, Step

_PATIENCE: Final = 3.0  # seconds for replies that may never come
_QUIET: Final = 0.16  # seconds without a message end a step; Repeater holds joins for 0.1


async def play(
    conversation: Conversation, port: int, tag: str, pace: float = 1.0
) -> Sequence[Seen]:
    """What each step of the conversation brought; `pace` times the usual pauses are made.

    `tag` makes the names of its channels and users its own; it stands for each `@`.
    """
    async with trio.open_nursery() as nursery:
        player = _Player(conversation, port, tag, pace, nursery)
        seen = [await player.take(step) for step in conversation.steps]
        nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        for link in player.links.values():
            await link.aclose()
    return seen


class _Player:
    def __init__(
        self,
        conversation: Conversation,
        port: int,
        tag: str,
        pace: float,
        nursery: trio.Nursery,
    ) -> None:
        self.links = dict[str, Link]()
        self._codec = CODECS[conversation.codec]
        self._port = port
        self._tag = tag
        self._pace = pace
        self._nursery = nursery
        self._known = dict[str, str]()
        """What `$client:a`, `$session:a` and `$epoch:c` stand for."""
        self._names = dict[str, str]()
        """What stands for an id or epoch of the server in what was seen."""
        self._epochs = dict[str, list[str]]()
        """The epochs that a channel was said to have, oldest first."""
        self._asked = dict[tuple[str, int], str]()
        """The channels that commands are about."""
        self._seen: Seen = {}
        self._open = set[str]()
        self._owed = dict[str, int]()
        self._last = 0.0
        self._news = trio.Event()

    async def take(self, step: Step) -> Seen:
        """Carry out one step, and wait until nothing more comes of it."""
        self._seen = {}
        for channel in sorted(set(re.findall(r"\$epoch:([^\"]+)", json.dumps(step)))):
            await self._ask_epoch(channel)
        self._last = trio.current_time()
        match step:
            case {"open": actor, "way": way}:
                await self._come(actor, way, self._filled(step.get("connect")))
            case {"say": actor, "commands": commands}:
                await self._say(actor, [self._filled(one) for one in commands])
            case {"call": method, "body": body}:
                self._seen["api"] = [await self._call(method, self._filled(body))]
            case {"http": method, "path": path, "body": body}:
                self._seen["http"] = [{"status": await self._status(method, path, body)}]
            case {"leave": actor}:
                self._open.discard(actor)
                await self.links.pop(actor).aclose()
            case {"wait": seconds}:
                await trio.sleep(seconds)
            case _:
                raise ValueError(f"no step: {step}")
        await self._quiet()
        # The ids in them may have been told later, to others.
        return {actor: self._all_normal(self._seen[actor]) for actor in sorted(self._seen)}

    async def _come(self, actor: str, way: str, connect: Any) -> None:
        kind = WebSocket if way.endswith("websocket") else Stream
        codec = CODECS["json"] if way[:3] == "uni" or way == "sse" else self._codec
        link = self.links[actor] = kind(codec, self._port)
        self._open.add(actor)
        self._owed[actor] = 1
        if way == "websocket":
            await link.open(way, None)
            await link.send(codec.first(connect))
        else:
            await link.open(way, connect or {})
        self._nursery.start_soon(self._listen, actor, link)

    async def _say(self, actor: str, commands: Sequence[Any]) -> None:
        if actor not in self._open:
            return
        numbered = [one for one in commands if isinstance(one, dict) and one.get("id")]
        self._owed[actor] = len(numbered)
        for one in numbered:
            about = (body.get("channel") for body in one.values() if isinstance(body, dict))
            self._asked[actor, one["id"]] = next((name for name in about if name), "")
        link = self.links[actor]
        status = await link.send(link.codec.frame(commands))
        if status not in (0, 204):
            self._owed[actor] = 0
            self._seen.setdefault(actor, []).append({"status": status})

    async def _ask_epoch(self, channel: str) -> None:
        """Both servers are asked, for one may have told it and the other not."""
        answer = await self._call("history", {"channel": self._filled(channel)})
        self._all_normal([answer])

    async def _call(self, method: str, body: Any) -> dict[str, Any]:
        headers = {"X-API-Key": API_KEY, "Content-Type": "application/json"}
        text = body if isinstance(body, str) else json.dumps(body)
        answer = await request(self._port, "POST", f"/api/{method}", text.encode(), headers)
        said = await answer.whole()
        try:
            read = json.loads(said)
        except ValueError:
            read = said.decode().strip()
        return {"status": answer.status, "body": read, "about": _about(body)}

    async def _status(self, method: str, path: str, body: Any) -> int:
        headers = {"X-API-Key": API_KEY, "Origin": f"http://127.0.0.1:{self._port}"}
        text = json.dumps(self._filled(body)).encode() if body else b""
        answer = await request(self._port, method, path, text, headers)
        await answer.aclose()
        return answer.status

    async def _listen(self, actor: str, link: Link) -> None:
        with suppress(trio.ClosedResourceError):  # the client has left
            while messages := await link.receive():
                for message in messages:
                    self._take(actor, link, message)

    def _take(self, actor: str, link: Link, message: dict[str, Any]) -> None:
        if not message:  # a ping
            if link.bidirectional:
                self._nursery.start_soon(link.send, link.codec.pong)
            return
        self._last = trio.current_time()
        connected = message.get("connect")
        if connected is not None:
            link.session, link.node = connected.get("session", ""), connected.get("node", "")
            for key in ("client", "session"):
                if connected.get(key):
                    self._known[f"$client:{actor}".replace("client", key)] = connected[key]
                    self._names[connected[key]] = f"<{key} {actor}>"
            for key in ("node", "version"):
                if connected.get(key):
                    self._names[connected[key]] = f"<{key}>"
        if "closed" in message or "status" in message:
            self._nursery.start_soon(link.aclose)  # as every client does then
            self._open.discard(actor)
            self._owed[actor] = 0
        about = self._asked.get((actor, message.get("id", 0)), "")
        if "push" not in message:
            self._owed[actor] = max(0, self._owed.get(actor, 0) - 1)
        self._seen.setdefault(actor, []).append({"about": (about,), **message})
        self._news.set()
        self._news = trio.Event()

    async def _quiet(self) -> None:
        """Wait for the replies that are owed, and then until nothing has come for a while."""
        with trio.move_on_after(_PATIENCE * self._pace):
            while any(self._owed.get(actor) for actor in self._open):
                await self._news.wait()
        quiet = _QUIET * self._pace
        with trio.CancelScope(deadline=self._last + quiet) as scope:
            while True:
                await self._news.wait()
                scope.deadline = self._last + quiet

    def _filled(self, value: Any) -> Any:
        """The value with what its placeholders stand for."""
        if isinstance(value, str):
            text = value.replace("@", self._tag)
            return re.sub(r"\$(client|session):\w+|\$epoch:\S+", self._stands_for, text)
        if isinstance(value, list):
            return [self._filled(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$in" in value:
            return int(time.time()) + value["$in"]
        if "$token" in value:
            return keys.token(self._filled(value["$token"]), value.get("key", "HS256"))
        return {self._filled(key): self._filled(one) for key, one in value.items()}

    def _stands_for(self, found: re.Match[str]) -> str:
        mark = found[0]
        if mark.startswith("$epoch:"):
            return self._epochs.get(mark.removeprefix("$epoch:"), ["other"])[-1]
        return self._known.get(mark, mark)

    def _all_normal(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._normal(one, *one.pop("about", ())) for one in messages]

    def _normal(self, value: Any, *about: Any) -> Any:
        """The value with its ids, epochs and times made the same for both servers.

        `about` are the channels that it is about, for an epoch is named by its channel's.
        """
        if isinstance(value, str):
            return self._names.get(value, value).replace(self._tag, "@")
        if isinstance(value, list):
            # Answers to a batch or broadcast are each about another channel.
            each = about if len(about) == len(value) > 1 else [about] * len(value)
            return [self._normal(one, *_names(its)) for one, its in zip(value, each, strict=True)]
        if not isinstance(value, dict):
            return value
        if "channel" in value:
            about = (value["channel"],)
        found = {self._normal(key): self._normal(one, *about) for key, one in value.items()}
        if isinstance(value.get("subs"), dict):
            held = value["subs"].items()
            found["subs"] = {self._normal(key): self._normal(one, key) for key, one in held}
        if value.get("epoch"):
            channel = about[0] if about and isinstance(about[0], str) else ""
            found["epoch"] = self._epoch(channel, value["epoch"])
        if isinstance(found.get("ttl"), int):
            found["ttl"] = round(found["ttl"] / 10) * 10  # a second may have passed
        return dict(sorted(found.items()))

    def _epoch(self, channel: str, epoch: str) -> str:
        known = self._epochs.setdefault(channel, [])
        if epoch not in known:
            known.append(epoch)
        return f"<epoch {known.index(epoch) + 1}>"


def _about(body: Any) -> Sequence[Any]:
    """The channels of a call, in the order of its answers."""
    if not isinstance(body, dict):
        return ()
    if "commands" in body:
        each = [_about(next(iter(one.values()))) for one in body["commands"] if one]
        return each[0] if len(each) == 1 else each
    return body.get("channels") or [body.get("channel", "")]


def _names(about: Any) -> Sequence[Any]:
    return [about] if isinstance(about, str) else about
