"""With several workers, calls of the server API act on all and see all, whichever takes them."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.clients import connections
from repeater.errors import EXPIRED, FORCE_DISCONNECT, Disconnect
from repeater.testing import MemoryTransport, connect
from tests.members import OPTIONS, ask, open_workers, user_on

INTERNAL, LIMIT, BAD = 100, 106, 107
ONE = {"num_clients": 1}


async def test_a_user_is_disconnected_everywhere(autojump_clock: MockClock) -> None:
    """On the worker that takes the call and on the others; who is in the whitelist stays."""
    async with (
        open_workers(3, OPTIONS) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[1]) as (second, _),
        user_on(workers.nodes[2]) as (third, _),
        user_on(workers.nodes[2], "bob") as (other, _),
    ):
        why = {"code": 4_100, "reason": "enough"}
        result = await ask(
            workers.nodes[0], "disconnect", user="ann", disconnect=why, whitelist=[third.id]
        )
        assert result == {"num_clients": 2}
        assert first.end == second.end == Disconnect(4_100, "enough")
        assert [third.end, other.end] == [None, None]
        assert await ask(workers.nodes[1], "disconnect", user="ann", client=third.id) == ONE
        assert third.end == FORCE_DISCONNECT
        assert await ask(workers.nodes[1], "disconnect", user="ann") == {"num_clients": 0}


async def test_subscribe_and_unsubscribe_reach_every_worker(autojump_clock: MockClock) -> None:
    """With the data and the info of the call, and with presence; then the end of it."""
    async with (
        open_workers(2, OPTIONS) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[1]) as (second, transport),
    ):
        result = await ask(
            workers.nodes[0], "subscribe", user="ann", channel="news", data={"d": 1}, info=["i"]
        )
        assert result == {"num_clients": 2}
        assert await ask(workers.nodes[1], "subscribe", user="ann", channel="news") == {
            "num_clients": 0
        }
        assert list(first.channels) == list(second.channels) == ["news"]
        push = transport.messages()[-1]["push"]
        assert push["channel"] == "news"
        assert push["subscribe"]["data"] == {"d": 1}
        (info,) = (await ask(workers.nodes[1], "presence", channel="news"))["presence"].values()
        assert info["chan_info"] == ["i"]
        # The first worker's connection of another user hears nothing of it.
        assert await ask(workers.nodes[0], "unsubscribe", user="ann", channel="news") == {
            "num_subs": 2
        }
        await wait_all_tasks_blocked()
        assert not first.channels
        assert not second.channels
        assert transport.messages()[-1]["push"]["unsubscribe"]["code"] == 2_000


async def test_a_name_that_another_worker_hears_can_be_unsubscribed(
    autojump_clock: MockClock,
) -> None:
    """Only a name that nobody hears, on no worker, must be a valid one."""
    async with open_workers(2, OPTIONS) as workers, user_on(workers.nodes[1]) as (second, _):
        second.subscribe("gone:1")
        assert await ask(workers.nodes[0], "unsubscribe", user="ann", channel="gone:1") == {
            "num_subs": 1
        }
        assert not second.channels
        assert await ask(workers.nodes[0], "unsubscribe", user="ann", channel="gone:1") == 102


async def test_a_refresh_reaches_every_worker(autojump_clock: MockClock) -> None:
    """With another info; then as expired."""
    async with (
        open_workers(2, OPTIONS) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[1]) as (second, transport),
    ):
        at = int(workers.nodes[0].unix_time()) + 60
        result = await ask(workers.nodes[0], "refresh", user="ann", expire_at=at, info={"m": 2})
        assert result == {"num_clients": 2}
        for client in (first, second):
            assert (client.grant.expire_at, bytes(client.grant.info)) == (at, b'{"m": 2}')
        assert transport.messages()[-1]["push"]["refresh"]["expires"] is True
        assert await ask(workers.nodes[1], "refresh", user="ann", expired=True) == {
            "num_clients": 2
        }
        assert first.end == second.end == EXPIRED


async def test_a_silent_worker_is_an_error(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The others have acted; the log says which worker did not answer, and it is counted."""
    async with (
        open_workers(3, OPTIONS) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[2]) as (third, _),
    ):
        workers.fall_silent(1)
        with caplog.at_level(logging.WARNING, "repeater"):
            assert await ask(workers.nodes[0], "disconnect", user="ann") == INTERNAL
        assert first.end == third.end == FORCE_DISCONNECT
        assert "a member did not carry out a call" in caplog.text
        assert "worker=2" in caplog.text.replace("'worker': ", "worker=")
        assert workers.nodes[0].statistics().broker_errors == {"control": 1}
        for method in ("channels", "info"):
            assert await ask(workers.nodes[0], method) == INTERNAL


async def test_an_error_of_our_own_costs_one_question(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that has it lives on, and the caller gets error 100."""
    act = connections.disconnect

    async def failing(node: Any, call: Any) -> int:
        if node is workers.nodes[1]:
            raise ZeroDivisionError
        return await act(node, call)

    async with open_workers(2, OPTIONS) as workers, user_on(workers.nodes[1]) as (second, _):
        with monkeypatch.context() as patched:
            patched.setattr(connections, "disconnect", failing)
            assert await ask(workers.nodes[0], "disconnect", user="ann") == INTERNAL
        assert workers.nodes[1].statistics().failures == {"control": 1}
        assert await ask(workers.nodes[0], "disconnect", user="ann") == ONE
        assert second.end == FORCE_DISCONNECT


async def test_a_member_that_does_not_know_a_method_has_failed(autojump_clock: MockClock) -> None:
    """As one of another version: then a call was not carried out everywhere."""
    async with open_workers(2) as workers:
        del workers.nodes[1].questions._answerers["disconnect"]
        assert await ask(workers.nodes[0], "disconnect", user="ann") == INTERNAL


async def test_channels_of_all_workers_are_added(autojump_clock: MockClock) -> None:
    """Each name once, with the connections of all; the pattern is heeded everywhere."""
    async with (
        open_workers(2) as workers,
        connect(workers.nodes[0], MemoryTransport(), ["news", "one"]),
        connect(workers.nodes[1], MemoryTransport(), ["news", "two"]),
    ):
        for node in workers.nodes:
            found = (await ask(node, "channels"))["channels"]
            sizes = {name: one["num_clients"] for name, one in found.items()}
            assert sizes == {"news": 2, "one": 1, "two": 1}
            found = (await ask(node, "channels", pattern="t*"))["channels"]
            assert found == {"two": {"num_clients": 1}}


async def test_too_many_channels_of_a_worker(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer above its bound is error 106, also if most are on the worker that is asked."""
    monkeypatch.setattr("repeater.brokers.control.ANSWER_LIMIT", 30)
    async with (
        open_workers(2) as workers,
        connect(workers.nodes[1], MemoryTransport(), ["a" * 20, "b" * 20]),
    ):
        assert await ask(workers.nodes[0], "channels") == LIMIT
        assert list((await ask(workers.nodes[0], "channels", pattern="a*"))["channels"])


async def test_info_shows_one_server(autojump_clock: MockClock) -> None:
    """Its counts are the sums of its workers; a user or a channel of two workers counts once."""
    async with (
        open_workers(2) as workers,
        user_on(workers.nodes[0]) as (first, _),
        user_on(workers.nodes[1]) as (second, _),
        user_on(workers.nodes[1], "bob"),
        connect(workers.nodes[1], MemoryTransport(), ["news", "sport"]),
    ):
        for client in (first, second):
            client.subscribe("news")
        await ask(workers.nodes[0], "publish", channel="news", data=1)
        await wait_all_tasks_blocked()
        seen = [(await ask(node, "info"))["nodes"] for node in workers.nodes]
        assert seen[0] == seen[1]
        (one,) = seen[0]
        assert one["uid"] == workers.group.server
        counts = ("num_clients", "num_users", "num_channels", "num_subs")
        assert [one[name] for name in counts] == [4, 2, 2, 4]
        assert one["metrics"]["items"]["deliveries"] == 1
        second.disconnect(FORCE_DISCONNECT)
        (one,) = (await ask(workers.nodes[0], "info"))["nodes"]
        assert [one[name] for name in counts] == [3, 2, 2, 3]


async def test_a_worker_that_drains_is_met(autojump_clock: MockClock) -> None:
    """Its clients are asked to leave in groups; until the last is gone, calls reach them."""
    options = msgspec.structs.replace(OPTIONS, shutdown_group=1, shutdown_pause=1)
    async with (
        open_workers(2, options) as workers,
        user_on(workers.nodes[1], "bob"),
        user_on(workers.nodes[1]) as (client, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(workers.nodes[1].shut_down)
        await trio.sleep(0.5)
        assert client.end is None
        assert await ask(workers.nodes[0], "disconnect", user="ann") == ONE
        assert client.end == FORCE_DISCONNECT
