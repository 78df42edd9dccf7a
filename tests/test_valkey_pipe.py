"""One connection to a server, whose other end is the test."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import hiredis
import pytest
import trio
from trio.testing import (
    MemoryReceiveStream,
    MemorySendStream,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from repeater.valkey.pipe import Lost, Pipe, Refused, packed

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class Bus:
    """Takes pushes, as long as it has room."""

    def __init__(self) -> None:
        self.taken: list[list[object]] = []
        self.room = trio.Event()
        self.room.set()

    def push(self, message: list[object]) -> None:
        self.taken.append(message)

    async def wait_room(self) -> None:
        await self.room.wait()


class Server:
    """The other end, and what was asked there."""

    def __init__(self, pipe: Pipe, bus: Bus, stream: Stream) -> None:
        self.pipe = pipe
        self.bus = bus
        self.stream = stream
        self.told: list[object] = []
        self.scope = trio.CancelScope()

    async def asked(self) -> list[list[bytes]]:
        """The commands that have come by now."""
        reader = hiredis.Reader()
        await wait_all_tasks_blocked()
        reader.feed(bytes(await self.stream.receive_some()))
        found = []
        while (command := reader.gets()) is not False:
            found.append(command)
        return found

    async def say(self, text: bytes) -> list[object]:
        """Send bytes; everything that was told so far."""
        await self.stream.send_all(text)
        await wait_all_tasks_blocked()
        return self.told


class Stubborn(trio.abc.Stream):
    """Does not end before its other end is heard, as TLS with a server that is paused."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def talking(
    kind: Callable[[trio.abc.Stream], trio.abc.Stream] = lambda stream: stream,
) -> AsyncIterator[Server]:
    here, there = memory_stream_pair()
    bus = Bus()
    pipe = Pipe(kind(here), bus)
    server = Server(pipe, bus, there)

    async def run() -> None:
        with server.scope:
            await pipe.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield server
        nursery.cancel_scope.cancel()


async def test_what_gathers_goes_in_one_piece() -> None:
    """Requests of one pass of the loop are written together, and answered in their order."""
    async with talking() as server:
        for number in range(3):
            server.pipe.ask(packed("ECHO", number), server.told.append)
        assert server.pipe.waiting == 3
        assert await server.asked() == [[b"ECHO", b"%d" % number] for number in range(3)]
        assert await server.say(b"+a\r\n-ERR no\r\n") == [b"a", server.told[1]]
        assert isinstance(server.told[1], Refused)
        assert await server.say(b":7\r\n") == [b"a", server.told[1], 7]
        assert server.pipe.waiting == 0


async def test_answers_may_come_in_any_pieces() -> None:
    """Bytes are cut where a network cuts them."""
    text = b"$5\r\nhe\r\no\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n*2\r\n+a\r\n:1\r\n"
    async with talking() as server:
        for _ in range(2):
            server.pipe.ask(packed("X"), server.told.append)
        for byte in text:
            await server.say(bytes((byte,)))
        assert server.told == [b"he\r\no", [b"a", 1]]
        assert server.bus.taken == [[b"message", b"c", b"x"]]


async def test_an_order_is_told_behind_its_pushes() -> None:
    """Confirmations are pushes; the PING behind them says that all of them have come."""
    async with talking() as server:
        server.pipe.order(packed("SUBSCRIBE", "a", "b"), server.told.append)
        assert await server.asked() == [[b"SUBSCRIBE", b"a", b"b"], [b"PING"]]
        push = b">3\r\n$9\r\nsubscribe\r\n$1\r\n%b\r\n:1\r\n"
        assert await server.say(push % b"a") == []
        assert await server.say(push % b"b" + b"+PONG\r\n") == [None]


async def test_the_first_error_of_an_order_is_told() -> None:
    """Errors come in place of confirmations; what was asked behind it gets its own answer."""
    async with talking() as server:
        commands = packed("SUBSCRIBE", "a") + packed("SUBSCRIBE", "b")
        server.pipe.order(commands, server.told.append)
        server.pipe.ask(packed("GET", "x"), server.told.append)
        await server.say(b"-NOPERM first\r\n-NOPERM second\r\n+PONG\r\n$1\r\nx\r\n")
        refused, answer = server.told
        assert isinstance(refused, Refused)
        assert str(refused) == "NOPERM first"
        assert answer == b"x"


@pytest.mark.parametrize(
    "text",
    [
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-ERR Error running script (call to f_1): @user_script:1: -READONLY no\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-NOAUTH Authentication required.\r\n",
    ],
)
async def test_a_server_that_cannot_be_used_any_more_is_left(text: bytes) -> None:
    """Whoever asked has the error; whoever waits behind it is told that the connection ends."""
    async with talking() as server:
        for _ in range(2):
            server.pipe.ask(packed("SET", "a", "b"), server.told.append)
        await server.say(text)
        assert [type(one) for one in server.told] == [Refused, Lost]
        assert str(server.pipe.lost) == text[1:-2].decode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"+nobody asked\r\n", "what nobody asked"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not an answer of a server"),
        (b"*-7\r\n", "not an answer of a server"),
        (b"%1\r\n*0\r\n:1\r\n", "not an answer of a server"),
    ],
)
async def test_what_is_not_an_answer_ends_the_connection(text: bytes, why: str) -> None:
    """Never the process."""
    async with talking() as server:
        await server.say(text)
        with pytest.raises(Lost, match=why):
            server.pipe.ask(packed("PING"), server.told.append)


async def test_an_order_whose_ping_is_refused_ends_the_connection() -> None:
    """The user's rights were changed: else each answer would go to the question before its own."""
    async with talking() as server:
        server.pipe.order(packed("SUBSCRIBE", "a"), server.told.append)
        server.pipe.ask(packed("GET", "x"), server.told.append)
        await server.say(b"-NOPERM User some has no permissions to run the 'ping' command\r\n")
        assert server.told == []
        order, answer = await server.say(b"$1\r\nx\r\n")
        assert isinstance(order, Lost)
        assert answer is order


async def test_arguments_of_a_command_that_is_not_known_are_not_told() -> None:
    """Servers repeat them, and that of HELLO is the password."""
    async with talking() as server:
        server.pipe.ask(packed("HELLO", 3, "AUTH", "default", "s3cret"), server.told.append)
        await server.say(
            b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `s3cret`, \r\n"
        )
        assert [str(one) for one in server.told] == ["ERR unknown command `HELLO`"]


async def test_an_answer_without_end_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is whole counts no more; the rest is kept up to a bound."""
    monkeypatch.setattr("repeater.valkey.pipe._LONGEST", 10_000)
    async with talking() as server:
        for _ in range(40):
            server.pipe.ask(packed("GET", "x"), server.told.append)
        for _ in range(30):
            await server.say(b"$500\r\n%s\r\n" % (500 * b"x"))
        assert len(server.told) == 30
        await server.say(b"*1000000\r\n")
        for _ in range(25):
            await server.say(b"$400\r\n%s\r\n" % (400 * b"x"))
        assert str(server.pipe.lost) == "an answer of the server has no end"
        assert len(server.told) == 40


async def test_a_length_that_memory_is_too_small_for_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parser asks for memory for all answers of a list at once."""

    class Reader(hiredis.Reader):
        def gets(self, *_options: object) -> object:
            raise MemoryError

    monkeypatch.setattr(hiredis, "Reader", Reader)
    async with talking() as server:
        await server.stream.send_all(b"*4294967295\r\n")
        await wait_all_tasks_blocked()
        assert "not an answer of a server" in str(server.pipe.lost)


async def test_the_end_is_told_before_the_stream_is_closed() -> None:
    """To close it may take for ever, and is cut short."""
    async with talking(Stubborn) as server:
        server.pipe.ask(packed("PING"), server.told.append)
        await server.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        (told,) = server.told
        assert isinstance(told, Lost)


@pytest.mark.parametrize("seed", range(20))
async def test_any_bytes_end_the_connection_or_are_pushes(seed: int) -> None:
    """Random pieces of the protocol, cut anywhere, crash nothing."""
    chance = random.Random(seed)
    pieces = [
        b"*2\r\n",
        b">3\r\n",
        b"$3\r\n",
        b"abc\r\n",
        b"%1\r\n",
        b"_\r\n",
        b"-E x\r\n",
        b":1\r\n",
    ]
    async with talking() as server:
        for _ in range(20):
            server.pipe.ask(packed("PING"), server.told.append)
        text = b"".join(chance.choices([*pieces, b"~1\r\n", b"#t\r\n", b",1.5\r\n", b"\x00"], k=60))
        try:
            for start in range(0, len(text), 7):
                await server.say(text[start : start + 7])
        except trio.BrokenResourceError:
            assert server.pipe.lost is not None


def note(told: list[object], number: int, answer: object) -> None:
    told.append((number, answer))


async def test_the_end_tells_everybody_who_waits() -> None:
    """The end of the stream, or of the task, is told in the order of the questions."""
    for end_here in (True, False):
        async with talking() as server:
            for number in range(3):
                server.pipe.ask(packed("PING"), partial(note, server.told, number))
            if end_here:
                server.scope.cancel()
            else:
                await server.stream.aclose()
            await wait_all_tasks_blocked()
            lost = server.pipe.lost
            assert lost is not None
            assert server.told == [(0, lost), (1, lost), (2, lost)]
            assert await server.pipe.wait_ended() is lost


async def test_without_room_nothing_is_read() -> None:
    """What was read is given out; what comes later waits until there is room."""
    push = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\n%d\r\n"
    async with talking() as server:
        server.bus.room = trio.Event()
        await server.say(push % 1 + push % 2)
        await server.say(push % 3)
        assert server.pipe.is_held
        assert [message[2] for message in server.bus.taken] == [b"1", b"2"]
        server.bus.room.set()
        await wait_all_tasks_blocked()
        assert [server.pipe.is_held] == [False]
        assert [message[2] for message in server.bus.taken] == [b"1", b"2", b"3"]


async def test_many_answers_let_others_run() -> None:
    """Between 512 answers of one read others have a turn."""
    async with talking() as server:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5_000):
                server.pipe.ask(packed("PING"), server.told.append)
            await server.asked()
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            await server.stream.send_all(b":1\r\n" * 5_000)
            before = turns
            while len(server.told) < 5_000:
                await trio.lowlevel.checkpoint()
            assert turns - before >= 5
            nursery.cancel_scope.cancel()
