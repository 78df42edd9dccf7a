"""Limits on subscribers hold over all workers, whichever of them takes a connection."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.control import Member, Question
from repeater.clients.client import Client
from repeater.clients.limits import LimitError, Place
from repeater.clients.questions import encoded
from repeater.clients.shared_places import (
    ALL,
    PlaceAnswer,
    WantedPlace,
    key_of_address,
    key_of_user,
)
from repeater.config import load_settings
from repeater.errors import CONNECTION_LIMIT
from repeater.failures import Failures
from repeater.options import LimitOptions
from repeater.serving.server import Server
from repeater.supervision.places import Places
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.users import Users
from repeater.testing import ControlGroup, open_test_node
from tests import working
from tests.deadlines import LOOP_ANSWERS
from tests.limiting import PATHS, emptied, inside, knock, limited, talking
from tests.members import open_servers, open_workers, worker
from tests.serving import peer


def code_of(client: Client) -> int | None:
    """The code by which a client was ended; development mode adds to its reason."""
    return None if client.end is None else client.end.code


async def test_a_user_has_so_many_connections_on_all_workers(autojump_clock: MockClock) -> None:
    """One more is closed with 3504 on any; the anonymous are not counted, and room returns."""
    async with open_workers(2, limited(connections_per_user=2)) as workers:
        async with AsyncExitStack() as stack:
            for number, user in enumerate(("ann", "ann", "bob", "", "", "")):
                node = workers.nodes[number % 2]
                talk = await stack.enter_async_context(talking(node, user))
                assert talk.session._client.ready
            for node in workers.nodes:
                async with talking(node, "ann") as late:
                    assert code_of(late.session._client) == CONNECTION_LIMIT.code
                assert node.statistics().limited == {"connections_per_user": 1}
        async with talking(workers.nodes[0], "ann") as talk:
            assert talk.session._client.ready
            assert workers.users.connections == {"ann": 1}


async def test_a_limit_that_is_switched_on_counts_who_is_there(autojump_clock: MockClock) -> None:
    """A user's connections from before hold no place, and are counted nevertheless."""
    async with open_workers(2) as workers, talking(workers.nodes[0], "ann"):
        for node in workers.nodes:
            limits = LimitOptions(connections_per_user=1)
            node.options = msgspec.structs.replace(node.options, limits=limits)
        async with talking(workers.nodes[1], "ann") as late:
            assert code_of(late.session._client) == CONNECTION_LIMIT.code


async def sleep(*_: object) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def test_without_limits_nothing_is_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is off waits for no supervisor."""
    monkeypatch.setattr(ServerQuestions, "carry_out", sleep)
    async with open_workers(2) as workers, talking(workers.nodes[0], "ann") as talk:
        assert talk.session._client.ready


async def test_a_silent_supervisor_admits_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second: error 100, with which an SDK comes back later."""
    monkeypatch.setattr(ServerQuestions, "carry_out", sleep)
    options = limited(connections_per_user=2)
    async with open_workers(2, options) as workers, talking(workers.nodes[0], "ann") as talk:
        (reply,) = talk.transport.messages()
        assert reply["error"]["code"] == 100
        assert workers.nodes[0].statistics().broker_errors == {"control": 1}


async def test_a_silent_supervisor_refuses_plain_subscribers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """503, for which browsers and proxies come back."""
    monkeypatch.setattr(ServerQuestions, "carry_out", sleep)
    async with open_servers(1, limits={"connections": 2}) as (server,):
        assert b" 503 " in await knock(server, PATHS[0], reused=False)


@pytest.mark.parametrize("reused", [False, True], ids=["native", "asgi"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_full_server_answers_503(path: str, reused: bool) -> None:
    """Before the upgrade, when all workers together are full; a client that leaves makes room."""
    async with open_servers(2, limits={"connections": 2}) as (first, second):
        async with inside(first, path, reused=reused), inside(second, path, reused=reused):
            for server in (first, second):
                assert b" 503 " in await knock(server, path, reused=reused)
                assert server.node.statistics().limited == {"connections": 1}
        await emptied(first)
        await emptied(second)
        async with inside(first, path, reused=reused), inside(first, path, reused=reused):
            assert b" 503 " in await knock(second, path, reused=reused)


@pytest.mark.parametrize("reused", [False, True], ids=["native", "asgi"])
async def test_an_address_has_so_many_subscribers(reused: bool) -> None:
    """One more gets 429, on any worker; connections without a subscriber are each worker's."""
    async with open_servers(2, limits={"connections_per_address": 2}) as (first, second):
        async with (
            inside(first, PATHS[0], reused=reused),
            inside(second, PATHS[0], reused=reused),
        ):
            assert b" 429 " in await knock(first, PATHS[0], reused=reused)
            assert b" 429 " in await knock(second, PATHS[0], reused=reused)
            assert first.node.statistics().limited == {"connections_per_address": 1}
            async with peer(first) as silent:
                assert b" 200 " in await silent.call("GET", "/health")
        await emptied(first)
        await emptied(second)
        async with inside(first, PATHS[0], reused=reused):
            pass


async def test_limits_hold_over_real_links() -> None:
    """Whichever workers the kernel gives the connections to, and when one of them leaves."""
    settings = load_settings(dev=True, port=0, limits={"connections": 5})
    path = "/ws?channel=news"
    with trio.fail_after(LOOP_ANSWERS):
        async with working.open_workers(settings) as opened, AsyncExitStack() as stack:
            workers = cast("Server", opened)  # of which only the port is used
            for _ in range(4):
                await stack.enter_async_context(inside(workers, path, reused=False))
            async with inside(workers, path, reused=False):
                for _ in range(6):
                    assert b" 503 " in await knock(workers, path, reused=False)
            while True:  # the kernel tells the server that it has left
                if b" 101 " in await knock(workers, path, reused=False):
                    break


async def test_a_rate_is_one_for_all_workers(slow_clock: MockClock) -> None:
    """The burst comes in, wherever; who is refused for another reason uses up nothing of it."""
    limits = {"connection_rate": 1, "connection_burst": 3}
    async with open_servers(2, limits=limits) as (first, second), AsyncExitStack() as stack:
        for _ in range(5):
            assert b" 400 " in await knock(first, "/ws", reused=False)
        for server in (first, second, first):
            await stack.enter_async_context(inside(server, PATHS[0], reused=False))
        assert b" 503 " in await knock(second, PATHS[0], reused=False)
        assert second.node.statistics().limited == {"connection_rate": 1}


async def test_a_cancelled_place_is_given_back(autojump_clock: MockClock) -> None:
    """Also if the supervisor has taken it when the worker stops waiting."""
    limits = LimitOptions(connections=1, connections_per_user=1)
    async with open_workers(2) as workers:
        place = Place(workers.nodes[0].places)
        with trio.CancelScope() as scope:
            scope.cancel()
            await place.reserve(limits, user="ann", counted=True)
        place.leave()
        other = Place(workers.nodes[1].places)
        await other.reserve(limits, user="ann", counted=True)
        with pytest.raises(LimitError):
            await place.reserve(limits, user="ann", counted=True)
        place.leave()
        other.leave()
        other.leave()


async def test_shares_cost_no_question(autojump_clock: MockClock) -> None:
    """Only what is beyond a worker's share is asked for; then all workers ask for that user."""
    asked: list[str] = []
    take = ServerQuestions.carry_out

    async def noted(questions: ServerQuestions, asker: Member, question: Question) -> bytes:
        asked.append(question.method)
        return await take(questions, asker, question)

    options = limited(connections=8, connections_per_user=4)
    async with open_workers(2, options) as workers, AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ServerQuestions, "carry_out", noted)
            for number in (0, 1, 0, 1):
                await stack.enter_async_context(talking(workers.nodes[number], "ann"))
            assert asked == ["divide_places"] * 2
            async with talking(workers.nodes[0], "ann") as late:
                assert code_of(late.session._client) == CONNECTION_LIMIT.code
            assert asked[2:] == ["take_place"]
            async with talking(workers.nodes[1], "bob") as other:
                assert other.session._client.ready
            assert asked[2:] == ["take_place"]


async def test_a_user_may_have_all_its_connections_on_one_worker(
    autojump_clock: MockClock,
) -> None:
    """Beyond the share of one, the others' shares are used up."""
    options = limited(connections_per_user=4)
    async with open_workers(2, options) as workers, AsyncExitStack() as stack:
        for _ in range(4):
            talk = await stack.enter_async_context(talking(workers.nodes[0], "ann"))
            assert talk.session._client.ready
        for node in workers.nodes:
            async with talking(node, "ann") as late:
                assert code_of(late.session._client) == CONNECTION_LIMIT.code


async def test_a_worker_that_begins_later_knows_what_to_ask_for(
    autojump_clock: MockClock,
) -> None:
    """A user whose places are beyond a share has no share on a new worker either."""
    options = limited(connections_per_user=4)
    async with open_workers(2, options) as workers, AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(talking(workers.nodes[0], "ann"))
        new = workers.group.control()
        async with open_test_node(options, control=new) as node, talking(node, "ann") as late:
            assert code_of(late.session._client) == CONNECTION_LIMIT.code


async def test_places_that_are_asked_for_at_the_same_time(autojump_clock: MockClock) -> None:
    """Those under way count: no share is given twice."""
    limits = LimitOptions(connections=1, connections_per_user=1)
    async with open_workers(2) as workers:
        taken: list[Place] = []

        async def reserve(number: int) -> None:
            place = Place(workers.nodes[number % 2].places)
            try:
                await place.reserve(limits, user="ann", counted=True)
            except LimitError:
                place.leave()
            else:
                taken.append(place)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(reserve, number)
        assert len(taken) == 1
        for node in workers.nodes:
            assert not node.places.asking
        taken[0].leave()


async def take(questions: ServerQuestions, member: Member, wanted: WantedPlace) -> str:
    answer = await questions.carry_out(member, Question("take_place", encoded(wanted)))
    return msgspec.msgpack.decode(answer, type=PlaceAnswer).limit


async def test_a_killed_worker_gives_back_its_places() -> None:
    """All of them, and none of the others': those that it told of, and those it asked for."""
    questions = ServerQuestions(Failures())
    questions.begin(ControlGroup(questions), lambda: 0, lambda: 0)
    users = Users(questions)
    places = Places(questions, users, lambda: (1, 2))
    first, second = worker(1), worker(2)
    keys = [ALL, key_of_address("10.0.0.1"), key_of_user("ann")]
    wanted = WantedPlace(7, keys, True, "10.0.0.1", "ann", 4, 9, 9)
    questions.told(first, Question("place_taken", b"10.0.0.1"))
    for member in (first, second):
        assert await take(questions, member, wanted) == ""
    assert await take(questions, first, msgspec.structs.replace(wanted, serial=8)) == ""
    late = msgspec.structs.replace(wanted, serial=9)
    assert await take(questions, second, late) == "connections"
    questions.told(first, Question("user_arrived", b"ann"))
    assert (places.waiting, users.connections) == ({"ann": 2}, {"ann": 1})
    questions.left(first)
    assert (places.held, places.addresses, places.waiting) == (1, {"10.0.0.1": 1}, {"ann": 1})
    assert await take(questions, second, late) == ""
    for serial in (9, 9, 7):
        questions.told(second, Question("give_back_place", encoded(serial)))
    assert (places.held, places.addresses, places.waiting) == (0, {}, {})


async def test_keys_of_nobody_are_forgotten(autojump_clock: MockClock) -> None:
    """A thousand users who were beyond a share once do not stay in every worker's memory."""
    limits = LimitOptions(connections_per_user=1)
    async with open_workers(2) as workers:
        for number in range(1_010):
            place = Place(workers.nodes[0].places)
            await place.reserve(limits, user=f"user {number}")
            place.leave()
        for node in workers.nodes:
            assert node.places.shared is not None
            assert len(node.places.shared._keys) < 20
