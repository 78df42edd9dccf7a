"""What excuses are made of: changes of a moment that touch one thing on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.differential.steps import Moment, Seen, Step

Message = dict[str, Any]
Messages = list[Message]


def each(
    moment: Moment, change: Callable[[Messages, Messages], tuple[Messages, Messages]]
) -> Moment:
    """Change what both servers said to an actor, for each actor to whom they said another thing."""
    return each_of(moment, lambda _, their, our: change(their, our))


def each_of(
    moment: Moment, change: Callable[[str, Messages, Messages], tuple[Messages, Messages]]
) -> Moment:
    """The same, where the actor's name matters."""
    theirs, ours = dict(moment.theirs), dict(moment.ours)
    for actor in {*theirs, *ours}:
        their, our = theirs.get(actor, []), ours.get(actor, [])
        if their != our:
            theirs[actor], ours[actor] = change(actor, their, our)
    return moment._replace(theirs=_spoken(theirs), ours=_spoken(ours))


def _spoken(seen: Seen) -> Seen:
    return {actor: said for actor, said in sorted(seen.items()) if said}


def both(moment: Moment, change: Callable[[Messages], Messages]) -> Moment:
    """Make the same change on both sides."""
    return each(moment, lambda their, our: (change(their), change(our)))


def pairs(moment: Moment, change: Callable[[Message, Message], tuple[Message, Message]]) -> Moment:
    """Change two messages that stand at the same place and differ."""

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        if len(their) != len(our):
            return their, our
        made = [change(*two) if two[0] != two[1] else two for two in zip(their, our, strict=True)]
        return [one for one, _ in made], [one for _, one in made]

    return each(moment, changed)


def objects(value: Any, change: Callable[[Message], Message]) -> Any:
    """The value with each object in it changed, the inner ones first."""
    if isinstance(value, dict):
        return change({key: objects(one, change) for key, one in value.items()})
    if isinstance(value, list):
        return [objects(one, change) for one in value]
    return value


def all_objects(moment: Moment, change: Callable[[Message], Message]) -> Moment:
    """Change each object in all that was said on both sides."""
    return both(moment, lambda messages: objects(messages, change))


def without(one: Message, *names: str) -> Message:
    """The object without these fields."""
    return {key: value for key, value in one.items() if key not in names}


def push(message: Message) -> Message:
    """The push in a message, also of a unidirectional way; empty for others."""
    found: Message = message.get("push", message if "channel" in message else {})
    return found


def end(messages: Messages) -> Sequence[Any]:
    """The code and reason that a connection was ended with; empty if it was not."""
    for message in messages:
        told = message.get("push", message).get("disconnect")
        if told is not None:
            return [told["code"], told["reason"]]
        if message.get("closed"):
            found: Sequence[Any] = message["closed"]
            return found
    return ()


def replies(messages: Messages) -> Messages:
    """The replies among the messages."""
    return [one for one in messages if one.get("id")]


def calls(step: Step) -> Sequence[tuple[str, Message]]:
    """The calls of a back end in a step: one, or those of a batch."""
    if step.get("call") == "batch" and isinstance(step["body"], dict):
        return [next(iter(one.items())) for one in step["body"]["commands"] if one]
    whole = isinstance(step.get("body"), dict) and "call" in step
    return [(step["call"], step["body"])] if whole else []


def said(step: Step, *methods: str) -> Sequence[tuple[str, Message]]:
    """The commands of a client in a step, or those of some methods."""
    found = list[tuple[str, Message]]()
    for command in step.get("commands", ()):
        if isinstance(command, dict):
            found += [(key, one) for key, one in command.items() if isinstance(one, dict)]
    return [(name, one) for name, one in found if not methods or name in methods]


def about(step: Step, *methods: str) -> frozenset[str]:
    """The channels that commands or calls of these methods name in a step."""
    named = [one for name, one in (*calls(step), *said(step)) if name in methods]
    channels = [one.get("channel", "") for one in named]
    for one in named:
        channels += one.get("channels", ())
    return frozenset(channels)
