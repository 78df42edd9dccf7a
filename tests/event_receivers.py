"""A back end that takes events, for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from repeater.access.http_client import make_client
from repeater.backend.delivery import open_events
from repeater.backend.events import EventQueue
from repeater.backend.options import CallbackOptions
from tests.application import pieces

URL = "http://app.example/events"
SECRET = "s3cret"


class Receiver:
    """Takes batches, or does not, as it is told to."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.requests: list[httpx.Request] = []
        self.refusals: list[httpx.Response | Exception] = []
        self.delay = 0.0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await trio.sleep(self.delay)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return refusal
        self.batches.append(json.loads(request.content))
        return httpx.Response(204, content=pieces(b""))

    @property
    def events(self) -> list[Any]:
        return [event for batch in self.batches for event in batch["events"]]

    def told(self) -> list[str]:
        """The events in short."""
        return [f"{one['event']} {one.get('channel', '')}".strip() for one in self.events]


def options_with(**options: Any) -> CallbackOptions:
    return CallbackOptions(**{"event_url": URL, "secret": SECRET, **options})


@asynccontextmanager
async def opened(
    receiver: Receiver, *, node: str = "", run: str = "", **options: Any
) -> AsyncIterator[EventQueue]:
    async with (
        make_client(httpx.MockTransport(receiver.answer)) as client,
        open_events(options_with(**options), client=client, node=node, run=run) as events,
    ):
        yield events
