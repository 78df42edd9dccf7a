"""Whatever fails, each row is published once, and those of a channel in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.testing import open_test_node
from tests.outgoing_world import Fate, FaultyBroker, Table, leading

OPTIONS = NodeOptions(channel=ChannelOptions(history_size=10_000, history_ttl=36_000))

fates = st.sampled_from(("taken", "taken", "failed", "unknown", "down", "full"))
commits = st.lists(st.sampled_from("abc"), min_size=1, max_size=6)
"""The channels of the rows of one transaction."""
steps = st.one_of(
    st.tuples(st.just("commit"), commits, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 0.005, 0.03, 0.3, 3.0))),
    st.tuples(st.just("lose")),
    st.tuples(st.just("lose at done")),
)


class World:
    """A table, a node with a broker that fails, and one lead after another."""

    def __init__(self, fated: Sequence[Fate]) -> None:
        self.table = Table()
        self._fates = iter(fated)
        self._again: dict[bytes, int] = defaultdict(int)
        self.broker = FaultyBroker(self._fate)

    def _fate(self, _publication: Publication) -> Fate:
        return next(self._fates, "taken")

    async def run(self, script: Sequence[tuple[object, ...]]) -> dict[str, list[str]]:
        """What was published in each channel, in its order, when all was over."""
        async with open_test_node(OPTIONS, broker=self.broker) as node:
            remaining = list(script)
            while remaining:
                async with leading(node, self.table) as session:
                    while remaining:
                        step = remaining.pop(0)
                        if step[0] == "commit":
                            rows = [self.table.new(channel) for channel in step[1]]  # type: ignore[attr-defined]
                            self.table.commit(*rows, ring=bool(step[2]))
                        elif step[0] == "wait":
                            await trio.sleep(step[1])  # type: ignore[arg-type]
                        elif step[0] == "lose":
                            session.lose()
                            break
                        else:
                            session.when_done = session.lose
                    if session.lost:
                        await trio.sleep(0.01)
            async with leading(node, self.table):
                await trio.sleep(60)
            assert self.table.there == {}
            assert await node.broker.known_rows("the database").wait() == []  # type: ignore[union-attr]
            return {
                channel: [bytes(one.data).decode() for one in (await node.history(channel))[0]]
                for channel in "abc"
            }


@settings(max_examples=60)
@given(st.lists(fates, max_size=60), st.lists(steps, min_size=1, max_size=25))
def test_each_row_is_published_once_and_in_order(
    fated: list[Fate], script: list[tuple[object, ...]]
) -> None:
    """Commits, failures of the engine with and without effect, lost sessions, in any order."""
    world = World(fated)
    found = trio.run(world.run, script, clock=MockClock(autojump_threshold=0))
    for channel in "abc":
        assert found[channel] == [
            str(row.id) for row in world.table.committed if row.channel == channel
        ]
