"""Publishing from a program: data that is refused at its call, and any data by a channel's name."""

from __future__ import annotations

import datetime

import pytest
from trio.testing import wait_all_tasks_blocked

from repeater.errors import ReplyError
from repeater.options import ChannelOptions, NodeOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON_ASGI
from repeater.publication import Publication
from repeater.testing import MemoryTransport, connect, open_test_node


@pytest.mark.parametrize(
    "data", [{"x": 1}, [49], 5, "1", None, {1, 2}, 10**15], ids=lambda data: repr(data)
)
@pytest.mark.parametrize("channel", ["c", "frames:1"])
async def test_data_that_is_not_bytes(data: object, channel: str) -> None:
    """A publication with a value of Python in it is refused where it is published: error 107.

    `bytes([49])` would be the number 1, `bytes(5)` five zeros, and `bytes(10**15)` no memory left.
    """
    transport = MemoryTransport(CENTRIFUGE_JSON_ASGI)
    binary = ChannelOptions(publication_data_format="binary")
    options = NodeOptions(namespaces={"frames": binary})
    async with open_test_node(options) as node, connect(node, transport, ["c"]):
        with pytest.raises(ReplyError, match="107"):
            await node.publish(Publication(channel, data))  # type: ignore[arg-type]
        with pytest.raises(ReplyError, match="107"):
            node.submit(Publication(channel, data))  # type: ignore[arg-type]
        await node.publish(Publication("c", b"1"))
        await wait_all_tasks_blocked()
        assert len(transport.sent) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"text": "grüße", "n": 1}, '{"text":"grüße","n":1}'.encode()),
        ([1, 2.5, True, None], b"[1,2.5,true,null]"),
        ("a text", b'"a text"'),
        (None, b"null"),
        (0, b"0"),
        ({}, b"{}"),
        ("line\nbreak", rb'"line\nbreak"'),
        (b'{"written": "already"}', b'{"written": "already"}'),
    ],
)
async def test_any_data_is_published_by_name(data: object, text: bytes) -> None:
    """`publish("news", data)` writes the data as JSON; bytes are JSON already."""
    transport = MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["news"]):
        position = await node.publish("news", data)
        await wait_all_tasks_blocked()
    assert position is not None
    assert transport.sent == [text]


async def test_what_goes_with_the_data() -> None:
    """Tags, delta and version are those of the publication; a key is used once."""
    async with open_test_node() as node:
        first = await node.publish(
            "news", 1, tags={"a": "b"}, delta=True, version=7, version_epoch="e"
        )
        again = [await node.publish("news", 2, idempotency_key="k") for _ in range(2)]
        await node.publish("news", 3, skip_history=True)
        publications, _ = await node.history("news")
        assert [one.data for one in publications] == [b"1", b"2"]
        assert first == publications[0].position
        assert again == [publications[1].position] * 2
        kept = publications[0]
        assert (kept.tags, kept.delta) == ({"a": "b"}, True)
        assert (kept.version, kept.version_epoch) == (7, "e")


class Loop(list[object]):
    """Refers to itself."""

    def __init__(self) -> None:
        super().__init__([self])


def nested(levels: int) -> object:
    """A list in a list in a list."""
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({1, 2}, TypeError),
        (datetime.date(2026, 1, 1), TypeError),
        ({"a": object()}, TypeError),
        ({(1, 2): 3}, TypeError),
        (bytearray(b"1"), TypeError),
        (float("nan"), ValueError),
        ([float("-inf")], ValueError),
        (Loop(), ValueError),
        (nested(129), ValueError),
        (nested(50_000), ValueError),
        ("\ud800", ValueError),
    ],
)
async def test_what_json_cannot_write(data: object, error: type[Exception]) -> None:
    """It is an error of Python at the publisher's call, and nothing is published."""
    async with open_test_node() as node:
        with pytest.raises(error):
            await node.publish("news", data)
        assert await node.publish("news", nested(128)) is not None
        assert (await node.history("news"))[1].offset == 1


@pytest.mark.parametrize("tags", [{"a": 1}, {1: "a"}, ["a"], "a", {"\ud800": "a"}], ids=repr)
async def test_tags_are_texts(tags: object) -> None:
    """Others are error 107, as in a Publication."""
    async with open_test_node() as node:
        with pytest.raises(ReplyError, match="107"):
            await node.publish("news", 1, tags=tags)  # type: ignore[call-overload]
        with pytest.raises(ReplyError, match="107"):
            await node.publish(Publication("news", b"1", tags=tags))  # type: ignore[arg-type]


async def test_a_publication_takes_no_second_data() -> None:
    """What would be ignored is a TypeError, as an argument that does not exist is."""
    async with open_test_node() as node:
        for arguments, more in (
            ((Publication("news", b"1"), 2), {}),
            ((Publication("news", b"1"),), {"tags": {}}),
            (("news",), {}),
            (("news", 1), {"tag": {}}),
        ):
            with pytest.raises(TypeError):
                await node.publish(*arguments, **more)  # type: ignore[call-overload]


async def test_a_binary_channel_takes_bytes_by_name() -> None:
    """Any bytes, as in a Publication."""
    options = NodeOptions(channel=ChannelOptions(publication_data_format="binary"))
    async with open_test_node(options) as node:
        await node.publish("frames", b"\xff\x00")
        (publication,), _ = await node.history("frames")
        assert publication.data == b"\xff\x00"
        assert publication.binary
