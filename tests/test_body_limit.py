"""The bound of a body in front of Quart, whatever the application does meanwhile."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest

from repeater.node import Node
from repeater.web.body_limit import BodyLimit

START = {"type": "http.response.start", "status": 200, "headers": []}


def no_node() -> Node:
    """Only a refusal of the server API is noted."""
    raise AssertionError


@pytest.mark.parametrize("begun", [False, True])
async def test_a_longer_body_ends_at_the_bound(begun: bool) -> None:
    """413 where nothing was answered yet; an answer under way is cut, and no more is taken in."""
    taken = 0
    told: list[str] = []
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(10), "more_body": True}

    async def send(event: Any) -> None:
        sent.append(event)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal taken
        if begun:
            await send(START)
        while (event := await receive())["type"] == "http.request":
            taken += len(event["body"])
        told.extend([event["type"], (await receive())["type"]])
        await send({"type": "http.response.body", "body": b"late"})

    await BodyLimit(app, no_node, 35)(
        {"type": "http", "path": "/app", "headers": []}, receive, send
    )
    assert taken == 30
    assert told == ["http.disconnect"] * 2
    assert [event.get("status") for event in sent] == ([200] if begun else [413, None])


async def test_an_announced_body_is_not_taken_in() -> None:
    """413 at once, whole, and from nobody else."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(event: Any) -> None:
        sent.append(event)

    async def app(*_: Any) -> None:
        raise AssertionError

    scope = {"type": "http", "path": "/app", "headers": [(b"content-length", b"36")]}
    await BodyLimit(app, no_node, 35)(scope, receive, send)
    assert [event.get("status") for event in sent] == [413, None]
    assert sent[1]["body"] == f"{HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase}\n".encode()
