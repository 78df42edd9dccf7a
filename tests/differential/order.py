"""Deliberate differences in what comes when: replies, pushes, joins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.differential.examples import ANYBODY, USER
from tests.differential.kind import Kind
from tests.differential.moments import (
    Message,
    Messages,
    about,
    both,
    calls,
    each,
    end,
    push,
    replies,
    said,
)
from tests.differential.steps import Moment


def _in_order(messages: Messages) -> Messages:
    """Replies, then pushes channel by channel, then the end."""
    pushes = [one for one in messages if push(one).get("channel")]
    ends = [one for one in messages if end([one]) or "closed" in one]
    rest = [one for one in messages if one not in pushes and one not in ends]
    return rest + sorted(pushes, key=lambda one: str(push(one)["channel"])) + ends


def _replies_first(moment: Moment) -> Moment:
    return both(moment, _in_order)


def _published_in_a_frame(moment: Moment) -> Moment:
    """Where a frame or batch also lets somebody come or go, its own publications are left out."""
    moved = ("subscribe", "unsubscribe", "connect", "disconnect")
    channels = about(moment.step, "publish", "broadcast")
    if not channels or not (about(moment.step, *moved) & {*channels, ""}):
        return moment

    def kept(messages: Messages) -> Messages:
        return [
            one
            for one in messages
            if "pub" not in push(one) or push(one)["channel"] not in channels
        ]

    return both(moment, kept)


def _held_joins(moment: Moment) -> Moment:
    """Joins and leaves of who comes and goes in one step, or together with others by one call."""
    step = moment.step
    together = {one["channel"] for name, one in calls(step) if name == "subscribe"}
    channels = about(step, "subscribe") & about(step, "unsubscribe") | together
    actor = f"<client {step['say']}>" if "say" in step else ""

    def cancelled(one: Message) -> bool:
        told = push(one)
        info = (told.get("join") or told.get("leave") or {}).get("info", {})
        return told.get("channel") in channels and info.get("client") == (
            actor or info.get("client", 0)
        )

    def kept(messages: Messages) -> Messages:
        return [one for one in messages if not cancelled(one)]

    return both(moment, kept) if channels else moment


def _silent_behind_the_end(moment: Moment) -> Moment:
    """Where a command ends the connection, those behind it in the frame are not carried out."""
    step = moment.step
    if len(step.get("commands", ())) < 2:
        return moment
    actor = step["say"]
    their, our = moment.theirs.get(actor, []), moment.ours.get(actor, [])
    answered = replies(our)
    if not end(our) or not end(their) or replies(their)[: len(answered)] != answered:
        return moment
    return moment._replace(theirs=moment.ours)


_ENDS: Final = ([3004], [3005], [3013], [3507])


def _said_why(moment: Moment) -> Moment:
    """A code and a reason in place of a cut, for a command behind a refused `connect`."""

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        cut = their[-1:] == [{"closed": [1006, ""]}] and list(end(our)[:1]) in _ENDS
        return (their, [*our[:-1], *their[-1:]]) if cut and said(moment.step) else (their, our)

    return each(moment, changed)


ORDER: Final[Sequence[Kind]] = (
    Kind(
        "replies-first",
        "The answer to `publish` comes after the publisher's own push.",
        "All replies of a frame come before the pushes that its commands caused. The order within a"
        " channel, and among replies, is the same.",
        "Fan-out takes all that waits as one batch, and does not interrupt a frame.",
        _replies_first,
        (
            ANYBODY,
            {"say": "a", "commands": [{"id": 2, "subscribe": {"channel": "x@"}}]},
            {"say": "a", "commands": [{"id": 3, "publish": {"channel": "x@", "data": 1}}]},
        ),
    ),
    Kind(
        "published-in-a-frame",
        "A publication goes to who is subscribed at that moment of a frame or batch.",
        "It goes to who is subscribed when the frame is done: a client that unsubscribes behind its"
        " `publish` does not get it, one that subscribes behind it does, unless it has a position.",
        "Fan-out comes when the frame is done.",
        _published_in_a_frame,
        (
            ANYBODY,
            {"say": "a", "commands": [{"id": 2, "subscribe": {"channel": "x@"}}]},
            {
                "say": "a",
                "commands": [
                    {"id": 3, "publish": {"channel": "x@", "data": 1}},
                    {"id": 4, "unsubscribe": {"channel": "x@"}},
                ],
            },
        ),
    ),
    Kind(
        "held-joins",
        "Each join and leave is told at once.",
        "A join and a leave of one client within 100 ms cancel each other (section 12). Connections"
        " that one call subscribes hear each other's joins.",
        "Reloads of pages and flickering networks would flood a channel.",
        _held_joins,
        (
            ANYBODY,
            {"say": "a", "commands": [{"id": 2, "subscribe": {"channel": "talk:x@"}}]},
            {"open": "b", "way": "websocket", "connect": {}},
            {
                "say": "b",
                "commands": [
                    {"id": 2, "subscribe": {"channel": "talk:x@"}},
                    {"id": 3, "unsubscribe": {"channel": "talk:x@"}},
                ],
            },
        ),
    ),
    Kind(
        "silent-behind-the-end",
        "Commands behind one that ends the connection, in the same frame, are still carried out and"
        " mostly answered.",
        "They are not.",
        "A client that broke the protocol, or whose token is refused, gets nothing more.",
        _silent_behind_the_end,
        (
            USER,
            {
                "say": "a",
                "commands": [
                    {"id": 2, "refresh": {"token": {"$token": {"sub": "u2@"}, "key": "HS256"}}},
                    {"id": 3, "history": {"channel": "x@"}},
                ],
            },
        ),
        parts_ways=True,
    ),
    Kind(
        "said-why",
        "A command in a later frame than a refused `connect` has the connection cut without a close"
        " frame.",
        "Close 3005 after error 109 or 110, 3013 after 111, 3507 after 103, else 3004.",
        "A log or a developer can read what was wrong. An SDK that sent more before it had the"
        " error comes back, as after the error itself.",
        _said_why,
        (
            {
                **USER,
                "connect": {
                    "token": {"$token": {"sub": "u1@", "exp": {"$in": -60}}, "key": "HS256"}
                },
            },
            {"say": "a", "commands": [{"id": 2, "history": {"channel": "x@"}}]},
        ),
    ),
)
