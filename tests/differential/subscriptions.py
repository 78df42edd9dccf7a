"""Deliberate differences in who subscribes to what, and for how long."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from tests.differential.examples import ANYBODY, USER, ask, by
from tests.differential.kind import Kind
from tests.differential.moments import (
    Message,
    Messages,
    about,
    all_objects,
    calls,
    each,
    end,
    pairs,
    push,
    said,
    without,
)
from tests.differential.refusals import command, refused, taken
from tests.differential.steps import Moment, Step


def _told_again(moment: Moment) -> Moment:
    """What the API's `subscribe` and `unsubscribe` tell those whom they change nothing for."""
    names = {name for name, _ in calls(moment.step)} & {"subscribe", "unsubscribe"}
    channels = about(moment.step, *names)

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        def needless(one: Message) -> bool:
            told = push(one)
            joins = {"join"} if "subscribe" in names else set()
            kinds = told.keys() & {*names, *joins}
            return bool(kinds) and told.get("channel") in channels and one not in our

        return [one for one in their if not needless(one)], our

    again = {one for step in moment.before if calls(step) for one in about(step, "subscribe")}
    if again:
        moment = all_objects(moment, lambda one: without(one, "chan_info"))
    return each(moment, changed) if names else moment


def _no_channel(moment: Moment) -> Moment:
    """`unsubscribe` of the API without a channel, with all that it does."""
    wide = any(name == "unsubscribe" and not one.get("channel") for name, one in calls(moment.step))
    return moment._replace(theirs=moment.ours) if wide else moment


def _expired_token(moment: Moment) -> Moment:
    """What follows in the frame of a `sub_refresh` whose token has expired."""
    channels = about(moment.step, "sub_refresh")
    over = {"code": 2501, "reason": "subscription expired"}

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        ended = {push(one).get("channel") for one in our if push(one).get("unsubscribe") == over}
        return (our, our) if ended & channels else (their, our)

    return each(moment, changed) if channels else moment


def _needless_refresh(moment: Moment) -> Moment:
    """`sub_refresh` of a subscription that Centrifugo does not let a client refresh."""
    channels = about(moment.step, "sub_refresh")

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        bad = list(end(their)) == [3501, "bad request"] and end(our)[:1] != [3501]
        return (our, our) if bad else (their, our)

    return each(moment, changed) if channels else moment


def _delta_with_filter(moment: Moment) -> Moment:
    """A subscription that asks for deltas and a tags filter at once."""
    asked = [one for _, one in said(moment.step, "subscribe") if one.get("delta") and one.get("tf")]

    def changed(their: Message, our: Message) -> tuple[Message, Message]:
        refused = our.get("error", {}).get("code") == 107 and "subscribe" in their
        return (our, our) if refused and asked else (their, our)

    return pairs(moment, changed)


def _new_info(moment: Moment) -> Moment:
    """What is said of clients who have refreshed their connection."""
    refreshed = {
        f"<client {step['say']}>" for step in (*moment.before, moment.step) if said(step, "refresh")
    }

    def changed(one: Message) -> Message:
        return without(one, "conn_info") if one.get("client") in refreshed else one

    return all_objects(moment, changed) if refreshed else moment


def _on_time(moment: Moment) -> Moment:
    """The end of a subscription that has expired while nobody said anything."""
    over = {"code": 2501, "reason": "subscription expired"}

    def kept(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        return their, [one for one in our if push(one).get("unsubscribe") != over]

    return each(moment, kept) if "wait" in moment.step else moment


def _token(step: Step, *names: str) -> list[Any]:
    claims = step.get("connect", {}).get("token", {}).get("$token", {})
    return [claims[name] for name in names if name in claims]


def _is_bad_filter(request: Message) -> bool:
    return bool(
        re.search(r'"cmp": "(lt|lte|gt|gte)", "val": "[^0-9]', json.dumps(request.get("tf")))
    )


SUBSCRIPTIONS: Final[Sequence[Kind]] = (
    Kind(
        "told-again",
        "The API's `unsubscribe` tells a client of a channel that it does not hear; `subscribe`"
        " subscribes it again to one that it hears, with a second join and without the `chan_info`"
        " of its token.",
        "Nothing is told.",
        "Nothing has changed.",
        _told_again,
        (USER, {"call": "unsubscribe", "body": {"user": "u1@", "channel": "x@"}}),
    ),
    Kind(
        "all-channels",
        "The API's `unsubscribe` without `channel` pushes an `unsubscribe` without a channel, and"
        " the client stays subscribed.",
        "It ends all subscriptions of the user's connections, and tells each.",
        "A fault of Centrifugo.",
        _no_channel,
        (USER, {"call": "unsubscribe", "body": {"user": "u1@"}}),
        parts_ways=True,
    ),
    Kind(
        "expired-subscription-token",
        "A `sub_refresh` with a token that has expired is answered `{}`, and the subscription never"
        " expires.",
        "Error 109 and the `unsubscribe` push 2501, after which SDKs subscribe again with a new"
        " token.",
        "A fault of Centrifugo, and a hole.",
        _expired_token,
        (
            USER,
            ask(2, subscribe={"channel": "x@"}),
            ask(
                3,
                sub_refresh={
                    "channel": "x@",
                    "token": {
                        "$token": {"sub": "u1@", "channel": "x@", "exp": {"$in": -60}},
                        "key": "jwks:RS256",
                    },
                },
            ),
        ),
        parts_ways=True,
    ),
    Kind(
        "expired-on-time",
        "Every 27 s it is looked which subscriptions have expired.",
        "A subscription ends `expired_close_delay` after its expiry.",
        "A permission that was given for a minute should not last two.",
        _on_time,
        (
            USER,
            ask(
                2,
                subscribe={
                    "channel": "x@",
                    "token": {
                        "$token": {"sub": "u1@", "channel": "x@", "exp": {"$in": 2}},
                        "key": "jwks:RS256",
                    },
                },
            ),
            {"wait": 4.5},
        ),
        parts_ways=True,
    ),
    Kind(
        "needless-sub-refresh",
        "A client that refreshes a server-side subscription is closed with 3501.",
        "The token is judged as for any other subscription.",
        "The client did no harm, and 3501 is for good.",
        _needless_refresh,
        (
            USER,
            ask(
                2,
                sub_refresh={
                    "channel": "few:#u1@",
                    "token": {"$token": {"sub": "u1@", "channel": "few:#u1@"}, "key": "jwks:RS256"},
                },
            ),
        ),
        parts_ways=True,
    ),
    Kind(
        "delta-or-filter",
        "A subscription may ask for a tags filter and for deltas at once.",
        "Error 107.",
        "SDKs forbid it, because a difference to a publication that was filtered out cannot be"
        " applied.",
        _delta_with_filter,
        (
            ANYBODY,
            ask(
                2,
                subscribe={
                    "channel": "tags:x@",
                    "delta": "fossil",
                    "tf": {"key": "k", "cmp": "ex"},
                },
            ),
        ),
        parts_ways=True,
    ),
    Kind(
        "numbers-of-filters",
        "A filter with `lt`, `lte`, `gt` or `gte` and a `val` that is no number is accepted, and"
        " lets nothing through.",
        "Error 107.",
        "A subscription that can hear nothing is a mistake.",
        refused(command("subscribe", _is_bad_filter), 107),
        (
            ANYBODY,
            ask(2, subscribe={"channel": "tags:x@", "tf": {"key": "k", "cmp": "lt", "val": "v"}}),
        ),
        parts_ways=True,
    ),
    Kind(
        "info-of-the-newest-token",
        "A `refresh` with a token without `info`, or without an expiry, leaves the old `info`.",
        "The newest token counts as a whole.",
        "What others see is what the back end said last.",
        _new_info,
        (
            {
                **ANYBODY,
                "connect": {"token": {"$token": {"sub": "u1@", "info": 1}, "key": "HS256"}},
            },
            ask(
                2, refresh={"token": {"$token": {"sub": "u1@", "exp": {"$in": 60}}, "key": "HS256"}}
            ),
            ask(3, subscribe={"channel": "pres:x@"}),
            ask(4, presence={"channel": "pres:x@"}),
        ),
    ),
    Kind(
        "channels-of-the-new-token",
        "A client that unsubscribed from a channel of its token may refresh with a token without"
        " this channel.",
        "Close 3010: the token has other channels than the one before.",
        "The client comes back with the channels that the token says.",
        refused(lambda step: any(said(step, "refresh")), 3_010),
        (
            by({"channels": ["x@"]}),
            ask(2, unsubscribe={"channel": "x@"}),
            ask(
                3, refresh={"token": {"$token": {"sub": "u1@", "exp": {"$in": 60}}, "key": "HS256"}}
            ),
        ),
        parts_ways=True,
    ),
    Kind(
        "channels-of-tokens",
        "A token with a channel of an unknown namespace: error 102, for good.",
        "The client connects without this channel, and the log says so.",
        "One wrong name should not shut a user out.",
        taken(lambda step: "nowhere:" in json.dumps(_token(step, "channels", "subs")), 102),
        (by({"channels": ["nowhere:x@"]}),),
    ),
    Kind(
        "numbers-of-tokens",
        "`exp` may be a text with digits.",
        "Close 3500.",
        "RFC 7519 has numbers.",
        refused(lambda step: any(isinstance(one, str) for one in _token(step, "exp")), 3_500),
        (by({"exp": "123"}),),
    ),
    Kind(
        "pattern-of-whole-names",
        "`channel_regex` of a namespace is matched with what is behind its `:`.",
        "With the whole name. A pattern that cannot match its own namespace makes all its channels"
        " error 107.",
        "One rule for all channels. Copy such a setting with the namespace in it.",
        refused(command("subscribe", lambda one: one["channel"].startswith("regex:")), 107),
        (ANYBODY, ask(2, subscribe={"channel": "regex:abc"})),
    ),
    Kind(
        "names-that-begin-with-a-colon",
        "`:a` is a channel without a namespace.",
        "Error 102: its namespace has an empty name.",
        "It is a mistake of whoever made the name.",
        refused(command("subscribe", lambda one: one["channel"].startswith(":")), 102),
        (ANYBODY, ask(2, subscribe={"channel": ":a@"})),
    ),
    Kind(
        "empty-list-of-users",
        "`a#` is open to the anonymous user.",
        "To nobody.",
        "Nobody is in the list.",
        refused(command("subscribe", lambda one: one["channel"].endswith("#")), 103),
        (ANYBODY, ask(2, subscribe={"channel": "dialog:a@#"})),
    ),
    Kind(
        "consent-is-said",
        "A callback that answers `{}` or `null` permits.",
        'Error 100: permission is `{"result":{}}`.',
        "A back end that answers nothing has not decided; the log says so.",
        refused(command("subscribe", lambda one: "answer" in (one.get("data") or {})), 100),
        (ANYBODY, ask(2, subscribe={"channel": "asked:x@", "data": {"answer": {}}})),
    ),
)
