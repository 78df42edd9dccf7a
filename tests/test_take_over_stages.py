"""The two sides of a take-over, without processes: who serves after whatever goes wrong."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.config import Settings, load_settings
from repeater.errors import BrokerError
from repeater.failures import Failures
from repeater.front.passed_sockets import PassedSocket
from repeater.serving import predecessor as new_side
from repeater.serving import successor as old_side
from repeater.serving.admin_socket import open_admin_socket
from repeater.serving.errors import ServeError
from repeater.serving.predecessor import Predecessor, open_predecessor
from repeater.serving.successor import METHOD, Stage, Successor
from tests.deadlines import LOOP_ANSWERS

pytestmark = pytest.mark.timeout(2 * LOOP_ANSWERS)


class Old:
    """A server that writes down what it is told to do."""

    def __init__(self, listeners: Sequence[socket.socket] = ()) -> None:
        self.listeners = listeners
        self.told: list[str] = []
        self.failures = 0
        self.holds = trio.Event()
        self.holds.set()

    def passable(self) -> Sequence[PassedSocket]:
        return [
            PassedSocket(one, inherited=number == 0) for number, one in enumerate(self.listeners)
        ]

    async def let_go(self) -> None:
        with trio.CancelScope(shield=True):
            await self.holds.wait()
        self.told.append("let go")

    async def take_again(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise BrokerError("in use by process 1")
        self.told.append("take again")

    def leave(self) -> None:
        self.told.append("leave")


@asynccontextmanager
async def serving(old: Old, folder: Path) -> AsyncIterator[Successor]:
    """The old server's side at its admin socket."""
    successor = Successor(old)
    failures = Failures()
    with trio.fail_after(LOOP_ANSWERS):
        async with open_admin_socket(folder, {METHOD: successor.take_over}, failures):
            yield successor
    assert not failures.counts


async def until(successor: Successor, stage: Stage) -> None:
    """Wait until the old server is at this stage."""
    while successor.stage is not stage:  # noqa: ASYNC110  # nobody tells
        await trio.sleep(0.01)


def settings(folder: Path) -> Settings:
    return load_settings(data_dir=str(folder))


@asynccontextmanager
async def taking_over(folder: Path, *, loading: bool = False) -> AsyncIterator[Predecessor]:
    """The new server's side, which has begun to load if it is to."""
    async with open_predecessor(settings(folder)) as predecessor:
        assert predecessor is not None
        if loading:
            await predecessor.let_go()
        yield predecessor


async def fail(folder: Path, *, loading: bool) -> None:
    """A new server that ends with an error."""
    async with taking_over(folder, loading=loading):
        raise RuntimeError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides wait for 0.3 s instead of 10."""
    for side in (old_side, new_side):
        monkeypatch.setattr(side, "_PATIENCE", 0.3)


async def test_everything_is_handed_over(tmp_path: Path) -> None:
    """The new server gets the sockets first, then the files, and at last the word to serve."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(130)]
    old = Old(listeners)
    async with serving(old, tmp_path) as successor:
        async with taking_over(tmp_path) as predecessor:
            assert old.told == []
            names = [one.getsockname() for one in predecessor.sockets.left()]
            assert names == [one.getsockname() for one in listeners]
            (inherited,) = predecessor.sockets.take_inherited()
            inherited.close()
            await predecessor.let_go()
            assert old.told == ["let go"]
            await predecessor.commit()
            assert successor.stage is Stage.COMMITTED
        assert old.told == ["let go", "leave"]
    for one in listeners:
        one.close()


async def test_nobody_is_there(tmp_path: Path) -> None:
    """Without an old server, or with the socket of a killed one, there is nothing to take over."""
    async with open_predecessor(settings(tmp_path)) as predecessor:
        assert predecessor is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "admin.sock"))
    async with open_predecessor(settings(tmp_path)) as predecessor:
        assert predecessor is None
    async with open_predecessor(settings(tmp_path / "missing")) as predecessor:
        assert predecessor is None


@pytest.mark.parametrize("loading", [False, True])
async def test_a_new_server_that_fails_is_forgotten(tmp_path: Path, *, loading: bool) -> None:
    """The old one takes its files again if it had let go, and can be asked once more."""
    old = Old()
    async with serving(old, tmp_path) as successor:
        with pytest.raises(RuntimeError):
            await fail(tmp_path, loading=loading)
        await until(successor, Stage.SERVING)
        assert old.told == (["let go", "take again"] if loading else [])
        async with taking_over(tmp_path):
            pass


async def test_the_files_are_tried_again_until_they_are_free(tmp_path: Path) -> None:
    """A new server that has failed may keep the lock for some moments more."""
    old = Old()
    old.failures = 2
    async with serving(old, tmp_path) as successor:
        async with taking_over(tmp_path, loading=True):
            pass
        await until(successor, Stage.SERVING)
        assert old.told == ["let go", "take again"]


async def test_a_silent_new_server_is_given_up(tmp_path: Path, impatient: None) -> None:
    """The old one takes its files again; a new one that wakes up is told, and must not serve."""
    old = Old()
    async with serving(old, tmp_path) as successor:
        async with taking_over(tmp_path, loading=True) as predecessor:
            predecessor._loading.cancel()  # it stands still from here on
            await until(successor, Stage.SERVING)
            with pytest.raises(ServeError, match="the new server was silent for"):
                await predecessor.commit()
        assert old.told == ["let go", "take again"]


async def test_a_new_server_that_loads_for_long_is_waited_for(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is loading, again and again; but not for ever."""
    monkeypatch.setattr(new_side, "_BEAT", 0.05)
    old = Old()
    async with serving(old, tmp_path) as successor:
        async with taking_over(tmp_path, loading=True):
            await trio.sleep(0.9)
            assert successor.stage is Stage.LET_GO
        await until(successor, Stage.SERVING)
        monkeypatch.setattr(old_side, "_LOADING", 0.5)
        async with taking_over(tmp_path, loading=True):
            await until(successor, Stage.SERVING)


async def test_an_old_server_that_hangs_is_named(tmp_path: Path, impatient: None) -> None:
    """The new one ends with one line; the old one goes on when it wakes up."""
    old = Old()
    old.holds = trio.Event()
    async with serving(old, tmp_path) as successor:
        async with taking_over(tmp_path) as predecessor:
            with pytest.raises(ServeError, match=r"did not answer within .* end it, then start"):
                await predecessor.let_go()
        old.holds.set()
        await until(successor, Stage.SERVING)
        assert old.told == ["let go", "take again"]


async def test_two_new_servers_at_once(tmp_path: Path) -> None:
    """The second one is refused, and the first one goes on."""
    old = Old()
    async with serving(old, tmp_path), taking_over(tmp_path, loading=True) as predecessor:
        with pytest.raises(ServeError, match="another take-over is under way"):
            await fail(tmp_path, loading=False)
        await predecessor.commit()
    assert old.told == ["let go", "leave"]


@pytest.mark.parametrize("loading", [False, True])
async def test_the_old_server_is_ended_meanwhile(tmp_path: Path, *, loading: bool) -> None:
    """The new one goes on alone, and the old one takes nothing again."""
    old, end = Old(), trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[Successor]) -> None:
        with end:
            async with serving(old, tmp_path) as successor:
                task_status.started(successor)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        successor = await nursery.start(serve)
        async with taking_over(tmp_path, loading=loading) as predecessor:
            successor.end()
            end.cancel()
            await predecessor.let_go()
            await predecessor.commit()
            assert predecessor.gone
    assert "take again" not in old.told
