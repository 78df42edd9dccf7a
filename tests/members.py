"""Nodes of one process that are the workers of one server, with what their supervisor answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec

from repeater.failures import Failures
from repeater.node import Node
from repeater.options import NodeOptions
from repeater.supervision.metrics import Metrics
from repeater.supervision.questions import ServerQuestions
from repeater.supervision.summary import Summaries
from repeater.supervision.users import Users
from repeater.testing import ControlGroup, open_test_node
from repeater.testing.controls import GroupControl
from repeater.web.metrics import create_registry
from repeater.web.samples import Family, Sample
from repeater.web.scrape import register

OWN = (Family("process_open_fds", "Open files.", "gauge", [Sample("process_open_fds", {}, 7.0)]),)
"""What the supervisor's process shows of itself."""


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
    users = Users(questions)
    Summaries(questions, users)
    Metrics(questions, users, lambda: OWN, lambda: range(1, count + 1))
    async with AsyncExitStack() as stack:
        controls = [group.control() for _ in range(count)]
        nodes = [
            await stack.enter_async_context(open_test_node(options, control=control))
            for control in controls
        ]

        for node in nodes:
            register(node, partial(create_registry, node))

        def channels() -> int:
            return len({name for node in nodes for name in node.hub.channels})

        questions.begin(group, channels)
        yield Workers(group, nodes, controls, users, failures)
    assert not users.connections
