"""The Python SDK, driven by commands on stdin; drivers/driver.js is its twin.

A command names one client by `key`; what that client hears goes out on stdout as events. It runs
on asyncio, as the SDK does, hence in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import centrifuge

Value = dict[str, Any]


def emit(value: Value | str) -> None:
    print(json.dumps(value), flush=True)


def info(one: Any) -> Value | None:
    if one is None:
        return None
    return {
        "user": one.user,
        "client": one.client,
        "conn_info": one.conn_info,
        "chan_info": one.chan_info,
    }


def publication(one: Any) -> Value:
    return {
        "data": one.data,
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
        "data": one.data,
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
    "connected": lambda one: {"id": one.client, "data": one.data},
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

    async def handle(self, command: Value) -> None:
        call = getattr(self, command.pop("call"))
        number = command.pop("id")
        try:
            emit({"id": number, "result": await call(**command)})
        except Exception as error:
            code, text = getattr(error, "code", -1), getattr(error, "message", repr(error))
            emit({"id": number, "error": {"code": code, "message": text}})

    async def open(self, key: str, url: str, options: Value) -> None:
        tokens = options.pop("tokens", None)
        if tokens is not None:
            options["get_token"] = from_list(tokens, {"key": key})
        self._clients[key] = centrifuge.Client(
            url,
            events=Heard({**SERVER_SIDE, **CLIENT}, {"key": key}),
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.2,
            proxy=None,
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

    async def publish(self, key: str, channel: str, data: Any) -> None:
        await self._clients[key].publish(channel, data)

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

    async def rpc(self, key: str, method: str, data: Any) -> Any:
        return (await self._clients[key].rpc(method, data)).data

    async def close(self, key: str) -> None:
        await self._clients.pop(key).disconnect()


async def main() -> None:
    driver = Driver()
    emit("ready")
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.create_task(driver.handle(json.loads(line)))


asyncio.run(main())
