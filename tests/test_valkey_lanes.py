"""Submissions on their way to the engine: what goes together, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import hiredis
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.source_rows import AfterError, DeposedError
from repeater.brokers.valkey.lanes import MANY, Lanes, Submission
from repeater.brokers.valkey.scripts import PUBLISH
from repeater.brokers.window import Window
from repeater.errors import BrokerError, open_service_nursery
from repeater.publication import StreamPosition
from repeater.valkey.pipe import Lost, Refused, Tell

pytestmark = pytest.mark.timeout(10)

KEPT = (10, 1_000, 2_000)
UNKNOWN = Refused("NOSCRIPT No matching script.")


class Engine:
    """Keeps the scripts that are asked for; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[bytes]]] = []
        self.tells: list[Tell] = []
        self.is_down = False
        self._open: set[int] = set()

    def ask(self, partition: int, command: bytes, tell: Tell) -> None:
        if self.is_down:
            raise Lost("gone")
        reader = hiredis.Reader()
        reader.feed(command)
        self.asked.append((partition, reader.gets()))
        self.tells.append(partial(self._answer, len(self.tells), tell))
        self._open.add(len(self.tells) - 1)

    def _answer(self, number: int, tell: Tell, answer: object) -> None:
        self._open.discard(number)
        tell(answer)

    def end(self) -> None:
        """Its connections end: what is under way is lost."""
        for number in tuple(self._open):
            self.tells[number](Lost("ended"))

    def instructions(self, number: int = -1) -> list[bytes]:
        """The instructions of a script, with its options."""
        command = self.asked[number][1]
        return command[3 + int(command[2]) + 2 :]


class Bench:
    """Lanes that run, their engine, and what submissions were told, by their names."""

    def __init__(self, partitions: int, of_each: int) -> None:
        self.engine = Engine()
        self.window = Window(1_000, 1_000_000)
        self.lanes = Lanes(partitions, of_each, b"PUBLISH", self.engine.ask, self.window)
        self.told: list[tuple[str, object]] = []

    def put(self, *names: str, channel: str = "c", weight: int = 1, partition: int = 0) -> None:
        for name in names:
            keys, instructions = (b"m", b"s"), (b"k", b"bus", name)
            tell = partial(self._note, name)
            self.lanes.put(partition, channel, Submission(keys, instructions, KEPT, weight, tell))

    def _note(self, name: str, outcome: object) -> None:
        self.told.append((name, outcome))

    def names(self, number: int = -1) -> list[bytes]:
        """The submissions of a script."""
        return self.engine.instructions(number)[4:][2::3]


@asynccontextmanager
async def running(partitions: int = 1, of_each: int = 1) -> AsyncIterator[Bench]:
    bench = Bench(partitions, of_each)
    async with open_service_nursery() as nursery:
        nursery.start_soon(bench.lanes.run)
        yield bench
    bench.engine.end()
    assert bench.window.count == bench.window.bytes == 0


def outcomes(told: Sequence[tuple[str, object]]) -> list[str]:
    return [f"{name}: {one}" for name, one in told]


async def test_what_gathers_goes_together() -> None:
    """While a script is under way the next one gathers, in the order of submission."""
    async with running() as bench:
        bench.put("1", "2")
        await wait_all_tasks_blocked()
        assert bench.names() == [b"1", b"2"]
        bench.put("3")
        bench.put("4")
        await wait_all_tasks_blocked()
        assert len(bench.engine.asked) == 1
        bench.engine.tells[0]([b"1 e", b"2 e"])
        assert bench.told == [("1", StreamPosition(1, "e")), ("2", StreamPosition(2, "e"))]
        await wait_all_tasks_blocked()
        assert bench.names() == [b"3", b"4"]
        bench.engine.tells[1]([b"", b"4 e"])
        assert bench.told[2:] == [("3", None), ("4", StreamPosition(4, "e"))]
        assert bench.lanes.scripts == 2


async def test_one_at_a_time_waits_for_no_others() -> None:
    """Behind a script of one submission the next one is sent at once; behind more, they gather."""
    async with running() as bench:
        bench.put("1")
        await wait_all_tasks_blocked()
        bench.engine.tells[0]([b"1 e"])
        bench.put("2", "3")
        assert bench.names() == [b"2"]
        bench.engine.tells[1]([b"2 e"])
        bench.put("4")
        assert len(bench.engine.asked) == 2
        await wait_all_tasks_blocked()
        assert bench.names() == [b"3", b"4"]
        bench.engine.tells[2]([b"3 e", b"4 e"])
        bench.put("5")
        assert len(bench.engine.asked) == 3
        await wait_all_tasks_blocked()
        bench.engine.tells[3]([b"5 e"])


async def test_options_are_sent_once_for_all_that_share_them() -> None:
    """A script says how much is kept where that changes, not with each publication."""
    async with running() as bench:
        bench.put("1", "2")
        await wait_all_tasks_blocked()
        options = [b"o", *(b"%d" % one for one in KEPT)]
        assert bench.engine.instructions() == [*options, *b"k bus 1 k bus 2".split()]
        bench.engine.tells[0]([b"1 e", b"2 e"])


async def test_an_unknown_script_lets_nothing_overtake() -> None:
    """Until the script was sent with its text and answered, nothing else of its lane goes."""
    async with running() as bench:
        bench.put("1")
        await wait_all_tasks_blocked()
        bench.put("2")
        bench.engine.tells[0](UNKNOWN)
        await wait_all_tasks_blocked()
        assert [command[1][0] for command in bench.engine.asked] == [b"EVALSHA", b"EVAL"]
        assert bench.engine.asked[1][1][1] == PUBLISH.text
        assert bench.names() == [b"1"]
        bench.engine.tells[1]([b"1 e"])
        await wait_all_tasks_blocked()
        assert bench.names() == [b"2"]
        bench.engine.tells[2]([b"2 e"])


async def test_lanes_do_not_wait_for_each_other() -> None:
    """Channels of other lanes, and of other partitions, have scripts of their own."""
    async with running(partitions=2, of_each=8) as bench:
        channels = [f"c{number}" for number in range(64)]
        for channel in channels:
            bench.put(channel, channel=channel)
            bench.put(channel, channel=channel, partition=1)
        await wait_all_tasks_blocked()
        partitions = [partition for partition, _ in bench.engine.asked]
        assert set(partitions) == {0, 1}
        assert 2 < len(partitions) <= 16
        for number, tell in enumerate(tuple(bench.engine.tells)):
            tell([b"1 e"] * len(bench.names(number)))
        assert len(bench.told) == 128


@pytest.mark.parametrize("answer", [Lost("cut"), Refused("OOM full"), b"?", [b"1 e"] * 3])
async def test_a_script_that_fails(answer: object) -> None:
    """All of its submissions are told so; the next script goes all the same."""
    async with running() as bench:
        bench.put("1", "2")
        await wait_all_tasks_blocked()
        bench.put("3")
        bench.engine.tells[0](answer)
        assert [type(one) for _, one in bench.told] == [BrokerError, BrokerError]
        if isinstance(answer, Lost):
            assert outcomes(bench.told)[0] == "1: cut; it may have been published"
        await wait_all_tasks_blocked()
        assert bench.names() == [b"3"]
        bench.engine.tells[1]([b"3 e"])
        assert bench.told[-1] == ("3", StreamPosition(3, "e"))


async def test_one_submission_that_fails() -> None:
    """An error in the answer is that of one submission; others of the script are not touched."""
    async with running() as bench:
        bench.put("1", "2")
        await wait_all_tasks_blocked()
        bench.engine.tells[0]([b"1 e", Refused("ERR no")])
        assert outcomes(bench.told) == [
            "1: StreamPosition(offset=1, epoch='e')",
            "2: the engine refuses: ERR no",
        ]


async def test_a_key_that_was_not_ours_is_counted() -> None:
    """The stream has begun anew, and the publication has its first number."""
    async with running() as bench:
        bench.put("1")
        await wait_all_tasks_blocked()
        bench.engine.tells[0]([b"1 e !"])
        assert bench.told == [("1", StreamPosition(1, "e"))]
        assert bench.lanes.foreign == 1


async def test_an_engine_that_is_not_there() -> None:
    """Everything that waits fails at once, and nobody is told that it may have been published."""
    async with running() as bench:
        bench.engine.is_down = True
        bench.put(*("x" for _ in range(3 * MANY)))
        await wait_all_tasks_blocked()
        assert outcomes(bench.told) == ["x: gone"] * 3 * MANY
        bench.engine.is_down = False
        bench.put("1")
        await wait_all_tasks_blocked()
        bench.engine.tells[0]([b"1 e"])


async def test_a_script_is_bounded() -> None:
    """A script has so many submissions and bytes at most; a heavy one goes alone."""
    async with running() as bench:
        bench.put(*("x" for _ in range(MANY + 1)))
        bench.put("heavy", weight=300_000)
        bench.put("last")
        for wanted in (MANY, 2, 1):
            await wait_all_tasks_blocked()
            assert len(bench.names()) == wanted
            bench.engine.tells[-1]([b"1 e"] * wanted)


@pytest.mark.parametrize("under_way", [0, 1, 2])
async def test_what_comes_behind_the_end(under_way: int) -> None:
    """Connections end a moment later than the lanes; whoever still submits is told all the same."""
    bench = Bench(1, 1)
    async with open_service_nursery() as nursery:
        nursery.start_soon(bench.lanes.run)
        await wait_all_tasks_blocked()
        bench.put(*("x" for _ in range(under_way)))
        await wait_all_tasks_blocked()
        bench.put("ready")
    bench.put("late")
    bench.engine.end()
    bench.engine.is_down = True
    bench.put("later")
    assert len(bench.told) == under_way + 3
    assert all(isinstance(one, BrokerError) for _, one in bench.told)
    assert bench.window.count == 0


async def test_the_end_fails_what_waits() -> None:
    """When the broker ends, what was not sent is told so, and what is under way by the engine."""
    async with running() as bench:
        bench.put("1")
        await wait_all_tasks_blocked()
        bench.put("2")
    assert sorted(name for name, _ in bench.told) == ["1", "2"]
    assert all(isinstance(one, BrokerError) for _, one in bench.told)


async def test_strangers_do_not_fill_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams that begin anew are counted, and those of a second are one line."""
    async with running() as bench:
        for number in range(100):
            bench.put(str(number))
            await wait_all_tasks_blocked()
            bench.engine.tells[number]([b"1 e !"])
        assert bench.lanes.foreign == 100
        assert len([one for one in caplog.records if "not ours" in one.getMessage()]) == 1
        bench.put("later")
        await trio.sleep(1)
        bench.engine.tells[100]([b"1 e !"])
        assert len([one for one in caplog.records if "not ours" in one.getMessage()]) == 2


async def test_what_is_for_all_lanes_goes_behind_all_of_them() -> None:
    """In each lane of the partition, and in no other: behind what the lane has, before the next."""
    async with running(partitions=2, of_each=2) as bench:
        channels = [f"c{number}" for number in range(16)]
        for channel in channels:
            bench.put(channel, channel=channel, partition=1)
        tell = partial(bench._note, "all")
        bench.lanes.put_in_all(1, Submission((b"r",), (b"f", 0), None, 1, tell))
        await wait_all_tasks_blocked()
        assert [partition for partition, _ in bench.engine.asked] == [1, 1]
        for number in range(2):
            assert bench.engine.instructions(number)[-2:] == [b"f", b"0"]
            many = len(bench.engine.instructions(number)[4:-2]) // 3
            bench.engine.tells[number]([b"1 e"] * many + [b""])
        assert bench.told.count(("all", None)) == 2


async def test_the_failures_of_rows() -> None:
    """A script says which term leads, or that the row before is not published."""
    async with running() as bench:
        bench.put("1", "2", "3")
        await wait_all_tasks_blocked()
        bench.engine.tells[0]([b"!17", b"!", b"1 e"])
        (_, deposed), (_, behind), (_, place) = bench.told
        assert isinstance(deposed, DeposedError)
        assert deposed.term == 17
        assert isinstance(behind, AfterError)
        assert place == StreamPosition(1, "e")
