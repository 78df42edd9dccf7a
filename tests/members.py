"""Nodes of one process that are the workers of one server, with what their supervisor answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from repeater.brokers.control import Member
from repeater.failures import Failures
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.summary import Summaries
from repeater.supervision.users import Users
from repeater.testing import ControlGroup, open_test_node
from repeater.testing.controls import GroupControl


class Workers(msgspec.Struct):
    """The workers of one server."""

    group: ControlGroup
    nodes: Sequence[Node]
    controls: Sequence[GroupControl]
    users: Users
    failures: Failures

    def fall_silent(self, number: int) -> None:
        """Have a worker answer nobody from now on, as a stopped process."""
        self.group.silent.add(self.nodes[number].id)


@asynccontextmanager
async def open_workers(
    count: int = 2, options: NodeOptions | None = None
) -> AsyncIterator[Workers]:
    """Run nodes that know each other, for as long as the block lasts."""
    failures = Failures()
    questions = ServerQuestions(failures)
    group = ControlGroup(questions)
    questions.control = group
    users = Users(questions)
    async with AsyncExitStack() as stack:
        controls = [group.control() for _ in range(count)]
        nodes = [
            await stack.enter_async_context(open_test_node(options, control=control))
            for control in controls
        ]

        def channels() -> int:
            return len({name for node in nodes for name in node.hub.channels})

        me = Member(group.server, controls[0].me.name, group.server)
        Summaries(questions, me, users, channels)
        yield Workers(group, nodes, controls, users, failures)
    assert not users.connections
