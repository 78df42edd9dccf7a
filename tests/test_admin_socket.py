"""The admin socket: who may ask, what is answered, and what ends a conversation."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repeater.access.denial_store import MemoryDenials
from repeater.config import load_settings
from repeater.errors import BrokerError
from repeater.failures import Failures
from repeater.serving.admin_call import (
    LINE_LIMIT,
    SOCKET,
    AdminError,
    NobodyThereError,
    open_admin_call,
    socket_path,
)
from repeater.serving.admin_socket import AdminMethod, Conversation, open_admin_socket
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS
from tests.serving import running

pytestmark = pytest.mark.timeout(60)


class Methods:
    """Methods that show what a conversation can be."""

    def __init__(self) -> None:
        self.failures = Failures()
        self.ended = trio.Event()
        self.table: Mapping[str, AdminMethod] = {
            "echo": self.echo,
            "count": self.count,
            "wait": self.wait,
            "refuse": self.refuse,
            "outage": self.outage,
            "crash": self.crash,
            "pass": self.pass_descriptor,
        }

    async def echo(self, params: dict[str, Any], _conversation: Conversation) -> object:
        return params

    async def count(self, params: dict[str, Any], conversation: Conversation) -> object:
        """Double each number of the peer until it says 0."""
        total = 0
        while number := (await conversation.ask())["number"]:
            total += number
            await conversation.say({"double": 2 * number})
        return total

    async def wait(self, _params: dict[str, Any], conversation: Conversation) -> object:
        await conversation.say("waiting")
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()

    async def refuse(self, _params: dict[str, Any], _conversation: Conversation) -> object:
        raise AdminError("not today")

    async def outage(self, _params: dict[str, Any], _conversation: Conversation) -> object:
        raise BrokerError("history: disk full")

    async def crash(self, _params: dict[str, Any], _conversation: Conversation) -> object:
        raise KeyError("a mistake of ours")

    async def pass_descriptor(self, _params: dict[str, Any], conversation: Conversation) -> object:
        read, write = os.pipe()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, read.to_bytes(4, "little"))]
        await conversation.socket.sendmsg([b" "], rights)
        os.write(write, b"hello")
        os.close(read)
        os.close(write)
        return "passed"


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Methods]:
    methods = Methods()
    with trio.fail_after(LOOP_ANSWERS):
        async with open_admin_socket(folder, methods.table, methods.failures):
            yield methods


def ask(folder: Path, method: str, **params: object) -> Any:
    with open_admin_call(folder, method, **params) as call:
        return call.result()


async def asked(folder: Path, method: str, **params: object) -> Any:
    return await trio.to_thread.run_sync(partial(ask, folder, method, **params))


async def test_a_question_and_its_answer(tmp_path: Path) -> None:
    """The socket is the server's own user's alone, and gone afterwards."""
    async with listening(tmp_path):
        assert (tmp_path / SOCKET).stat().st_mode & 0o777 == 0o600
        assert await asked(tmp_path, "echo", a=["é", 1]) == {"a": ["é", 1]}
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(NobodyThereError, match="no server answers in"):
        await asked(tmp_path, "echo")


async def test_a_longer_conversation(tmp_path: Path) -> None:
    """Each side waits for the other's lines."""

    def talk() -> Any:
        with open_admin_call(tmp_path, "count") as call:
            for number in (1, 2, 3):
                call.say({"number": number})
                assert call.next() == {"progress": {"double": 2 * number}}
            call.say({"number": 0})
            return call.result()

    async with listening(tmp_path):
        assert await trio.to_thread.run_sync(talk) == 6


async def test_descriptors_may_be_passed(tmp_path: Path) -> None:
    """By the socket itself, between two lines."""

    def talk() -> bytes:
        with open_admin_call(tmp_path, "pass") as call:
            _, descriptors, _, _ = socket.recv_fds(call.socket, 1, 1)
            assert call.result() == "passed"
            text = os.read(descriptors[0], 100)
            os.close(descriptors[0])
            return text

    async with listening(tmp_path):
        assert await trio.to_thread.run_sync(talk) == b"hello"


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("refuse", "not today"),
        ("outage", "history: disk full"),
        ("nothing", "this server cannot do that: 'nothing'"),
    ],
)
async def test_a_refusal_is_one_line(tmp_path: Path, method: str, error: str) -> None:
    """The text of the error that the method raised."""
    async with listening(tmp_path) as methods:
        with pytest.raises(AdminError, match=f"^{error}$"):
            await asked(tmp_path, method)
        assert not methods.failures.counts


async def test_a_mistake_of_ours_costs_one_conversation(tmp_path: Path) -> None:
    """It is counted, and the next peer is answered."""
    async with listening(tmp_path) as methods:
        with pytest.raises(AdminError, match="the server ended the conversation"):
            await asked(tmp_path, "crash")
        assert methods.failures.counts == {"admin": 1}
        assert await asked(tmp_path, "echo") == {}


async def test_a_peer_that_hangs_up_ends_its_method(tmp_path: Path) -> None:
    """At once, and quietly."""

    def talk() -> None:
        with open_admin_call(tmp_path, "wait") as call:
            assert call.next() == {"progress": "waiting"}

    async with listening(tmp_path) as methods:
        await trio.to_thread.run_sync(talk)
        await methods.ended.wait()
        assert not methods.failures.counts


async def test_a_shutdown_ends_the_methods(tmp_path: Path) -> None:
    """The peer sees the end of the conversation, and no result."""
    began = trio.Event()

    def talk() -> None:
        with open_admin_call(tmp_path, "wait") as call:
            call.next()
            trio.from_thread.run_sync(began.set)
            with pytest.raises(AdminError, match="the server ended the conversation"):
                call.result(LOOP_ANSWERS)

    async with trio.open_nursery() as nursery:
        async with listening(tmp_path) as methods:
            nursery.start_soon(trio.to_thread.run_sync, talk)
            await began.wait()
        assert methods.ended.is_set()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"no json\n", b"that is not a JSON object"),
        (b"[1]\n", b"that is not a JSON object"),
        (b'{"method":"echo","params":3}\n', b"cannot do that"),
        (b"x" * (2 * LINE_LIMIT), b""),
        (b"", b""),
    ],
)
async def test_what_is_no_question(tmp_path: Path, text: bytes, error: bytes) -> None:
    """It is answered, or hung up on, and costs nobody else anything."""
    async with listening(tmp_path) as methods:
        stream = await trio.open_unix_socket(tmp_path / SOCKET)
        async with stream:
            try:
                await stream.send_all(text)
                await stream.send_eof() if not text else None
                received = b"".join([chunk async for chunk in stream])
            except trio.BrokenResourceError:
                received = b""
        assert error in received
        assert bool(received) == bool(error)
        assert await asked(tmp_path, "echo") == {}
        assert not methods.failures.counts


async def test_a_silent_peer_is_not_waited_for(tmp_path: Path, autojump_clock: object) -> None:
    """Five seconds, then it is told why."""
    async with listening(tmp_path), await trio.open_unix_socket(tmp_path / SOCKET) as stream:
        begun = trio.current_time()
        assert b"no question came" in b"".join([chunk async for chunk in stream])
        assert trio.current_time() - begun == pytest.approx(5, abs=0.1)


async def test_few_conversations_at_once(tmp_path: Path) -> None:
    """One more is refused; there is room again when one ends."""
    async with listening(tmp_path) as methods:
        streams = [await trio.open_unix_socket(tmp_path / SOCKET) for _ in range(8)]
        for stream in streams:
            await stream.send_all(b'{"method":"wait"}\n')
            assert b"waiting" in await stream.receive_some()
        with pytest.raises(AdminError, match="too many ask at once"):
            await asked(tmp_path, "echo")
        async with await trio.open_unix_socket(tmp_path / SOCKET) as slow:
            await trio.testing.wait_all_tasks_blocked(0.05)  # it is heard before it is refused
            await slow.send_all(b'{"method":"echo"}\n')
            assert b"too many ask at once" in b"".join([chunk async for chunk in slow])
        for stream in streams:
            await stream.aclose()
        await methods.ended.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await asked(tmp_path, "echo") == {}


async def test_a_folder_with_a_long_name(tmp_path: Path) -> None:
    """The system's names of sockets are short; the folder's may be long."""
    folder = tmp_path.joinpath(*["x" * 60] * 3)
    folder.mkdir(parents=True)
    async with listening(folder):
        assert await asked(folder, "echo", a=1) == {"a": 1}
    assert not (folder / SOCKET).exists()
    with socket_path(tmp_path.with_name("short")) as path:
        assert path.endswith(SOCKET)


async def test_a_socket_that_a_kill_left_is_replaced(tmp_path: Path) -> None:
    """The folder's lock says that its server is gone."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / SOCKET))
    left.close()
    async with listening(tmp_path):
        assert await asked(tmp_path, "echo", a=1) == {"a": 1}


async def test_the_next_server_s_socket_stays(tmp_path: Path) -> None:
    """A server that ends removes its own socket only."""
    async with listening(tmp_path):
        async with listening(tmp_path):
            pass
        first = socket.socket(socket.AF_UNIX)
        first.bind(str(tmp_path / SOCKET))
    assert (tmp_path / SOCKET).exists()
    first.close()


async def test_a_folder_where_nothing_can_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on without the socket, and says so once."""
    async with listening(tmp_path / "missing"):
        with pytest.raises(NobodyThereError):
            await asked(tmp_path / "missing", "echo")
    assert "no admin socket" in caplog.text


async def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    """The caller waits for so long, and no longer."""

    def talk() -> None:
        with open_admin_call(tmp_path, "wait") as call:
            call.next()
            with pytest.raises(AdminError, match=r"did not answer within 0.1 s"):
                call.next(0.1)

    async with listening(tmp_path):
        await trio.to_thread.run_sync(talk)


async def test_a_server_answers_in_its_data_directory(tmp_path: Path) -> None:
    """Unless a program brings its parts along: then the folder may be another process's."""
    async with running(data_dir=str(tmp_path)):
        with pytest.raises(AdminError, match="this server cannot do that: 'echo'"):
            await asked(tmp_path, "echo")
    settings = load_settings(dev=True, port=0, data_dir=str(tmp_path))
    async with open_server(settings, denials=MemoryDenials()):
        with pytest.raises(NobodyThereError):
            await asked(tmp_path, "echo")
