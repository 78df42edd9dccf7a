"""Frames: ours are read by the library's client, and a client's are read by ours."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from repeater.protocol.websocket.frames import (
    PING_FRAME,
    FrameReader,
    close_frame,
    give_back,
    take_reader,
    text_frame,
)


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def read_by_client(data: bytes) -> list[Frame]:
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(data)
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_text_frame_is_read_by_a_client(size: int) -> None:
    """At each edge of the length encoding a client reads the payload that we framed."""
    (frame,) = read_by_client(text_frame(b"x" * size))
    assert (frame.opcode, frame.fin, len(frame.data)) == (Opcode.TEXT, True, size)


@given(st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=50)
def test_joined_frames_are_read_one_by_one(payloads: list[bytes]) -> None:
    """Frames joined into one chunk are read as the same messages in the same order."""
    joined = b"".join(map(text_frame, payloads))
    assert [bytes(frame.data) for frame in read_by_client(joined)] == payloads


def test_ping_frame_is_a_ping() -> None:
    """The constant is an empty ping."""
    (frame,) = read_by_client(PING_FRAME)
    assert (frame.opcode, bytes(frame.data)) == (Opcode.PING, b"")


def test_close_frame_cuts_the_reason() -> None:
    """A reason too long is cut between characters, to the 123 bytes that fit."""
    client = Protocol(CLIENT)
    client.receive_data(close_frame(3000, "é" * 100))
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 3000
    assert client.close_rcvd.reason == "é" * 61


@given(st.integers(min_value=1, max_value=40))
@settings(max_examples=40)
def test_reader_does_not_mind_how_bytes_arrive(step: int) -> None:
    """Messages, fragments and pings come out the same however the bytes are cut."""
    data = (
        masked(Opcode.TEXT, b"one")
        + masked(Opcode.TEXT, b"tw", fin=False)
        + masked(Opcode.PING, b"hi")
        + masked(Opcode.CONT, b"o")
        + masked(Opcode.BINARY, b"\x00")
    )
    reader, messages, answers = FrameReader(1_000), [], b""
    for start in range(0, len(data), step):
        messages += reader.feed(data[start : start + step])
        answers += reader.pongs
    assert messages == ["one", "two", b"\x00"]
    assert [(f.opcode, bytes(f.data)) for f in read_by_client(answers)] == [(Opcode.PONG, b"hi")]
    assert reader.idle
    assert not reader.closed


@pytest.mark.parametrize("size", [0, 5, 200, 66_000])
def test_reader_is_not_idle_inside_a_frame(size: int) -> None:
    """Wherever a frame is cut, a reader that is dropped whenever idle loses nothing of it."""
    data = masked(Opcode.TEXT, b"x" * size)
    for cut in range(1, min(len(data), 20)):
        reader = FrameReader(100_000)
        assert reader.feed(data[:cut]) == []
        assert not reader.idle
        assert reader.feed(data[cut:]) == ["x" * size]
        assert reader.idle


def test_length_written_too_long_keeps_the_reader() -> None:
    """A frame whose length has more bytes than it needs is read, and so is what follows it."""
    plain = masked(Opcode.TEXT, b"hello")
    long = plain[:1] + b"\xfe\x00\x05" + plain[2:]
    reader = FrameReader(100)
    assert reader.feed(long + plain[:3]) == ["hello"]
    assert not reader.idle
    assert reader.feed(plain[3:]) == ["hello"]


def test_reader_is_not_idle_inside_a_message() -> None:
    """Half a frame and half a message keep the reader alive."""
    reader = FrameReader(1_000)
    data = masked(Opcode.TEXT, b"abc", fin=False)
    reader.feed(data[:4])
    assert not reader.idle
    reader.feed(data[4:])
    assert not reader.idle


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(Opcode.TEXT, b"x" * 101), 1009),
        (Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002),
        (masked(Opcode.CONT, b"x"), 1002),
        (masked(Opcode.TEXT, b"\xff"), 1007),
        (masked(Opcode.TEXT, b"\xc3"), 1007),
        (masked(Opcode.TEXT, b"\xc3", fin=False) + masked(Opcode.CONT, b"("), 1007),
    ],
    # Frames are masked at random, and a name must be the same in each run.
    ids=["long", "unmasked", "no beginning", "no text", "half a letter", "two halves"],
)
def test_violation_is_answered_with_a_close(data: bytes, code: int) -> None:
    """Too long, unmasked or out of order: a close frame with the RFC's code, then closed."""
    reader = FrameReader(100)
    assert reader.feed(data) == []
    client = Protocol(CLIENT)
    client.receive_data(reader.closing)
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == code
    assert reader.closed
    assert reader.close is not None
    assert reader.close.code == code


def test_characters_may_be_cut_by_fragments() -> None:
    """Only the whole message has to be UTF-8, not each of its fragments."""
    reader = FrameReader(100)
    data = masked(Opcode.TEXT, b"\xc3", fin=False) + masked(Opcode.CONT, b"\xa9")
    assert reader.feed(data) == ["é"]
    assert not reader.closed


def test_messages_before_a_violation_count() -> None:
    """A good message comes out, and its pong, though a bad frame follows in the same bytes."""
    reader = FrameReader(100)
    good = masked(Opcode.TEXT, b"good") + masked(Opcode.PING, b"")
    assert reader.feed(good + masked(Opcode.TEXT, b"\xff") + masked(Opcode.TEXT, b"x")) == ["good"]
    assert reader.pongs == b"\x8a\x00"
    assert reader.closing[2:4] == (1007).to_bytes(2)


def test_empty_fragments_cost_nothing() -> None:
    """A message of fragments without end and without content does not grow."""
    reader = FrameReader(100)
    reader.feed(masked(Opcode.TEXT, b"", fin=False))
    for _ in range(100):
        reader.feed(masked(Opcode.CONT, b"", fin=False) * 100)
    gc.collect()
    # One or two are in the hands of the library's parser.
    assert sum(type(kept) is Frame for kept in gc.get_objects()) < 5
    assert not reader.idle


@pytest.mark.parametrize(
    "begun", [b"", masked(Opcode.TEXT, b"x", fin=False)], ids=["idle", "within a message"]
)
def test_close_is_echoed(begun: bytes) -> None:
    """The peer's close frame is answered with the same code, even inside a message."""
    reader = FrameReader(100)
    assert reader.feed(begun + masked(Opcode.CLOSE, (1000).to_bytes(2))) == []
    assert reader.closed
    client = Protocol(CLIENT)
    client.receive_data(reader.closing)
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 1000


def test_a_reader_is_used_again_when_nothing_is_in_it() -> None:
    """An idle reader reads the next connection's messages as a new one would."""
    first = take_reader(1_001)
    assert first.feed(masked(Opcode.TEXT, b"one")) == ["one"]
    assert first.idle
    give_back(first)
    again = take_reader(1_001)
    assert again is first
    assert again.feed(masked(Opcode.PING, b"?") + masked(Opcode.TEXT, b"two")) == ["two"]
    assert read_by_client(again.pongs)[0].data == b"?"
    assert (again.frames, again.idle_frames, again.closing) == (2, 1, b"")


@pytest.mark.parametrize(
    "received",
    [
        masked(Opcode.TEXT, b"a part", fin=False),
        masked(Opcode.TEXT, b"cut")[:-1],
        masked(Opcode.CLOSE, b""),
        b"\x81\x01x",  # not masked
    ],
    ids=["fragment", "cut", "closed", "violation"],
)
def test_a_reader_with_another_connection_s_bytes_is_never_used(received: bytes) -> None:
    """A part of a message, or a closing handshake, stays with its own connection."""
    reader = take_reader(1_002)
    reader.feed(received)
    give_back(reader)
    assert take_reader(1_002) is not reader


def test_a_reader_with_another_limit_is_not_used() -> None:
    """A reader holds the limit that it was made with: a reload may have changed it."""
    reader = take_reader(1_003)
    give_back(reader)
    assert take_reader(1_004) is not reader
