"""What a supervisor counts for its workers: users once, and sums that never fall."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.control import Member, Question
from repeater.errors import BrokerError, ErrorCode, ReplyError
from repeater.failures import Failures
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.totals import Totals
from repeater.supervision.users import Users
from tests.members import OPTIONS, ask, open_workers, user_on, worker


async def test_a_user_of_two_workers_counts_once(autojump_clock: MockClock) -> None:
    """Until the last of its connections has ended, on whichever worker."""
    async with (
        open_workers(2, OPTIONS) as workers,
        user_on(workers.nodes[0]),
        user_on(workers.nodes[1], ""),
    ):
        async with user_on(workers.nodes[1]), user_on(workers.nodes[1], "bob"):
            assert workers.users.connections == {"ann": 2, "bob": 1}
        assert workers.users.connections == {"ann": 1}


def test_a_killed_worker_takes_its_users_with_it() -> None:
    """It tells nothing at its end: the supervisor takes back what it told."""
    questions = ServerQuestions(Failures())
    users = Users(questions)
    for number, user in ((1, b"ann"), (1, b"ann"), (2, b"ann"), (1, b"bob")):
        questions.told(worker(number), Question("user_arrived", user))
    questions.told(worker(1), Question("user_left", b"bob"))
    questions.left(worker(1))
    assert users.connections == {"ann": 1}
    questions.left(worker(3))
    questions.left(worker(2))
    assert not users.connections


def test_sums_never_fall() -> None:
    """What a worker had counted when it was last seen stays, under its number, for good."""
    totals: Totals[str, int] = Totals()
    totals.see(worker(1), {"a": 5, "b": 1})
    totals.see(worker(2), {"a": 7})
    totals.see(worker(1), {"a": 6, "b": 1})
    assert totals.total() == {"a": 13, "b": 1}
    totals.forget(worker(1))
    assert totals.total() == {"a": 13, "b": 1}
    totals.see(worker(1, start=2), {"a": 1})
    assert totals.by_worker() == {1: {"a": 7, "b": 1}, 2: {"a": 7}}
    totals.forget(worker(1, start=2))
    totals.forget(worker(1, start=3))  # which was never seen
    assert totals.total() == {"a": 14, "b": 1}


async def test_info_keeps_what_a_worker_has_done(autojump_clock: MockClock) -> None:
    """The counts of work of a worker that has ended stay in the sums; its clients do not."""
    async with open_workers(2, OPTIONS) as workers:
        async with user_on(workers.nodes[1]) as (client, _):
            client.subscribe("news")
            await ask(workers.nodes[1], "publish", channel="news", data=1)
            await trio.sleep(0.1)
            (before,) = (await ask(workers.nodes[0], "info"))["nodes"]
        member = workers.nodes[1].control.me
        del workers.group.running[member.id]
        assert workers.group.supervision is not None
        workers.group.supervision.left(member)
        (after,) = (await ask(workers.nodes[0], "info"))["nodes"]
        workers.group.running[member.id] = workers.controls[1]
    assert (before["num_clients"], after["num_clients"]) == (1, 0)
    assert before["metrics"]["items"] == after["metrics"]["items"]
    assert before["metrics"]["items"]["deliveries"] == 1


async def test_questions_to_a_supervisor() -> None:
    """A refusal is an answer; an unknown method, odd bytes and our own errors are failures."""
    failures = Failures()
    questions = ServerQuestions(failures)

    async def refuse(_asker: Member, _body: bytes) -> bytes:
        raise ReplyError(ErrorCode.LIMIT_EXCEEDED)

    async def crash(_asker: Member, _body: bytes) -> bytes:
        raise ZeroDivisionError

    questions.register("refuse", refuse)
    questions.register("crash", crash)
    with pytest.raises(ReplyError):
        await questions.carry_out(worker(1), Question("refuse"))
    for method in ("crash", "unknown"):
        with pytest.raises(BrokerError):
            await questions.carry_out(worker(1), Question(method))
    assert failures.counts == {"control": 1}
    questions.told(worker(1), Question("unknown"))
