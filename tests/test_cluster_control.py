"""The control plane of a cluster, on real servers and on one in memory with a mock clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import msgspec
import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.control import Control, Member, Question, Supervision
from repeater.cluster.answers import Answers
from repeater.cluster.denial_log import Change
from repeater.cluster.messages import Ask, Reply, decoded, encode
from repeater.cluster.roster import MemberRow
from repeater.errors import BrokerError
from repeater.testing import check_control
from repeater.testing.control_bench import Controls
from repeater.workers.values import AnswerRow
from tests.clusters import open_clusters
from tests.foreign_rows import deepened
from tests.memory_clusters import MemoryCluster, open_memory_cluster
from tests.memory_network import Fates
from tests.valkeys import Program, each_program, valkey


@each_program
async def test_a_cluster_keeps_the_contract_of_a_control(program: Program) -> None:
    """Nodes that are members by a real server ask each other as members of one process do."""
    numbers = count()
    with valkey(program) as server:

        @asynccontextmanager
        async def opened(many: int, _supervision: Supervision) -> AsyncIterator[Controls]:
            prefix = f"rule{next(numbers)}"
            async with open_clusters(server.unix_url, many, prefix=prefix) as nodes:
                yield [node.control for node in nodes], None

        await check_control(opened, most=3, has_server=False)


# What only a bus that loses messages shows.


async def test_a_question_that_was_lost_is_asked_again(autojump_clock: MockClock) -> None:
    """It takes 0.3 s longer, and is carried out once."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        cluster.network.fates = Fates(lost=1.0)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mend_after, cluster, 0.2)
            found = await first.parts.control.ask_others(Question("echo", b"hi"))
        answers = [one.answer for one in found]
        assert answers == [b"hi from node2", b"hi from node3"]
        assert 0.3 < trio.current_time() - began < 0.6
        assert second.asked == third.asked == ["echo"]
        assert first.asked == []


async def test_an_answer_that_was_lost_is_given_again(autojump_clock: MockClock) -> None:
    """Whoever asks again is answered again; nothing is carried out twice."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def lose_the_answer() -> None:
                while not second.asked:  # noqa: ASYNC110
                    await trio.sleep(0.0001)
                cluster.network.fates = Fates(lost=1.0)
                await mend_after(cluster, 0.2)

            answer = await first.parts.control.ask(second.id, Question("echo", b"hi"))
        assert answer == b"hi from node2"
        assert second.asked == ["echo"]


async def mend_after(cluster: MemoryCluster, seconds: float) -> None:
    await trio.sleep(seconds)
    cluster.network.fates = Fates()


async def test_messages_that_come_twice_or_late_change_nothing(autojump_clock: MockClock) -> None:
    """A hundred questions have a hundred answers, each carried out once."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        cluster.network.fates = Fates(doubled=0.5, late=0.5)
        for number in range(50):
            question = Question(f"{number}", b"%d" % number)
            found = await first.parts.control.ask_others(question)
            wanted = [b"%d from node2" % number, b"%d from node3" % number]
            assert [one.answer for one in found] == wanted
        assert second.asked == third.asked == [f"{number}" for number in range(50)]


async def test_without_the_engine_a_question_fails_at_once(autojump_clock: MockClock) -> None:
    """Nobody waits for an answer that cannot come; the error says why."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        cluster.network.go_down()
        await trio.sleep(1)
        began = trio.current_time()
        (found,) = await first.parts.control.ask_others(Question("echo"))
        assert isinstance(found.answer, BrokerError)
        with pytest.raises(BrokerError, match="the engine is not there"):
            await first.parts.control.ask(second.id, Question("echo"))
        assert trio.current_time() == began
        assert await first.parts.control.ask(first.id, Question("echo", b"1")) == b"1 from node1"


async def test_a_member_that_dies_is_named_until_it_is_lost(autojump_clock: MockClock) -> None:
    """A call on all nodes fails as long as one may have missed it."""
    async with open_memory_cluster() as cluster:
        first, second, _third = [await cluster.start() for _ in range(3)]
        await second.kill()
        found = await first.parts.control.ask_others(Question("echo"))
        assert [one.member.name for one in found if isinstance(one.answer, BrokerError)] == [
            "node2"
        ]
        await trio.sleep(30)
        found = await first.parts.control.ask_others(Question("echo"))
        assert [one.answer for one in found] == [b" from node3"]


async def test_open_questions_are_bounded(autojump_clock: MockClock) -> None:
    """One more than 1,024 is refused; the old ones fail in time, and there is room again."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        errors: list[str] = []

        async def ask(control: Control) -> None:
            try:
                await control.ask(second.id, Question("wait"))
            except BrokerError as error:
                errors.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(1_025):
                nursery.start_soon(ask, first.parts.control)
        assert Counter(errors) == {"no answer in time": 1_024, "too many questions are open": 1}
        with pytest.raises(BrokerError, match="too many questions are being carried out"):
            await first.parts.control.ask(second.id, Question("echo"))


ASKED = encode(Ask(1, Member("a", "a", "a"), "echo"))


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"x", b"\x93\x01", encode([3, 1, 2]), encode([2, 1, 2])),
        deepened(ASKED),
    ],
    ids=["nothing", "text", "part", "tag", "short", "deep"],
)
async def test_foreign_messages_are_dropped(payload: bytes, autojump_clock: MockClock) -> None:
    """Whoever can write into the engine can write anything."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        for channel in ("control", f"control:{second.id}"):
            cluster.network.publish(f"repeater:{channel}".encode(), payload)
        await trio.sleep(1)
        assert await first.parts.control.ask(second.id, Question("echo")) == b" from node2"
        assert second.parts.control.foreign.count == 2


async def test_a_flood_of_foreign_messages_is_logged_once_a_second(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All are counted."""
    async with open_memory_cluster() as cluster:
        first = await cluster.start()
        for _ in range(500):
            cluster.network.publish(b"repeater:control", b"x")
            cluster.network.publish(b"repeater:news", b"x")
        await trio.sleep(0.5)
        assert caplog.text.count("no member has sent") == 2
        assert first.parts.control.foreign.count == first.parts.members.foreign.count == 500


async def test_a_node_that_may_not_hear_does_not_start() -> None:
    """Nobody could ask it anything; it says why, and starts when it may."""
    with valkey() as server:
        user = ("ACL", "SETUSER", "default", "resetchannels")
        server.call(*user, "&repeater:alive*")

        async def carry_out(_asker: Member, _question: Question) -> bytes:
            return b""

        async with (
            open_clusters(server.unix_url, 1) as (part,),
            trio.open_nursery() as nursery,
        ):
            started = trio.Event()

            @nursery.start_soon
            async def start() -> None:
                await nursery.start(part.control.run, carry_out)
                started.set()

            with trio.fail_after(10):
                while "NOPERM" not in part.plane.outage():  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert not started.is_set()
            server.call(*user, "&*")
            with trio.fail_after(10):
                await started.wait()
            nursery.cancel_scope.cancel()


async def test_a_method_of_the_cluster_itself_checks_what_it_gets(
    autojump_clock: MockClock,
) -> None:
    """A greeting or a denial that cannot be read is an error of that question only."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        for method in (":hello", ":deny"):
            for body in (
                *(b"", b"\xc1", encode([1]), encode([1, "", "", b"user", b"a b"])),
                *(
                    deepened(encode([1, "", "", b"user a", b"0 0"])),
                    deepened(encode([1, ["a", "x"]])),
                ),
            ):
                with pytest.raises(BrokerError, match="cannot be read"):
                    await first.parts.control.ask(second.id, Question(method, body))


def test_messages_of_a_later_version_are_read() -> None:
    """Arrays only grow at the end, and maps by names: two versions run side by side."""
    me = Member("a", "host", "a", 1)
    ask, reply = Ask(7, me, "echo", b"hi"), Reply(7, "b", AnswerRow(b"yes"))
    for message in (ask, reply):
        later = msgspec.msgpack.decode(encode(message))
        assert decoded(encode([*later, "more"])) == message
    longer = {**msgspec.structs.asdict(me), "more": 1}
    assert decoded(encode([1, 7, longer, "echo", b"hi"])) == ask
    row = MemberRow("a", "host", 1, "2.0", "digest")
    assert msgspec.msgpack.decode(encode([*msgspec.structs.astuple(row), 1]), type=MemberRow) == row
    change = Change(1, "mark", "", b"user ann", b"0 0")
    assert (
        msgspec.msgpack.decode(encode([*msgspec.structs.astuple(change), 1]), type=Change) == change
    )


# The answers that are kept.


def test_a_question_is_known_for_ten_seconds() -> None:
    """Then it counts as a new one."""
    answers = Answers()
    answers.begin(("a", 1), now=0)
    assert answers.answer(("a", 1)) is None
    answers.end(("a", 1), b"yes")
    answers.begin(("b", 1), now=9)
    assert answers.answer(("a", 1)) == b"yes"
    answers.begin(("b", 2), now=10)
    assert ("a", 1) not in answers
    assert ("b", 1) in answers


def test_an_answer_that_took_long_is_kept_no_more() -> None:
    """Nobody asks for it again."""
    answers = Answers()
    answers.begin(("a", 1), now=0)
    answers.begin(("a", 2), now=11)
    answers.end(("a", 1), b"late")
    assert ("a", 1) not in answers
    assert not answers.is_full


def test_kept_answers_are_bounded_in_bytes() -> None:
    """The oldest answers go; their questions are still known, so nothing happens twice."""
    answers = Answers()
    for number in range(5):
        answers.begin(("a", number), now=0)
        answers.end(("a", number), bytes(4_000_000))
    assert [len(answers.answer(("a", number)) or b"") for number in range(5)] == [
        *(0, 4_000_000, 4_000_000, 4_000_000, 4_000_000)
    ]
