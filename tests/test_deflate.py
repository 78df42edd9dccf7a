"""permessage-deflate: what we compress a client's library reads, and a client's we inflate."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from repeater.fanout.chunks import Chunks
from repeater.options import LARGEST_COMPRESSED, ChannelOptions
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON, CENTRIFUGE_UNI, PLAIN, Codec
from repeater.protocol.centrifugo.deflated_codecs import Compression, DeflatedCodec
from repeater.protocol.centrifugo.filters import TagsFilter
from repeater.protocol.centrifugo.protobuf_codecs import CENTRIFUGE_PROTOBUF
from repeater.protocol.websocket.deflate import Compressor, DeflatedFrame
from repeater.protocol.websocket.frames import (
    FrameReader,
    binary_frame,
    give_back,
    take_reader,
    text_frame,
)
from repeater.publication import Publication, checked

LIMIT = 65_536
RSV1 = 0x40


def client_side() -> PerMessageDeflate:
    """What the library's client makes of our answer to its offer."""
    return PerMessageDeflate(True, True, 15, 15)


def read_by_client(data: bytes, deflate: PerMessageDeflate | None = None) -> list[Frame]:
    """The frames, as the library's client reads them."""
    client = Protocol(CLIENT, max_size=None)
    client.extensions = [deflate or client_side()]
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


def compressed(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    """One masked, compressed frame of a client: a message, or its first fragment."""
    return masked(opcode, deflated(data, fin=fin), fin=fin, rsv1=True)


def deflated(data: bytes, *, fin: bool = True) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    out = stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)
    return out[:-4] if fin else out


def masked(opcode: Opcode, data: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
    # The library writes no frame with RSV1 by itself.
    first = opcode | (0x80 if fin else 0) | (RSV1 if rsv1 else 0)
    return bytes((first,)) + Frame(opcode, data).serialize(mask=True)[1:]


# --- what we send ---------------------------------------------------------------------------------


def text_of(size: int) -> bytes:
    return (b'{"name":"value"},' * (size // 17 + 1))[:size]


def noise_of(size: int) -> bytes:
    return Random(size).randbytes(size)


# As functions and sizes: hypothesis cannot print long messages.
LONG = st.tuples(st.sampled_from((text_of, noise_of)), st.integers(0, 70_000))
MESSAGES = st.lists(
    st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode), LONG), max_size=6
)


def written(specifications: Sequence[bytes | tuple[Callable[[int], bytes], int]]) -> list[bytes]:
    """The messages that hypothesis has chosen."""
    return [one if isinstance(one, bytes) else one[0](one[1]) for one in specifications]


@given(MESSAGES, st.integers(1, 200))
@settings(max_examples=80, deadline=None)
def test_any_message_is_read_by_a_client(chosen: list[Any], min_size: int) -> None:
    """Text and binary come out as they went in, whatever comes before, and never longer."""
    compressor, messages = Compressor(), written(chosen)
    for plain in (text_frame, binary_frame):
        frame = DeflatedFrame(compressor, plain, min_size)
        frames = [frame(message) for message in messages]
        read = read_by_client(b"".join(frames))
        assert [bytes(one.data) for one in read] == messages
        assert {one.opcode for one in read} <= {Opcode(plain(b"")[0] & 0x0F)}
        for made, message in zip(frames, messages, strict=True):
            assert len(made) <= len(plain(message))
            if made[0] & RSV1:
                assert min_size <= len(message) <= LARGEST_COMPRESSED


@given(MESSAGES)
@settings(max_examples=50, deadline=None)
def test_each_frame_is_read_without_the_others(chosen: list[Any]) -> None:
    """No context takeover: a client that reads only this frame reads it all the same."""
    frame, messages = DeflatedFrame(Compressor(), text_frame, 1), written(chosen)
    for made, message in zip(map(frame, messages), messages, strict=True):
        (one,) = read_by_client(made)
        assert bytes(one.data) == message


def test_equal_messages_have_equal_frames_whatever_came_between() -> None:
    """Nothing of another message is in a frame: not even its length can tell of one."""
    compressor = Compressor()
    secret = json.dumps({"token": "a secret that nobody should guess", "more": "x" * 50}).encode()
    first = DeflatedFrame(compressor, text_frame, 1)(secret)
    for number in range(3_000):  # until the first one is forgotten
        DeflatedFrame(compressor, text_frame, 1)(b"%d %b" % (number, secret))
    assert text_frame(secret) not in compressor._recent
    assert DeflatedFrame(compressor, text_frame, 1)(secret) == first


def test_what_is_not_compressed_has_no_mark() -> None:
    """Short, long and incompressible messages are ordinary frames."""
    frame = DeflatedFrame(Compressor(), text_frame, 128)
    noise = (noise_of(size) for size in (128, 65_515, LARGEST_COMPRESSED))
    for message in (b"", b"a" * 127, *noise, b"a" * (LARGEST_COMPRESSED + 1)):
        assert frame(message) == text_frame(message)
    for message in (b"a" * 128, b"a" * LARGEST_COMPRESSED):
        assert frame(message)[0] == 0xC1


def test_an_error_within_a_message_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressor that has half a message in it is not used again."""

    class Broken:
        def compress(self, _data: bytes) -> bytes:
            raise MemoryError

    frame = DeflatedFrame(Compressor(), text_frame, 1)
    with monkeypatch.context() as patched:
        patched.setattr(zlib, "compressobj", lambda *_, **__: Broken())
        with pytest.raises(MemoryError):
            frame(b"a" * 100)
    (one,) = read_by_client(frame(b"b" * 100))
    assert bytes(one.data) == b"b" * 100


def test_what_is_remembered_is_bounded() -> None:
    """However many messages there are, and however long."""
    compressor = Compressor()
    frame = DeflatedFrame(compressor, text_frame, 1)
    for number in range(300):
        frame(b"%d" % number + b"a" * 5_000)
        assert sum(map(len, compressor._recent)) <= 262_144
    assert compressor._recent


# --- codecs ---------------------------------------------------------------------------------------

DATA = checked(Publication("c", json.dumps({"text": "the same words " * 20}).encode())).data


def publication(number: int = 1, **tags: str) -> Publication:
    return Publication("c", DATA, offset=number, epoch="e", tags=tags or None)


@pytest.mark.parametrize("plain", [PLAIN, CENTRIFUGE_JSON, CENTRIFUGE_UNI])
def test_a_deflated_codec_says_what_the_plain_one_says(plain: Codec) -> None:
    """Message for message, in frames that take less."""
    codec = Compression().codec(plain, 1)
    batch = [publication(1), publication(2)]
    (ours,), (theirs,) = codec.publications(batch), plain.publications(batch)
    assert [one.data for one in read_by_client(ours)] == [
        one.data for one in read_by_client(theirs)
    ]
    assert len(ours) < len(theirs) / 2
    assert (codec.ping, codec.answered, codec.pushes) == (plain.ping, plain.answered, plain.pushes)
    assert codec.compresses
    assert not plain.compresses
    assert codec.size(publication()) == plain.size(publication())


NEVER = TagsFilter(key="k", cmp="ex")


def test_binary_messages_stay_binary() -> None:
    """Binary data for a plain subscriber, and Protobuf: RSV1 beside the binary opcode."""
    binary = Publication("c", bytes(1_000), binary=True)
    (chunk,) = Compression().codec(PLAIN, 1).publications([binary])
    assert chunk[0] == 0xC2
    (frame,) = read_by_client(chunk)
    assert (frame.opcode, bytes(frame.data)) == (Opcode.BINARY, bytes(1_000))
    codec = Compression().codec(CENTRIFUGE_PROTOBUF, 1)
    for one in (codec, codec.delta, codec.filtered(TagsFilter(op="not", nodes=(NEVER,)))):
        assert one is not None
        (chunk,) = one.publications([publication()])
        (plain,) = CENTRIFUGE_PROTOBUF.publications([publication()])
        assert chunk[0] == 0xC2
        assert [frame.data for frame in read_by_client(chunk)] == [
            frame.data for frame in read_by_client(plain)
        ]


def test_a_codec_is_made_once() -> None:
    """Listeners are grouped by codec: the same arguments must not make a second one."""
    compression = Compression()
    codec = compression.codec(PLAIN, 128)
    assert compression.codec(PLAIN, 128) is codec
    assert compression.codec(PLAIN, 129) is not codec
    for size in range(1_000, 1_300):
        compression.codec(PLAIN, size)
    assert len(compression._codecs) == 256


def marks(chunk: bytes) -> list[bool]:
    """Of each frame, whether it is compressed."""
    found, at = [], 0
    while at < len(chunk):
        found.append(bool(chunk[at] & RSV1))
        size, start = chunk[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(chunk[start : start + 2]), start + 2
        at = start + size
    return found


@pytest.mark.parametrize(("count", "repeated"), [(20, 20), (100, 20), (500, 20), (500, 1)])
def test_what_is_compressed_at_once_is_bounded(count: int, repeated: int) -> None:
    """A client goes live in one step, with all that gathered: the end of a long list is plain.

    A message takes as long as a KiB beside its bytes.
    """
    data = checked(Publication("c", json.dumps("the same words " * repeated).encode())).data
    batch = [Publication("c", data, offset=number, epoch="e") for number in range(1, count + 1)]
    (chunk,) = Compression().codec(CENTRIFUGE_JSON, 1).publications(batch)
    (plain,) = CENTRIFUGE_JSON.publications(batch)
    assert [one.data for one in read_by_client(chunk)] == [
        one.data for one in read_by_client(plain)
    ]
    most = LARGEST_COMPRESSED // (len(plain) // count + 1_024)
    found = marks(chunk)
    assert abs(sum(found) - min(count, most)) < 5
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([100] * 5, [5]),
        ([100] * 40, [16, 16, 8]),
        ([60_000] * 3, [1, 1, 1]),
        ([100, 100, 60_000, 100], [2, 1, 1]),
        ([8_000] * 5, [2, 2, 1]),
    ],
)
async def test_a_batch_is_compressed_in_parts(sizes: list[int], parts: list[int]) -> None:
    """Fan-out looks at the clock between them; a long event is a part of its own."""
    codec = Compression().codec(PLAIN, 1)
    asked: list[int] = []

    class Counted(DeflatedCodec):
        def publications(
            self, publications: Sequence[Publication], base: Publication | None = None
        ) -> list[bytes]:
            asked.append(len(publications))
            return super().publications(publications, base)

    async def give_way() -> None:
        await trio.lowlevel.checkpoint()

    run = [Publication("c", b"a" * size) for size in sizes]
    counted = Counted(codec._compression, PLAIN, 1)
    chunks = await Chunks.in_parts(counted, run, None, give_way)
    assert asked == parts
    assert chunks.publications == len(run)
    (chunk,) = chunks.bytes
    assert [len(one.data) for one in read_by_client(chunk)] == sizes
    assert all(marks(chunk))


def test_deltas_are_compressed() -> None:
    """The delta subscription of a compressing client compresses, first and later publications."""
    delta = Compression().codec(CENTRIFUGE_JSON, 1).delta
    assert delta is not None
    for codec in (delta, delta.following):
        assert codec.compresses
        (chunk,) = codec.publications([publication()])
        assert chunk[0] == 0xC1


def test_filters_share_one_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication that ten filters let through is compressed once."""
    compression = Compression()
    codec = compression.codec(CENTRIFUGE_JSON, 1)
    calls: list[int] = []
    compress = compression.compressor._compress

    def count(payload: memoryview) -> bytes:
        calls.append(len(payload))
        return compress(payload)

    monkeypatch.setattr(Compressor, "_compress", lambda _, payload: count(payload))
    filtered = [
        codec.filtered(TagsFilter(key="k", cmp="in", vals=("a", str(number))))
        for number in range(10)
    ]
    assert all(one.compresses for one in filtered)
    chunks = {one.publications([publication(k="a")])[0] for one in filtered}
    assert len(chunks) == len(calls) == 1
    assert (
        codec.filtered(TagsFilter(key="k", cmp="eq", val="b")).publications([publication()]) == []
    )


def test_a_channel_s_options_choose_the_codec() -> None:
    """`compression` switches it off, `compression_min_size` replaces the server's."""
    codec = Compression().codec(CENTRIFUGE_JSON, 128)
    assert codec.for_channel(ChannelOptions()) is codec
    assert codec.for_channel(ChannelOptions(compression=False)) is CENTRIFUGE_JSON
    assert codec.for_channel(ChannelOptions(compression_min_size=128)) is codec
    later = codec.for_channel(ChannelOptions(compression_min_size=1_000))
    assert later.compresses
    assert later.publications([publication()]) == CENTRIFUGE_JSON.publications([publication()])
    assert later is codec.for_channel(ChannelOptions(compression_min_size=1_000))
    assert CENTRIFUGE_JSON.for_channel(ChannelOptions(compression_min_size=1)) is CENTRIFUGE_JSON


# --- what clients send ----------------------------------------------------------------------------


@given(MESSAGES, st.integers(1, 40), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_a_client_s_messages_are_inflated(chosen: list[Any], step: int, part: int) -> None:
    """Whole or in fragments, compressed or not, and however the bytes arrive."""
    messages = [message for message in written(chosen) if len(message) <= 60_000]
    sent = b""
    for number, message in enumerate(messages):
        if number % 3 == 0:
            sent += compressed(message, Opcode.BINARY)
        elif number % 3 == 1:
            sent += masked(Opcode.BINARY, message)
        else:
            whole = deflated(message)
            sent += masked(Opcode.BINARY, whole[:part], fin=False, rsv1=True)
            sent += masked(Opcode.PING, b"?") + masked(Opcode.CONT, whole[part:])
    reader, received = FrameReader(LIMIT, inflates=True), []
    width = max(step, len(sent) // 200)
    for start in range(0, len(sent), width):
        received += reader.feed(sent[start : start + width])
    assert received == messages
    assert reader.idle
    assert not reader.closed


def test_text_is_checked_when_it_is_inflated() -> None:
    """UTF-8 is what counts after inflating, also over fragments."""
    reader = FrameReader(LIMIT, inflates=True)
    whole = deflated("é".encode())
    fragments = masked(Opcode.TEXT, whole[:2], fin=False, rsv1=True)
    fragments += masked(Opcode.CONT, whole[2:])
    assert reader.feed(compressed("é".encode()) + fragments) == ["é", "é"]
    reader.feed(compressed(b"\xff"))
    assert reader.close is not None
    assert reader.close.code == 1007


BEGUN = masked(Opcode.TEXT, b"", fin=False)
BEGUN_COMPRESSED = masked(Opcode.TEXT, b"", fin=False, rsv1=True)
MARKED_END = masked(Opcode.CONT, b"", rsv1=True)


LAST = zlib.compress(b"a", wbits=-15)
"""A block that says that it is the last one."""
LAST_BEGUN = masked(Opcode.TEXT, LAST, fin=False, rsv1=True)


def bomb(size: int) -> bytes:
    return compressed(b"a" * size)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bomb(LIMIT + 1), 1009),
        (bomb(100_000_000), 1009),
        (compressed(b"a" * 40_000, fin=False) + masked(Opcode.CONT, deflated(b"a" * 40_000)), 1009),
        (compressed(b"a" * LIMIT, fin=False) + masked(Opcode.CONT, deflated(b"a" * 10)), 1009),
        (masked(Opcode.TEXT, b"\xff\xff\xff", rsv1=True), 1002),
        (BEGUN_COMPRESSED + MARKED_END, 1002),
        (BEGUN + MARKED_END, 1002),
        (BEGUN_COMPRESSED + compressed(b"a"), 1002),
        (masked(Opcode.PING, b"", rsv1=True), 1002),
        (masked(Opcode.CLOSE, b"", rsv1=True), 1002),
        (LAST_BEGUN + masked(Opcode.CONT, b"ab", fin=False), 1002),
        (LAST_BEGUN + masked(Opcode.CONT, b"a", fin=False) * 2, 1002),
    ],
    ids=[
        *("one too long", "bomb", "two halves", "a bit behind the limit", "not deflated"),
        *(
            "marked twice",
            "marked late",
            "within another",
            "ping",
            "close",
            "goes on",
            "goes on bit by bit",
        ),
    ],
)
def test_a_violation_ends_the_connection(data: bytes, code: int) -> None:
    """Too long when inflated, not deflated, without an end, or RSV1 where it may not be."""
    reader = FrameReader(LIMIT, inflates=True)
    assert reader.feed(data) == []
    assert reader.closed
    assert reader.close is not None
    assert reader.close.code == code


def test_a_message_may_be_as_long_as_the_limit() -> None:
    """Inflated, in one frame and in two."""
    reader = FrameReader(LIMIT, inflates=True)
    half = deflated(b"a" * (LIMIT // 2), fin=False)
    data = bomb(LIMIT) + masked(Opcode.TEXT, half, fin=False, rsv1=True)
    data += masked(Opcode.CONT, deflated(b"a" * (LIMIT // 2)))
    assert [len(message) for message in reader.feed(data)] == [LIMIT, LIMIT]
    assert not reader.closed


@pytest.mark.parametrize("rest", [b"", b"\0"])
def test_a_last_block_may_end_a_message(rest: bytes) -> None:
    """With or without the empty byte that the RFC has senders append, in one frame and in more."""
    reader = FrameReader(LIMIT, inflates=True)
    data = masked(Opcode.TEXT, LAST + rest, rsv1=True)
    data += LAST_BEGUN + masked(Opcode.CONT, rest, fin=False) + masked(Opcode.CONT, b"")
    assert reader.feed(data) == ["a", "a"]
    assert reader.idle
    assert not reader.closed


def test_compression_must_be_negotiated() -> None:
    """Without it RSV1 breaks the protocol."""
    reader = FrameReader(LIMIT)
    assert reader.feed(compressed(b"abc")) == []
    assert reader.close is not None
    assert reader.close.code == 1002


def test_readers_that_inflate_are_kept_apart() -> None:
    """A connection that negotiated nothing never gets one, and they keep no decompressor."""
    reader = take_reader(1_005, inflates=True)
    assert reader.feed(compressed(b"abc")) == ["abc"]
    assert reader._inflating is not None
    assert not hasattr(reader._inflating, "decoder")
    give_back(reader)
    assert not take_reader(1_005).inflates
    assert take_reader(1_005, inflates=True) is reader


def test_a_reader_is_not_idle_inside_a_compressed_message() -> None:
    """Wherever it is cut, a reader that is dropped whenever idle loses nothing."""
    data = compressed(b"abc" * 200)
    for cut in range(1, len(data)):
        reader = FrameReader(LIMIT, inflates=True)
        assert reader.feed(data[:cut]) == []
        assert not reader.idle
        assert reader.feed(data[cut:]) == ["abc" * 200]
        assert reader.idle
