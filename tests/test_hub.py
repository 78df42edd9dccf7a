"""The hub: who listens to what."""

from __future__ import annotations

from service.errors import SLOW
from service.protocol.codecs import CENTRIFUGE_JSON_ASGI, PLAIN_ASGI
from service.testing import MemoryTransport, connect, open_test_node


async def test_channel_lives_while_somebody_listens() -> None:
    """A channel comes with its first listener and goes with its last."""
    async with open_test_node() as node:
        async with connect(node, MemoryTransport(), ["a"]) as one:
            async with connect(node, MemoryTransport(), ["a", "b"]):
                assert set(node.hub.channels) == {"a", "b"}
                assert node.hub.subscriptions == 3
            assert set(node.hub.channels) == {"a"}
            assert one.unsubscribe("a")
            assert not node.hub.channels
            assert set(node.hub.clients) == {one}
        assert not node.hub.clients


async def test_unsubscribe_says_whether_it_listened() -> None:
    """Leaving a channel that was not heard changes nothing and says so."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]) as client:
        assert not client.unsubscribe("b")
        assert client.unsubscribe("a")
        assert not client.unsubscribe("a")


async def test_listeners_are_grouped_by_codec() -> None:
    """One group a codec, and a group goes with its last member."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]):
        channel = node.hub.channels["a"]
        async with connect(node, MemoryTransport(CENTRIFUGE_JSON_ASGI), ["a"]):
            assert len(channel.listeners) == 2
        assert len(channel.listeners) == 1


async def test_version_changes_when_a_listener_leaves() -> None:
    """Leaving changes the channel's version, joining does not."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]):
        channel = node.hub.channels["a"]
        before = channel.version
        async with connect(node, MemoryTransport(), ["a"]):
            assert channel.version == before
        assert channel.version > before


async def test_remove_is_idempotent() -> None:
    """Forgetting a client twice is forgetting it once."""
    async with open_test_node() as node, connect(node, MemoryTransport(), ["a"]) as client:
        node.hub.remove(client)
        node.hub.remove(client)
        assert not node.hub.clients
        assert not node.hub.channels


async def test_counts_are_what_a_walk_would_find() -> None:
    """Subscriptions and kinds are kept as they change, whichever way a client goes."""
    async with open_test_node() as node:
        for number in range(6):
            codec = CENTRIFUGE_JSON_ASGI if number % 2 else PLAIN_ASGI
            channels = [str(channel) for channel in range(number)]
            async with connect(node, MemoryTransport(codec), channels) as client:
                async with connect(node, MemoryTransport(), channels):
                    client.unsubscribe("0")
                    seen = node.statistics()
                    walked = sum(len(one.channels) for one in node.hub.clients)
                    assert seen.subscriptions == walked
                    assert sum(seen.kinds.values()) == seen.clients == len(node.hub.clients)
                client.cut(SLOW)
                client.cut(SLOW)
                assert node.hub.subscriptions == 0
        assert not any(node.hub.kinds.values())
