"""Expiries follow the clock of the machine, also when the clock is set while the server runs."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repeater.access.grants import ConnectionGrant, Denial, SubscriptionGrant
from repeater.errors import EXPIRED, FORCE_DISCONNECT, SUBSCRIPTION_EXPIRED
from repeater.node import open_node
from repeater.options import NodeOptions
from repeater.testing import UnixClock, open_test_node
from tests.conversation import FakeVerifier, talking

HOUR = 3_600.0


def expiring(at: float) -> FakeVerifier:
    """Tokens for a connection, and for one with a subscription, that end at this time."""
    subscription = ConnectionGrant("ann", channels={"c": SubscriptionGrant(expire_at=int(at))})
    return FakeVerifier({"all": ConnectionGrant("ann", expire_at=int(at)), "c": subscription})


@pytest.mark.parametrize("token", ["all", "c"])
async def test_a_step_forwards_ends_what_expired(autojump_clock: MockClock, token: str) -> None:
    """An expiry that the clock was set past ends the connection within seconds."""
    clock = UnixClock()
    verifier = expiring(clock() + HOUR)
    async with (
        open_test_node(verifier=verifier, now=clock) as node,
        talking(node, connected=False) as talk,
        talking(node) as other,
    ):
        await talk.connect(token)
        await trio.sleep(30)
        assert not talk.client.outbox.closed
        clock.step(2 * HOUR)
        await trio.sleep(3)
        ended = EXPIRED if token == "all" else SUBSCRIPTION_EXPIRED
        assert (talk.client.end, other.client.end) == (ended, None)


@pytest.mark.parametrize("token", ["all", "c"])
async def test_a_step_backwards_ends_nothing(autojump_clock: MockClock, token: str) -> None:
    """After a step backwards an expiry comes when the clock says so, and not before."""
    clock = UnixClock()
    verifier = expiring(clock() + HOUR)
    async with (
        open_test_node(verifier=verifier, now=clock) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.connect(token)
        await trio.sleep(10)
        clock.step(-2 * HOUR)
        await trio.sleep(2.9 * HOUR)
        assert talk.client.end is None
        await trio.sleep(0.2 * HOUR)
        assert talk.client.end is not None


async def test_a_small_step_is_followed(autojump_clock: MockClock) -> None:
    """Many small steps, as of a clock that is slowed down, add up."""
    clock = UnixClock()
    async with (
        open_test_node(verifier=expiring(clock() + 100), now=clock) as node,
        talking(node, connected=False) as talk,
    ):
        await talk.connect("all")
        for _ in range(20):
            clock.step(10)
            await trio.sleep(1)
        assert talk.client.end == EXPIRED


async def test_times_are_of_the_clock_as_it_is(autojump_clock: MockClock) -> None:
    """What is left, what has expired and which denials hold: all by the clock after the step."""
    clock = UnixClock()
    begin = clock()
    verifier = expiring(begin + HOUR)
    async with open_node(NodeOptions(insecure=True), verifier=verifier, now=clock) as node:
        clock.step(-2 * HOUR)
        async with talking(node, connected=False) as talk:
            result = await talk.connect("all")
            assert result["ttl"] == pytest.approx(3 * HOUR, abs=2)
        clock.step(2.5 * HOUR)
        async with talking(node, connected=False) as talk:
            result = await talk.connect("all")
            assert result["ttl"] == pytest.approx(0.5 * HOUR, abs=2)
            await node.refresh("ann", expire_at=int(begin))
            assert talk.client.end == EXPIRED
        denial = Denial("ann", expire_at=int(begin + HOUR))
        await node.denials.change(denial)
        grant = ConnectionGrant("ann")
        assert node.denials.refusal(grant) == FORCE_DISCONNECT
        clock.step(HOUR)
        assert node.denials.refusal(grant) is None
        async with talking(node, connected=False) as talk:
            error = await talk.connect("all")
            assert error["code"] in (109, 110)
