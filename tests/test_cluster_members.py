"""Members of a cluster: who is there, who has left, who is lost, and who sees to it.

All on the mock clock, with the real scripts, by an engine in this process.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from repeater.brokers.control import Member
from repeater.cluster.messages import encode
from repeater.cluster.roster import MemberRow, Roster
from tests.foreign_rows import deepened
from tests.memory_clusters import open_memory_cluster

ME = Member("me", "here", "me")
A, B = MemberRow("a", "host a"), MemberRow("b", "host b")


def ids(roster: Roster) -> list[str]:
    return [one.id for one in roster.members()]


# Lists and news.


def test_a_list_says_who_is_there() -> None:
    """What is new in it has joined; what is missing has left; this node is always first."""
    roster = Roster(ME)
    change = roster.listed(1, [A, MemberRow("me", "here"), B], now=0)
    assert (change.joined, change.left, ids(roster)) == ([A, B], [], ["me", "a", "b"])
    change = roster.listed(2, [B], now=0)
    assert (change.joined, [one.id for one in change.left], ids(roster)) == ([], ["a"], ["me", "b"])


def test_members_keep_their_places_in_the_list() -> None:
    """The engine lists them in the order of their beats; answers come in one order."""
    roster = Roster(ME)
    roster.listed(1, [A, B], now=0)
    roster.listed(2, [MemberRow("c", "host c"), B, A], now=0)
    assert ids(roster) == ["me", "a", "b", "c"]


def test_news_win_over_a_list_that_is_older() -> None:
    """A list that was made before somebody joined or left does not undo the news."""
    roster = Roster(ME)
    roster.listed(1, [A], now=0)
    assert roster.joined(B, 3, now=0).joined == [B]
    assert [one.id for one in roster.left("a", 4, now=0).left] == ["a"]
    roster.listed(2, [A], now=1)
    assert ids(roster) == ["me", "b"]
    roster.listed(4, [], now=1)
    assert ids(roster) == ["me"]


def test_news_do_not_win_for_ever() -> None:
    """An engine that has lost its data begins with lower versions; then its lists are right."""
    roster = Roster(ME)
    roster.joined(B, 1_000, now=0)
    roster.listed(1, [A], now=9)
    assert ids(roster) == ["me", "b", "a"]
    roster.listed(2, [A], now=11)
    assert ids(roster) == ["me", "a"]


def test_news_may_come_in_the_wrong_order() -> None:
    """Who has joined after it was taken for lost stays; old news of either kind change nothing."""
    roster = Roster(ME)
    roster.joined(A, 5, now=0)
    assert roster.left("a", 4, now=0).left == []
    roster.left("a", 6, now=0)
    assert roster.joined(A, 5, now=0).joined == []
    assert ids(roster) == ["me"]
    assert roster.joined(A, 7, now=0).joined == [A]


def test_a_node_has_no_news_of_itself() -> None:
    """It knows that it is there."""
    roster = Roster(ME)
    assert roster.joined(MemberRow("me", "here"), 1, now=0).joined == []
    assert roster.left("me", 2, now=0).left == []
    assert ids(roster) == ["me"]


# Nodes.


async def test_a_node_that_has_started_is_known_to_all(autojump_clock: MockClock) -> None:
    """No client comes to it before, so no question to all misses one."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(3)]
        assert [node.knows for node in nodes] == [{"node1", "node2", "node3"}] * 3


async def test_a_node_that_ends_in_order_is_gone_at_once(autojump_clock: MockClock) -> None:
    """It says goodbye; nothing is left to be done for it."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        await second.leave()
        await trio.sleep(0.5)
        assert first.knows == third.knows == {"node1", "node3"}
        await trio.sleep(60)
        assert cluster.settled == []


async def test_a_node_that_died_is_lost_after_ten_seconds(autojump_clock: MockClock) -> None:
    """All forget it, and one of them does what is to be done, once."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        await second.kill()
        await trio.sleep(6)
        assert first.knows == third.knows == {"node1", "node2", "node3"}
        await trio.sleep(8)
        assert first.knows == third.knows == {"node1", "node3"}
        await trio.sleep(120)
        ((lost, by),) = cluster.settled
        assert lost == "node2"
        assert by in {"node1", "node3"}


async def test_an_outage_of_the_engine_loses_nobody(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Whoever comes back first does not take those for lost that are on their way."""
    async with open_memory_cluster() as cluster:
        # A node whose last beat got no answer does not know what became of it.
        monkeypatch.setattr(cluster.network, "lag", lambda: 0.0)
        nodes = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        for seconds in (8, 11, 60):
            cluster.network.go_down()
            await trio.sleep(seconds)
            assert [len(node.knows) for node in nodes] == [3, 3, 3]
            cluster.network.come_back()
            await trio.sleep(30)
        assert cluster.settled == []
        assert [node.returned for node in nodes] == [0, 0, 0]


async def test_a_node_that_comes_back_later_than_others_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    """After an outage nobody is judged before all have had the time of a member to come back."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        cluster.network.go_down()
        nodes[1].cut()
        await trio.sleep(30)
        cluster.network.come_back()
        await trio.sleep(9)
        nodes[1].mend()
        await trio.sleep(30)
        assert cluster.settled == []


async def test_a_replica_without_the_last_beats_loses_nobody(autojump_clock: MockClock) -> None:
    """It takes over, and what it has of the nodes is old; this node's own beat is missing, too."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(3)]
        await trio.sleep(60)
        cluster.network.fail_over(lost=20)
        await trio.sleep(30)
        assert cluster.settled == []
        assert [len(node.knows) for node in nodes] == [3, 3, 3]


async def test_a_clock_that_is_set_forward_loses_nobody(autojump_clock: MockClock) -> None:
    """The first one that beats then sees that its own last beat is long ago, too."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        cluster.ahead = 60
        await trio.sleep(30)
        assert cluster.settled == []
        assert [len(node.knows) for node in nodes] == [3, 3, 3]


async def test_a_clock_that_is_set_back_hides_no_loss(autojump_clock: MockClock) -> None:
    """Times of before, which are far ahead then, count as times of now."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        await trio.sleep(20)
        cluster.ahead = -3_600
        await second.kill()
        await trio.sleep(30)
        assert cluster.settled == [("node2", "node1")]
        assert first.knows == {"node1"}


async def test_a_server_that_hangs_loses_nobody(autojump_clock: MockClock) -> None:
    """What is not answered is no beat."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(2)]
        await trio.sleep(20)
        cluster.network.pause()
        await trio.sleep(40)
        cluster.network.resume()
        await trio.sleep(30)
        assert cluster.settled == []
        assert [len(node.knows) for node in nodes] == [2, 2]


async def test_a_node_that_was_cut_off_comes_back(autojump_clock: MockClock) -> None:
    """The others have seen to it meanwhile; then it is told, and they know it again."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        second.cut()
        await trio.sleep(30)
        assert [lost for lost, _ in cluster.settled] == ["node2"]
        assert first.knows == {"node1", "node3"}
        assert second.knows == {"node1", "node2", "node3"}
        second.mend()
        await trio.sleep(10)
        assert first.knows == second.knows == third.knows == {"node1", "node2", "node3"}
        assert [first.returned, second.returned, third.returned] == [0, 1, 0]


async def test_a_node_whose_first_answer_is_lost_comes_back(autojump_clock: MockClock) -> None:
    """It was made a member again by a beat that it knows nothing of, and is told all the same."""
    async with open_memory_cluster() as cluster:
        _, second = [await cluster.start() for _ in range(2)]
        await trio.sleep(12)
        second.cut()
        await trio.sleep(25)
        assert [lost for lost, _ in cluster.settled] == ["node2"]
        run, beats = cluster.network.valkey.run, 0

        def run_and_cut(words: Sequence[bytes]) -> object:
            nonlocal beats
            answer = run(words)
            is_beat = words[3:4] == [b"repeater:nodes"] and words[8:9] == [second.id.encode()]
            if is_beat and not beats:
                beats += 1
                cluster.network.cut(second.name)
            return answer

        cluster.network.valkey.run = run_and_cut  # type: ignore[method-assign]
        second.mend()
        await trio.sleep(10)
        assert (beats, second.returned) == (1, 1)


async def test_a_node_comes_back_when_all_is_done_for_its_loss(autojump_clock: MockClock) -> None:
    """What it puts into the engine then is not taken out behind it."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        await trio.sleep(20)
        first.duty_fails = second.duty_fails = True
        second.cut()
        await trio.sleep(30)
        second.mend()
        await trio.sleep(60)
        assert (cluster.settled, second.returned) == ([], 0)
        first.duty_fails = second.duty_fails = False
        await trio.sleep(40)
        assert ([lost for lost, _ in cluster.settled], second.returned) == (["node2"], 1)


async def test_a_duty_is_done_by_another_node_if_the_first_one_dies(
    autojump_clock: MockClock,
) -> None:
    """The engine keeps it until it is done."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        first.duty_fails = third.duty_fails = True
        await second.kill()
        await trio.sleep(20)
        await first.kill()
        third.duty_fails = False
        await trio.sleep(60)
        assert sorted(cluster.settled) == [("node1", "node3"), ("node2", "node3")]


async def test_a_duty_that_lasts_is_done_by_one_node(autojump_clock: MockClock) -> None:
    """The others leave it alone meanwhile."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        first.duty_lasts = third.duty_lasts = 20
        await trio.sleep(20)
        await second.kill()
        await trio.sleep(60)
        assert len(cluster.settled) == 1


async def test_an_engine_that_lost_its_data_knows_all_again(autojump_clock: MockClock) -> None:
    """Whoever beats is a member again, and is told that its things are gone."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        cluster.network.valkey.data.clear()
        await trio.sleep(10)
        assert [node.knows for node in nodes] == [{"node1", "node2", "node3"}] * 3
        assert [node.returned for node in nodes] == [1, 1, 1]
        assert cluster.settled == []


async def test_a_full_engine_loses_nobody_and_forgets_nobody(autojump_clock: MockClock) -> None:
    """It refuses beats, and the goodbye as a whole: the node is lost when there is room again."""
    async with open_memory_cluster() as cluster:
        first, second, third = [await cluster.start() for _ in range(3)]
        await trio.sleep(20)
        cluster.network.valkey.refusing = "OOM command not allowed when used memory > 'maxmemory'."
        await trio.sleep(30)
        assert [len(node.knows) for node in (first, second, third)] == [3, 3, 3]
        await third.leave()
        cluster.network.valkey.refusing = ""
        await trio.sleep(30)
        assert first.knows == second.knows == {"node1", "node2"}
        assert [lost for lost, _ in cluster.settled] == ["node3"]


async def test_foreign_keys_are_replaced(autojump_clock: MockClock) -> None:
    """A key of another type is not a node's: members begin anew."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(2)]
        for name in ("nodes", "node-rows", "lost", "lost-rows"):
            cluster.network.valkey.put(f"repeater:{name}".encode(), b"text")
        cluster.network.valkey.put(b"repeater:nodes-version", {b"a": b"hash"})
        await trio.sleep(10)
        assert [node.knows for node in nodes] == [{"node1", "node2"}] * 2


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"12", b"99999999999999999999 \xff", b"1 " * 99, b"9" * 5_000 + b" x"],
    ids=["nothing", "text", "number", "member", "long", "digits"],
)
async def test_foreign_news_change_nothing(payload: bytes, autojump_clock: MockClock) -> None:
    """Whoever can write into the engine can write anything."""
    async with open_memory_cluster() as cluster:
        nodes = [await cluster.start() for _ in range(2)]
        cluster.network.publish(b"repeater:news", payload)
        await trio.sleep(1)
        assert [node.knows for node in nodes] == [{"node1", "node2"}] * 2


async def test_news_that_no_list_has_are_forgotten(autojump_clock: MockClock) -> None:
    """A failover may undo what was told, and leave the version of the list as it was before."""
    async with open_memory_cluster() as cluster:
        first, second = [await cluster.start() for _ in range(2)]
        await trio.sleep(10)
        cluster.network.publish(b"repeater:news", b"9" * 18 + b" " + second.id.encode())
        await trio.sleep(1)
        assert first.knows == {"node1"}
        await trio.sleep(15)
        assert first.knows == {"node1", "node2"}


async def test_a_row_that_no_node_has_written_is_left_out(autojump_clock: MockClock) -> None:
    """Whoever can write into the engine can write anything."""
    async with open_memory_cluster() as cluster:
        first = await cluster.start()
        run = cluster.network.valkey.run
        for member, row in ((b"foreign", b"\xc1"), (b"deep", deepened(encode(["deep", "x"])))):
            run([b"ZADD", b"repeater:nodes", b"9999999999999", member])
            run([b"HSET", b"repeater:node-rows", member, row])
        second = await cluster.start()
        await trio.sleep(10)
        assert first.knows == second.knows == {"node1", "node2"}


async def test_a_foreign_member_that_is_lost_is_forgotten(autojump_clock: MockClock) -> None:
    """Whatever its id and its row are, its loss is dealt with once, or not at all."""
    async with open_memory_cluster() as cluster:
        await cluster.start()
        run = cluster.network.valkey.run
        for member, row in ((b"\xff", b"\xc1"), (b"other", encode(["one", "x", 0, "", ""]))):
            run([b"ZADD", b"repeater:nodes", b"1", member])
            run([b"HSET", b"repeater:node-rows", member, row])
        await trio.sleep(100)
        assert cluster.settled == [("", "node1")]
        assert not run([b"ZRANGE", b"repeater:lost", b"0", b"-1"])


async def test_other_options_are_warned_of(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes of a cluster should have the same channels; each of two that differ says so once."""
    async with open_memory_cluster() as cluster:
        await cluster.start(options=lambda: "one")
        await cluster.start(options=lambda: "one")
        await trio.sleep(10)
        assert "other options" not in caplog.text
        await cluster.start(options=lambda: "two")
        await trio.sleep(30)
        lines = [one for one in caplog.text.splitlines() if "other options" in one]
        assert ["node=node" in one for one in lines] == [True] * 4


async def test_a_name_that_two_nodes_have_is_warned_of(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each says so once an hour; not of a node that is killed and started again."""
    async with open_memory_cluster() as cluster:
        await cluster.start()
        killed = await cluster.start(name="twin")
        await trio.sleep(55)
        await killed.kill()
        first = await cluster.start(name="twin")
        await trio.sleep(120)
        assert "same name" not in caplog.text
        second = await cluster.start(name="twin")
        await trio.sleep(50)
        assert "same name" not in caplog.text
        await trio.sleep(600)
        lines = [one for one in caplog.text.splitlines() if "same name" in one]
        assert [one for one in lines if "node_name" in one and "twin" in one] == lines
        assert [sum(node.id in one for one in lines) for node in (first, second)] == [1, 1]
        await trio.sleep(3_600)
        assert caplog.text.count("same name") == 4
