"""The Python SDK, driven by commands on stdin; drivers/driver.js is its twin.

A command names one client by `key`; what that client hears goes out on stdout as events. It runs
on asyncio, as the SDK does, hence in a process of its own. With Protobuf the SDK gives and takes
bytes: data that is JSON is told as `data`, anything else as `b64data`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import centrifuge

Value = dict[str, Any]


def emit(value: Value | str) -> None:
    print(json.dumps(value), flush=True)


def value(data: Any) -> Any:
    """Any data of the SDK: bytes become the JSON value that they are; no bytes are no data."""
    return (json.loads(data) if data else None) if isinstance(data, bytes) else data


def payload(data: Any) -> Value:
    try:
        return {"data": value(data)}
    except ValueError:
        return {"b64data": base64.b64encode(data).decode()}


def info(one: Any) -> Value | None:
    if one is None:
        return None
    return {
        "user": one.user,
        "client": one.client,
        "conn_info": value(one.conn_info),
        "chan_info": value(one.chan_info),
    }


def publication(one: Any) -> Value:
    return {
        **payload(one.data),
        "offset": one.offset or 0,
        "tags": one.tags or {},
        "info": info(one.info),
    }


def subscribed(one: Any) -> Value:
    position = one.stream_position
    return {
        "recoverable": one.recoverable,
        "positioned": one.positioned,
        "position": position and {"offset": position.offset, "epoch": position.epoch},
        "was_recovering": one.was_recovering,
        "recovered": one.recovered,
        "data": value(one.data),
    }


def coded(one: Any) -> Value:
    return {"code": one.code, "reason": one.reason}


def failed(one: Any) -> Value:
    return {"code": one.code, "reason": str(one.error)}


SUBSCRIPTION: dict[str, Callable[[Any], Value]] = {
    "subscribing": coded,
    "subscribed": subscribed,
    "unsubscribed": coded,
    "publication": lambda one: publication(one.pub),
    "join": lambda one: {"info": info(one.info)},
    "leave": lambda one: {"info": info(one.info)},
    "error": failed,
}
CLIENT: dict[str, Callable[[Any], Value]] = {
    "connecting": coded,
    "connected": lambda one: {"id": one.client, "data": value(one.data)},
    "disconnected": coded,
    "error": failed,
}
# Server-side subscriptions are told of by the client.
SERVER_SIDE: dict[str, Callable[[Any], Value]] = {
    **{event: tell for event, tell in SUBSCRIPTION.items() if event != "error"},
    "subscribing": lambda _one: {},
    "unsubscribed": lambda _one: {},
}


class Heard:
    """Any of the SDK's event handlers: `on_<event>` tells of that event."""

    def __init__(self, tell: dict[str, Callable[[Any], Value]], about: Value) -> None:
        for event, describe in tell.items():
            setattr(self, f"on_{event}", self._handler(event, describe, about))

    @staticmethod
    def _handler(
        event: str, describe: Callable[[Any], Value], about: Value
    ) -> Callable[[Any], Awaitable[None]]:
        async def handle(one: Any) -> None:
            channel = {"channel": one.channel} if hasattr(one, "channel") else {}
            emit({"event": event, **about, **channel, **describe(one)})

        return handle


def from_list(tokens: list[str], about: Value) -> Callable[..., Awaitable[str]]:
    """Gives the tokens one after the other, and says so each time."""

    async def next_token(*_channel: str) -> str:
        emit({"event": "token", **about})
        if not tokens:
            raise centrifuge.UnauthorizedError("no more tokens")
        return tokens.pop(0)

    return next_token


class Driver:
    def __init__(self) -> None:
        self._clients: dict[str, Any] = {}
        self._protobuf: set[str] = set()  # The keys of the clients that speak it.

    async def handle(self, command: Value) -> None:
        call = getattr(self, command.pop("call"))
        number = command.pop("id")
        try:
            emit({"id": number, "result": await call(**command)})
        except Exception as error:
            code, text = getattr(error, "code", -1), getattr(error, "message", repr(error))
            emit({"id": number, "error": {"code": code, "message": text}})

    def _taken(self, key: str, data: Any, b64data: str | None) -> Any:
        """What the SDK takes for the data of a command."""
        if b64data is not None:
            return base64.b64decode(b64data)
        return json.dumps(data).encode() if key in self._protobuf else data

    async def open(self, key: str, url: str, protobuf: bool, options: Value) -> None:
        if protobuf:
            self._protobuf.add(key)
        if "data" in options:
            options["data"] = self._taken(key, options["data"], None)
        tokens = options.pop("tokens", None)
        if tokens is not None:
            options["get_token"] = from_list(tokens, {"key": key})
        self._clients[key] = centrifuge.Client(
            url,
            events=Heard({**SERVER_SIDE, **CLIENT}, {"key": key}),
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.2,
            proxy=None,
            use_protobuf=protobuf,
            **options,
        )

    async def connect(self, key: str) -> None:
        await self._clients[key].connect()

    async def disconnect(self, key: str) -> None:
        await self._clients[key].disconnect()

    async def subscribe(self, key: str, channel: str, options: Value) -> None:
        subscription = self._clients[key].get_subscription(channel)
        if subscription is None:
            about = {"key": key, "channel": channel}
            if (tokens := options.pop("tokens", None)) is not None:
                options["get_token"] = from_list(tokens, about)
            if "data" in options:
                options["data"] = self._taken(key, options["data"], None)
            if "delta" in options:
                options["delta"] = centrifuge.DeltaType(options["delta"])
            if "tags_filter" in options:
                options["tags_filter"] = centrifuge.FilterNode(options["tags_filter"])
            subscription = self._clients[key].new_subscription(
                channel,
                events=Heard(SUBSCRIPTION, about),
                min_resubscribe_delay=0.02,
                max_resubscribe_delay=0.2,
                **options,
            )
        await subscription.subscribe()

    async def unsubscribe(self, key: str, channel: str) -> None:
        await self._clients[key].get_subscription(channel).unsubscribe()

    async def publish(
        self, key: str, channel: str, data: Any = None, b64data: str | None = None
    ) -> None:
        await self._clients[key].publish(channel, self._taken(key, data, b64data))

    async def history(self, key: str, channel: str, options: Value) -> Value:
        if since := options.pop("since", None):
            options["since"] = centrifuge.StreamPosition(**since)
        result = await self._clients[key].history(channel, **options)
        return {
            "publications": [publication(one) for one in result.publications],
            "offset": result.offset,
            "epoch": result.epoch,
        }

    async def presence(self, key: str, channel: str) -> Value:
        result = await self._clients[key].presence(channel)
        return {client: info(one) for client, one in result.clients.items()}

    async def presence_stats(self, key: str, channel: str) -> Value:
        result = await self._clients[key].presence_stats(channel)
        return {"num_clients": result.num_clients, "num_users": result.num_users}

    async def rpc(
        self, key: str, method: str, data: Any = None, b64data: str | None = None
    ) -> Value:
        result = await self._clients[key].rpc(method, self._taken(key, data, b64data))
        return payload(result.data)

    async def close(self, key: str) -> None:
        self._protobuf.discard(key)
        await self._clients.pop(key).disconnect()


async def main() -> None:
    driver = Driver()
    emit("ready")
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.create_task(driver.handle(json.loads(line)))


asyncio.run(main())
