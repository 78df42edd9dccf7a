"""A link that is cut, silent or slow: every call is answered, and the others go on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.receipts import Receipt, settled
from repeater.errors import BrokerError
from repeater.fanout.intake import Intake
from repeater.options import ChannelOptions
from repeater.publication import Announcement, ClientInfo, Publication
from repeater.workers import up
from repeater.workers.down import Hello, SupervisorBeat
from repeater.workers.frames import frame
from repeater.workers.link import Link
from repeater.workers.messages import VERSION, encode
from repeater.workers.worker import open_worker_link
from tests.brokers import LateAnswers
from tests.worker_links import stream_pair, supervising, worker

pytestmark = pytest.mark.timeout(30)

OPTIONS = ChannelOptions(history_size=10)


async def test_the_end_of_the_supervisor_settles_all(autojump_clock: MockClock) -> None:
    """Open calls fail at once, later ones are refused at once, and the worker learns of the end."""
    async with trio.open_nursery() as nursery:
        ours, theirs = stream_pair()
        scope = trio.CancelScope()

        async def supervise() -> None:
            with scope:
                async with supervising(LateAnswers()) as supervisor:
                    await supervisor.exchange.attach(ours, 1, lambda _reason: None)

        nursery.start_soon(supervise)
        async with open_worker_link(theirs) as link, trio.open_nursery() as inner:
            inner.start_soon(link.broker.run, Intake(10, 1 << 20, 1 << 20))
            await link.broker.wait_room()
            receipts = [link.broker.submit(Publication("c", b"1"), OPTIONS) for _ in range(3)]
            await wait_all_tasks_blocked()
            scope.cancel()
            assert await link.wait_ended() == "the other end is gone"
            for receipt in receipts:
                with pytest.raises(BrokerError, match="the supervisor is gone"):
                    await receipt.wait()
            for call in (
                lambda: link.broker.submit(Publication("c", b"1"), OPTIONS),
                lambda: link.broker.history("c", OPTIONS),
                lambda: link.broker.remove_history("c"),
                lambda: link.broker.hold("c"),
                lambda: link.broker.announce(Announcement("c", ClientInfo("a", "1"), joined=True)),
                lambda: link.presence.add("c", ClientInfo("a", "1")),
                lambda: link.presence.members("c"),
            ):
                with pytest.raises(BrokerError, match="the supervisor is gone"):
                    call()
            with pytest.raises(BrokerError, match="the supervisor is gone"):
                await link.broker.wait_room()
            link.broker.release("c")
            assert link.outage() == "the supervisor is gone"
            inner.cancel_scope.cancel()


async def test_a_failed_hold_is_asked_again(autojump_clock: MockClock) -> None:
    """A hold that an engine's failure has ended is not taken for one that is held."""

    class Failing(LateAnswers):
        held = 0

        def hold(self, channel: str) -> Receipt[None]:
            receipt: Receipt[None] = Receipt()
            self.held += 1
            receipt.settle(BrokerError("down")) if self.held == 1 else receipt.settle(None)
            return receipt

    broker = Failing()
    async with supervising(broker) as supervisor, worker(supervisor) as one:
        with pytest.raises(BrokerError, match="down"):
            await one.hold()
        assert supervisor.exchange.channels == 0
        await one.hold()
        await one.hold()
        assert broker.held == 2
        assert supervisor.exchange.channels == 1


async def test_a_silent_worker_is_given_up(autojump_clock: MockClock) -> None:
    """Ten seconds without a beat: told once, closed, and what it said is taken back."""
    async with supervising() as supervisor:
        stream = supervisor.attach()
        await stream.send_all(frame([encode(up.Hold(1, "c")), encode(up.WorkerBeat())]))
        await trio.sleep(9)
        assert supervisor.given_up == {}
        assert supervisor.exchange.channels == 1
        await trio.sleep(4)
        assert supervisor.given_up == {1: "silent for 10 s"}
        assert supervisor.exchange.channels == 0
        assert not supervisor.exchange.attachments
        while await stream.receive_some():
            pass
        await stream.aclose()


async def test_a_worker_that_takes_nothing_costs_the_others_two_seconds(
    autojump_clock: MockClock,
) -> None:
    """Publishers wait for it for 2 s, then no more; at 8 MiB it is given up, and all hear all."""
    async with supervising(timeout=100) as supervisor, worker(supervisor) as one:
        stuck = supervisor.attach()
        await stuck.send_all(frame([encode(up.Hold(1, "c"))]))
        await wait_all_tasks_blocked()
        await one.hold()
        heard: list[object] = []

        async def listen() -> None:
            while True:
                heard.extend(await one.intake.take_batch())

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for _ in range(100):
                publication = Publication("c", b"1" * 100_000)
                await one.broker.submit(publication, OPTIONS).wait()
                if supervisor.given_up:
                    break
            assert 1 < trio.current_time() - began < 4
            assert supervisor.given_up == {2: "8 MiB of events wait"}
            for _ in range(100):
                await one.broker.submit(Publication("c", b"1" * 100_000), OPTIONS).wait()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 4
        numbers = [event.offset for event in heard if isinstance(event, Publication)]
        assert numbers == [*range(1, len(numbers) + 1)]
        assert len(numbers) > 100 + 80
        await stuck.aclose()


async def test_publishers_wait_for_a_worker_that_goes_on(autojump_clock: MockClock) -> None:
    """A worker that takes events slowly is waited for, as a full intake is, and not given up."""
    async with (
        supervising() as supervisor,
        worker(supervisor) as one,
        worker(supervisor, room=1) as slow,
    ):
        await slow.hold()
        came = trio.Event()

        async def take() -> None:
            taken = 0
            while taken < 200:
                taken += len(await slow.intake.take_batch())
                await trio.sleep(0.05)
            came.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            for _ in range(200):
                publication = Publication("c", b"1" * 100_000)
                while True:
                    try:
                        one.broker.submit(publication, OPTIONS)
                        break
                    except trio.WouldBlock:
                        await one.broker.wait_room()
            with trio.fail_after(60):
                await came.wait()
            nursery.cancel_scope.cancel()
        assert supervisor.given_up == {}


async def test_a_silent_supervisor_is_an_outage(autojump_clock: MockClock) -> None:
    """Three seconds without a beat: calls are refused at once, until something is heard again."""
    ours, theirs = stream_pair()
    beat = frame([encode(SupervisorBeat("", BrokerStatistics(), None))])
    await ours.send_all(frame([encode(Hello(VERSION, "1.2.3", 4, "server"))]))
    async with open_worker_link(theirs, silence=3) as link:
        assert (link.number, link.control.me.worker, link.control.me.server) == (4, 4, "server")
        open_call = link.broker.remove_history("c")
        await trio.sleep(2.5)
        assert link.outage() == ""
        await trio.sleep(2)
        assert link.outage() == "the supervisor is silent"
        with pytest.raises(BrokerError, match="the supervisor is silent"):
            link.broker.remove_history("c")
        assert not open_call.settled
        await ours.send_all(beat)
        await trio.sleep(1.5)
        assert link.outage() == ""
        await ours.aclose()
        assert await link.wait_ended()
    assert open_call.settled


async def test_a_supervisor_of_another_version_is_refused(autojump_clock: MockClock) -> None:
    """A worker that was started by a newer installation says so in one line."""
    ours, theirs = stream_pair()
    await ours.send_all(frame([encode(Hello(VERSION + 1, "9.9", 1, "server"))]))
    with pytest.raises(BrokerError, match=r"runs Repeater 9\.9: restart the server"):
        async with open_worker_link(theirs):
            pytest.fail("it opened")
    await ours.aclose()


@pytest.mark.parametrize("gone", [False, True])
async def test_a_supervisor_that_says_nothing_is_refused(
    autojump_clock: MockClock, *, gone: bool
) -> None:
    """A worker does not wait for its first message for ever."""
    ours, theirs = stream_pair()
    if gone:
        await ours.aclose()
    with pytest.raises(BrokerError, match="does not answer"):
        async with open_worker_link(theirs):
            pytest.fail("it opened")
    await ours.aclose()


async def test_what_is_left_is_sent_at_the_end() -> None:
    """A worker that ends has its last messages delivered."""
    async with supervising() as supervisor:
        async with worker(supervisor) as one:
            for number in range(5_000):
                one.broker.release(f"{number}")
                one.link.presence.add("c", ClientInfo("a", f"{number}"))
                one.link.presence.remove("c", f"{number}")
            one.link.presence.add("kept", ClientInfo("a", "1"))
            seen = supervisor.exchange._shared.presence
        await wait_all_tasks_blocked()
        assert await settled(seen.count("c")) == (0, 0)


async def test_who_asks_for_more_than_it_reads_waits(autojump_clock: MockClock) -> None:
    """While 8 MiB of answers wait for a peer, nothing more is read of it."""
    ours, theirs = stream_pair()
    received: list[bytes] = []

    def receive(body: bytes) -> None:
        received.append(body)
        for _ in range(9):
            link.send(
                up.Submit(1, "c", b"1" * (1 << 20), 0, 0, 0, "", False, None, None, False, 0, "")
            )

    link = Link(ours, receive, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await theirs.send_all(frame([]))
        await wait_all_tasks_blocked()
        await theirs.send_all(frame([]))
        await wait_all_tasks_blocked()
        assert len(received) == 1
        while len(received) < 2:
            await theirs.receive_some(1 << 20)
        link.close("done")
    await theirs.aclose()


async def test_what_was_not_held_is_held_later(autojump_clock: MockClock) -> None:
    """A channel that a silent supervisor could not hold is asked for when it is heard again."""
    ours, theirs = stream_pair()
    beat = frame([encode(SupervisorBeat("", BrokerStatistics(), None))])
    await ours.send_all(frame([encode(Hello(VERSION, "1.2.3", 4, "server"))]))
    async with open_worker_link(theirs, silence=3) as link:
        await trio.sleep(4.5)
        for channel in ("kept-channel", "gone-channel"):
            with pytest.raises(BrokerError, match="the supervisor is silent"):
                link.broker.hold(channel)
        link.broker.release("gone-channel")
        await ours.send_all(beat)
        await trio.sleep(2.5)
        sent = await ours.receive_some()
        assert sent.count(b"kept-channel") == 1
        assert b"gone-channel" not in sent
        held = link.broker.hold("kept-channel")
        assert isinstance(held, Receipt)  # asked for once, and not answered yet
        await ours.aclose()
        await link.wait_ended()
