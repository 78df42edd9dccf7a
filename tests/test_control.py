"""The control plane: every implementation keeps its contract, and a broken one is named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from trio.testing import MockClock

from repeater.brokers.control import Member, MemberAnswer, Question, Supervision
from repeater.brokers.loop_control import LoopControl
from repeater.testing import ControlGroup, check_control
from repeater.testing.control_bench import Controls
from repeater.testing.controls import GroupControl


@asynccontextmanager
async def open_loop(count: int, _supervision: Supervision) -> AsyncIterator[Controls]:
    assert count == 1
    yield [LoopControl()], None


async def test_a_node_without_others_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The default of a node: questions to itself."""
    await check_control(open_loop, most=1)


async def test_a_group_keeps_the_contract(autojump_clock: MockClock) -> None:
    """The controls with which several nodes are tested in one process."""

    @asynccontextmanager
    async def opened(count: int, supervision: Supervision) -> AsyncIterator[Controls]:
        group = ControlGroup(supervision)
        yield [group.control() for _ in range(count)], group

    await check_control(opened, most=3)


class Twice(GroupControl):
    """Asks again what was answered already."""

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        await super().ask_others(question)
        return await super().ask_others(question)


class Hasty(GroupControl):
    """Takes nobody's word but the first one's."""

    async def ask_others(self, question: Question) -> Sequence[MemberAnswer]:
        return (await super().ask_others(question))[:1]


class Unending(GroupControl):
    """Knows for ever who was there once."""

    def members(self) -> Sequence[Member]:
        self._known = {one.id: one for one in (*getattr(self, "_all", ()), *super().members())}
        self._all = tuple(self._known.values())
        return self._all


BROKEN: dict[type[GroupControl], str] = {
    Twice: r"reaches each of them once.*questions: expected",
    Hasty: r"reaches each of them once.*answers: expected",
    Unending: r"A member that has ended is forgotten.*Nothing came of it within 60 seconds",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_control_is_named(
    kind: type[GroupControl], autojump_clock: MockClock
) -> None:
    """The error says the rule, and what was expected and found."""

    @asynccontextmanager
    async def opened(count: int, supervision: Supervision) -> AsyncIterator[Controls]:
        group = ControlGroup(supervision)
        yield [kind(group, group.control().me) for _ in range(count)], group

    with pytest.raises(AssertionError, match=BROKEN[kind]):
        await check_control(opened, most=3)
