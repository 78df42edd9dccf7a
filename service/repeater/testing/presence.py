"""The conformance suite of `PresenceStore`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final
from uuid import uuid4

import msgspec

from repeater.brokers.contract import PresenceStore
from repeater.brokers.receipts import settled
from repeater.publication import ClientInfo
from repeater.testing.rules import expect, hold

OpenPresenceStore = Callable[[], AbstractAsyncContextManager[PresenceStore]]
"""Opens one store. Stores may share what they keep: the suite uses channels of its own."""


async def check_presence_store(open_store: OpenPresenceStore, *, shared: bool = False) -> None:
    """Check that a presence store keeps its contract.

    Args:
        open_store: Opens a store for each rule, and closes it at the end of the block.
        shared: Whether the stores that it opens are those of several nodes, which keep their
            clients in one place.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    await hold((*RULES, *SHARED_RULES) if shared else RULES, open_store)


def _channel() -> str:
    return f"check:{uuid4()}"


async def _members(store: PresenceStore, channel: str) -> Mapping[str, ClientInfo]:
    return await settled(store.members(channel))


async def an_empty_channel(open_store: OpenPresenceStore) -> None:
    """Nobody is in a channel that nobody was added to."""
    async with open_store() as store:
        channel = _channel()
        expect("members", dict(await _members(store, channel)), {})
        expect("count", await settled(store.count(channel)), (0, 0))


async def who_was_added(open_store: OpenPresenceStore) -> None:
    """Who was added is there by connection id, with everything that was said."""
    info = ClientInfo("ann", "1", msgspec.Raw(b'{"n":1}'), msgspec.Raw(b'["c"]'))
    async with open_store() as store:
        channel = _channel()
        await settled(store.add(channel, info))
        expect("members", dict(await _members(store, channel)), {"1": info})
        expect("count", await settled(store.count(channel)), (1, 1))


async def connections_of_a_user(open_store: OpenPresenceStore) -> None:
    """Each connection is counted, and its user once."""
    async with open_store() as store:
        channel = _channel()
        for user, client in (("ann", "1"), ("ann", "2"), ("bob", "3")):
            await settled(store.add(channel, ClientInfo(user, client)))
        expect("members", set(await _members(store, channel)), {"1", "2", "3"})
        expect("count", await settled(store.count(channel)), (3, 2))


async def added_twice(open_store: OpenPresenceStore) -> None:
    """A connection that is added again is there once, with what was said last."""
    later = ClientInfo("ann", "1", msgspec.Raw(b"2"))
    async with open_store() as store:
        channel = _channel()
        await settled(store.add(channel, ClientInfo("ann", "1", msgspec.Raw(b"1"))))
        await settled(store.add(channel, later))
        expect("members", dict(await _members(store, channel)), {"1": later})
        expect("count", await settled(store.count(channel)), (1, 1))
        await settled(store.add(channel, ClientInfo("bob", "1")))
        expect("count as another user", await settled(store.count(channel)), (1, 1))


async def who_was_removed(open_store: OpenPresenceStore) -> None:
    """Who was removed is not there; the others are. Removing twice, or nobody, does nothing."""
    async with open_store() as store:
        channel = _channel()
        await settled(store.remove(channel, "nobody"))
        for client in ("1", "2"):
            await settled(store.add(channel, ClientInfo("ann", client)))
        for _ in range(2):
            await settled(store.remove(channel, "1"))
        expect("members", set(await _members(store, channel)), {"2"})
        expect("count", await settled(store.count(channel)), (1, 1))
        await settled(store.remove(channel, "2"))
        expect("members after the last", dict(await _members(store, channel)), {})
        expect("count after the last", await settled(store.count(channel)), (0, 0))


async def channels_are_apart(open_store: OpenPresenceStore) -> None:
    """A connection in two channels that leaves one is in the other."""
    async with open_store() as store:
        first, second = _channel(), _channel()
        for channel in (first, second):
            await settled(store.add(channel, ClientInfo("ann", "1")))
        await settled(store.remove(first, "1"))
        expect("members of the one left", dict(await _members(store, first)), {})
        expect("members of the other", set(await _members(store, second)), {"1"})


async def an_answer_does_not_change(open_store: OpenPresenceStore) -> None:
    """An answer is of one moment: what happens later does not change it."""
    async with open_store() as store:
        channel = _channel()
        await settled(store.add(channel, ClientInfo("ann", "1")))
        before = await _members(store, channel)
        await settled(store.add(channel, ClientInfo("bob", "2")))
        await settled(store.remove(channel, "1"))
        expect("the earlier answer", set(before), {"1"})


async def calls_keep_their_order(open_store: OpenPresenceStore) -> None:
    """Calls for one channel that are made in a row, without waiting, take effect in this order."""
    later = ClientInfo("ann", "1", msgspec.Raw(b"2"))
    async with open_store() as store:
        channel = _channel()
        answers = [
            store.add(channel, ClientInfo("ann", "1", msgspec.Raw(b"1"))),
            store.remove(channel, "1"),
            store.add(channel, later),
            store.add(channel, ClientInfo("bob", "2")),
            store.remove(channel, "2"),
        ]
        members, count = store.members(channel), store.count(channel)
        found = await settled(members)
        expect("members asked for at once", dict(found), {"1": later})
        expect("count asked for at once", await settled(count), (1, 1))
        for answer in answers:
            await settled(answer)
        expect("members", dict(await _members(store, channel)), {"1": later})


RULES: Final = (
    an_empty_channel,
    who_was_added,
    connections_of_a_user,
    added_twice,
    who_was_removed,
    channels_are_apart,
    an_answer_does_not_change,
    calls_keep_their_order,
)


async def nodes_see_each_other(open_store: OpenPresenceStore) -> None:
    """Members and counts are of all nodes, and a user of two nodes is one user."""
    async with open_store() as one, open_store() as two:
        channel = _channel()
        await settled(one.add(channel, ClientInfo("ann", "1", msgspec.Raw(b"1"))))
        await settled(two.add(channel, ClientInfo("ann", "2", None, msgspec.Raw(b"[2]"))))
        await settled(two.add(channel, ClientInfo("bob", "3")))
        expected = {
            "1": ClientInfo("ann", "1", msgspec.Raw(b"1")),
            "2": ClientInfo("ann", "2", None, msgspec.Raw(b"[2]")),
            "3": ClientInfo("bob", "3"),
        }
        for store in (one, two):
            expect("members", dict(await _members(store, channel)), expected)
            expect("count", await settled(store.count(channel)), (3, 2))
        await settled(two.remove(channel, "2"))
        expect("count after one left", await settled(one.count(channel)), (2, 2))
        await settled(two.remove(channel, "3"))
        expect("members after another", set(await _members(one, channel)), {"1"})


async def a_node_ends(open_store: OpenPresenceStore) -> None:
    """The clients of a node that ends are gone at once; those of others stay."""
    async with open_store() as one:
        first, second = _channel(), _channel()
        async with open_store() as two:
            for channel in (first, second):
                await settled(one.add(channel, ClientInfo("ann", "1")))
                await settled(two.add(channel, ClientInfo("bob", "2")))
            await settled(two.remove(second, "2"))
            expect("members", set(await _members(one, first)), {"1", "2"})
        for channel in (first, second):
            expect("members after the end", set(await _members(one, channel)), {"1"})
            expect("count after the end", await settled(one.count(channel)), (1, 1))


SHARED_RULES: Final = (nodes_see_each_other, a_node_ends)
