"""Two nodes follow an engine that loses, doubles, forgets, refuses, fails over and comes back.

`just drill --fault valkey_worlds` runs 10,000 such worlds.
"""

from __future__ import annotations

import pytest
import trio

from repeater.brokers.valkey import envelope, heads
from tests.deadlines import PROCESS_STARTS
from tests.drill.worlds import WorldsDrill
from tests.valkey_clients import ClientsWorld
from tests.valkey_world import first_failure, live, run_world, sums

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PROCESS_STARTS)]

_TOGETHER = 25
# Worlds in which a broken follower has to be found: the first one that finds it ends the test.
_MANY = range(1_000)


@pytest.mark.parametrize("first", range(0, 200, _TOGETHER))
def test_no_world_breaks_the_promise(first: int) -> None:
    """Each publication comes once and in order, or a rupture; and all answers are true."""
    worlds = [run_world(seed) for seed in range(first, first + _TOGETHER)]
    happened = sums(worlds)
    assert min(happened.values()) > 0, happened


@pytest.mark.parametrize("first", [0, 119])
def test_clients_hear_each_publication_once_or_are_told(first: int) -> None:
    """Clients that come back to any node go on where they were, or hear that they cannot."""
    worlds = [live(ClientsWorld(seed)) for seed in range(first, first + 20)]
    assert sums(worlds)["forks"] > 0
    assert sum(client.recovered for world in worlds for client in world.clients) > 0


def test_a_world_is_the_same_each_time() -> None:
    """A seed is enough to see again what happened in a world."""
    assert sums([run_world(7)]) == sums([run_world(7)])


def test_offsets_alone_do_not_see_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without uids a node goes on in a stream that lost its end and numbered it again."""
    monkeypatch.setattr(envelope.Uids, "next", lambda _self: b"the same")
    assert first_failure(_MANY) is not None


def test_messages_alone_do_not_show_the_last_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without position checks a node does not see that the last message was lost."""

    async def check_nothing(_self: object, _held: object) -> None:
        await trio.sleep(heads.CHECK)

    monkeypatch.setattr(heads.Heads, "_check", check_nothing)
    assert first_failure(_MANY) is not None


def test_the_drill_says_how_to_see_a_world_again() -> None:
    """The drill runs worlds from its seed on, in processes of its own."""
    assert WorldsDrill(seed=3, worlds=2).run().startswith("2 worlds, ")
