"""Makes a conversation that differs as small as it can be while it still differs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

from tests.differential.compare import Verdict
from tests.differential.steps import Conversation, Step

Judge = Callable[[Conversation], Awaitable[Verdict]]


async def smallest(
    conversation: Conversation, verdict: Verdict, judge: Judge
) -> tuple[Conversation, Verdict]:
    """Leave out steps and commands one at a time, as long as there is some difference."""
    difference = verdict.difference
    assert difference is not None, "nothing differs"
    conversation = conversation._replace(steps=conversation.steps[: difference.number + 1])
    tries = _smaller(conversation.steps)
    while (steps := next(tries, None)) is not None:
        found = await judge(conversation._replace(steps=steps))
        # A difference in an earlier step is another one.
        if found.difference is not None and found.difference.number == len(steps) - 1:
            conversation = conversation._replace(steps=steps)
            verdict, tries = found, _smaller(conversation.steps)
    return conversation, verdict


def _smaller(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """The same without a step, a command or a field of one, that others do not need."""
    for number in reversed(range(len(steps) - 1)):
        rest = [*steps[:number], *steps[number + 1 :]]
        if _sensible(rest):
            yield rest
    for number, step in enumerate(steps):
        for less in _without_one(step):
            yield [*steps[:number], less, *steps[number + 1 :]]


def _without_one(step: Step) -> Iterator[Step]:
    for key in ("commands", "channels"):
        many = step.get(key)
        if isinstance(many, list) and len(many) > 1:
            for number in range(len(many)):
                yield {**step, key: [*many[:number], *many[number + 1 :]]}
    if step.get("connect"):
        for name in step["connect"]:
            yield {**step, "connect": {k: v for k, v in step["connect"].items() if k != name}}


def _sensible(steps: Sequence[Step]) -> bool:
    """Whether only clients speak and leave that are there."""
    there = set[str]()
    for step in steps:
        if "open" in step:
            if step["open"] in there:
                return False
            there.add(step["open"])
        elif "say" in step and step["say"] not in there:
            return False
        elif "leave" in step:
            if step["leave"] not in there:
                return False
            there.remove(step["leave"])
    return bool(steps)
