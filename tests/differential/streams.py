"""Deliberate differences in history, positions, recovery and deltas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from tests.differential.examples import ANYBODY, USER, ask
from tests.differential.kind import Kind
from tests.differential.moments import (
    Message,
    Messages,
    about,
    all_objects,
    calls,
    each,
    pairs,
    push,
    said,
    without,
)
from tests.differential.refusals import command, refused, taken
from tests.differential.steps import Moment

_POSITION: Final = ("recoverable", "positioned", "epoch", "offset", "was_recovering")
_RECOVERED: Final = ("recovered", "publications", *_POSITION)
_RIGHT: Final = {"channel": "delta:x@", "data": {"text": "a text that is long enough", "n": 1}}


def _server_side(moment: Moment) -> Moment:
    """Recovery of server-side subscriptions that only Repeater makes recoverable."""

    def subs(message: Message) -> Message:
        inner = message.get("push", message)
        if "subscribe" in inner and "channel" in inner:
            return {inner["channel"]: inner["subscribe"]}
        found: Message = inner.get("connect", {}).get("subs", {})
        return found

    def changed(their: Message, our: Message) -> tuple[Message, Message]:
        mine, yours = subs(our), subs(their)
        only = {
            channel
            for channel in mine.keys() & yours.keys()
            if mine[channel].get("recoverable") and not yours[channel].get("recoverable")
        }
        return _stripped(their, only), _stripped(our, only)

    return pairs(moment, changed)


def _stripped(message: Message, channels: set[str]) -> Message:
    """The message without positions of the server-side subscriptions to these channels."""
    inner = message.get("push", message)
    if "connect" in inner:
        connect = inner["connect"]
        subs = {
            name: without(one, *_RECOVERED) if name in channels else one
            for name, one in connect.get("subs", {}).items()
        }
        inner = {**inner, "connect": {**connect, "subs": subs}}
    elif inner.get("channel") in channels:
        inner = {**inner, "subscribe": without(inner["subscribe"], *_RECOVERED)}
    return {**message, "push": inner} if "push" in message else inner


def _first_epoch(moment: Moment) -> Moment:
    """The epoch beside a publication's offset 1."""

    def changed(one: Message) -> Message:
        publication = one.get("offset") == 1 and "data" in one
        return without(one, "epoch") if publication else one

    return all_objects(moment, changed)


def _version(moment: Moment) -> Moment:
    """The version of a publication, as it was published."""
    return all_objects(moment, lambda one: without(one, "version") if "data" in one else one)


def _old_version(moment: Moment) -> Moment:
    """A publication with a version, where the channel had versions and one without came since."""
    before = [one for step in moment.before for one in (*calls(step), *said(step, "publish"))]
    had = {one.get("channel") for _, one in before if one.get("version")}
    others = {one.get("channel") for _, one in before if not one.get("version")}
    now = {one.get("channel") for _, one in calls(moment.step) if one.get("version")}
    return moment._replace(theirs=moment.ours) if now & had & others else moment


def _no_position(moment: Moment) -> Moment:
    """A position that Centrifugo grants in a channel without history."""

    def changed(their: Message, our: Message) -> tuple[Message, Message]:
        yours, mine = their.get("subscribe"), our.get("subscribe")
        if yours is None or mine is None or "epoch" in mine or yours.get("offset"):
            return their, our
        return (
            {**their, "subscribe": without(yours, *_POSITION)},
            {**our, "subscribe": without(mine, *_POSITION)},
        )

    return pairs(moment, changed)


def _backwards(moment: Moment) -> Moment:
    """The publications of a `history` backwards from above the top."""
    asked = (*said(moment.step, "history"), *calls(moment.step))
    beyond = any(one.get("reverse") and one.get("since", {}).get("offset") for _, one in asked)

    def changed(one: Message) -> Message:
        return without(one, "publications") if "publications" in one else one

    return all_objects(moment, changed) if beyond else moment


def _backwards_from_zero(moment: Moment) -> Moment:
    """`history` backwards from offset 0."""
    asked = (*said(moment.step, "history"), *calls(moment.step))
    zero = any(one.get("reverse") and one.get("since", {}).get("offset") == 0 for _, one in asked)

    def changed(one: Message) -> Message:
        return {} if one.get("code") in (100, 107, 112) else one

    return all_objects(moment, changed) if zero else moment


def _by_default(moment: Moment) -> Moment:
    """Positions in a namespace whose history is nobody's decision."""
    unset = "unset:" in json.dumps(moment.step)
    return all_objects(moment, lambda one: without(one, "epoch", "offset")) if unset else moment


def _cache_by_api(moment: Moment) -> Moment:
    """What the API's `subscribe` does in a channel with `auto_cache_recover`."""
    channels = {one for one in about(moment.step, "subscribe") if "auto:" in one}

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        mine = [one for one in our if push(one).get("channel") in channels]
        yours = [one for one in their if push(one).get("channel") in channels]
        return (our, our) if mine != yours else (their, our)

    return each(moment, changed) if channels and calls(moment.step) else moment


def _deltas(moment: Moment) -> Moment:
    """Differences, and whole data in their place, of publications in a channel with deltas."""

    def changed(one: Message) -> Message:
        return without(one, "data", "delta") if isinstance(one.get("data"), str | dict) else one

    return all_objects(moment, changed) if "delta:" in json.dumps(moment.step) else moment


def _cache_top(moment: Moment) -> Moment:
    """Whether a channel in cache mode has recovered whose newest publication was removed."""
    removed = any(name == "history_remove" for step in moment.before for name, _ in calls(step))
    cached = re.search(r'"(cache|auto):', json.dumps(moment.step))

    def changed(one: Message) -> Message:
        return without(one, "recovered") if "was_recovering" in one else one

    return all_objects(moment, changed) if removed and cached else moment


STREAMS: Final[Sequence[Kind]] = (
    Kind(
        "server-side-recovery",
        "Server-side subscriptions are recoverable only with `force_recovery`; what a client missed"
        " of others is not brought at `connect`.",
        "They are where `allow_recovery` is on, and are recovered at `connect` and by"
        " `recover_since` of the API.",
        "The client of a server-side subscription cannot ask for recovery; without it events would"
        " be lost in silence.",
        _server_side,
        (
            {
                **ANYBODY,
                "connect": {
                    "token": {"$token": {"sub": "u1@", "channels": ["hist:x@"]}, "key": "HS256"}
                },
            },
        ),
    ),
    Kind(
        "epoch-of-the-first",
        "The publication with offset 1 has `epoch` in answers to `history` and in recovered lists,"
        " and live for positioned subscribers.",
        "Live only, for all subscribers of the channel.",
        "A client that had no epoch learns it there; the answers to `history` and `subscribe` have"
        " it anyway.",
        _first_epoch,
        (
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1}},
            ANYBODY,
            ask(2, history={"channel": "hist:x@", "limit": 1}),
        ),
    ),
    Kind(
        "version-is-not-told",
        "A publication with a `version` is pushed with it.",
        "Without it.",
        "The version is the publisher's matter; no SDK reads it from a stream.",
        _version,
        (
            ANYBODY,
            ask(2, subscribe={"channel": "x@"}),
            {"call": "publish", "body": {"channel": "x@", "data": 1, "version": 1}},
        ),
    ),
    Kind(
        "versions-outlive-others",
        "After a publication without `version` any version is new.",
        "A version that is not above the last one is skipped, whatever came in between.",
        "An update that is late stays late.",
        _old_version,
        (
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1, "version": 3}},
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1}},
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1, "version": 2}},
        ),
        parts_ways=True,
    ),
    Kind(
        "no-position-without-history",
        "A client that may read the history gets a position where the channel keeps none; every"
        " return is then `recovered: false`.",
        "No position.",
        "It would tell clients of losses that are none.",
        _no_position,
        (ANYBODY, ask(2, subscribe={"channel": "pres:x@", "positioned": True})),
    ),
    Kind(
        "not-lost-without-history",
        "There, a `recover` with bit 2 of `flag` is error 112.",
        "The client is subscribed.",
        "Nothing can be lost where nothing is kept.",
        taken(command("subscribe", lambda one: one.get("flag", 0) & 2 and one.get("recover")), 112),
        (
            ANYBODY,
            ask(
                2,
                subscribe={
                    "channel": "pres:x@",
                    "recoverable": True,
                    "recover": True,
                    "offset": 3,
                    "epoch": "other",
                    "flag": 2,
                },
            ),
        ),
        parts_ways=True,
    ),
    Kind(
        "history-by-default",
        "A namespace that says nothing about history keeps none.",
        "It keeps 100 publications for 300 s. `history_size = 0` turns it off.",
        "Recovery works from the start. Count its memory when you move over.",
        _by_default,
        ({"call": "publish", "body": {"channel": "unset:x@", "data": 1}},),
    ),
    Kind(
        "backwards-from-beyond",
        "`history` with `reverse` and a `since` above the top has no publications.",
        "It has those below, which are all.",
        "`since` with `reverse` means those with a lower offset.",
        _backwards,
        (
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1}},
            {
                "call": "history",
                "body": {
                    "channel": "hist:x@",
                    "limit": 5,
                    "reverse": True,
                    "since": {"offset": 5, "epoch": "$epoch:hist:x@"},
                },
            },
        ),
    ),
    Kind(
        "backwards-from-zero",
        "`history` with `reverse` and a `since` with offset 0: error 100 or 112.",
        "Error 107.",
        "Nothing is below offset 0; 100 would let an SDK try for ever.",
        _backwards_from_zero,
        (
            {"call": "publish", "body": {"channel": "hist:x@", "data": 1}},
            {
                "call": "history",
                "body": {
                    "channel": "hist:x@",
                    "limit": 5,
                    "reverse": True,
                    "since": {"offset": 0, "epoch": "$epoch:hist:x@"},
                },
            },
        ),
    ),
    Kind(
        "lost-in-cache-mode",
        "Bit 2 of `flag` has no effect in cache mode.",
        "Error 112 there, too.",
        "The client asked for it.",
        refused(command("subscribe", lambda one: one.get("flag", 0) & 2), 112),
        (
            ANYBODY,
            ask(2, subscribe={"channel": "cache:x@", "recover": True, "epoch": "other", "flag": 2}),
        ),
        parts_ways=True,
    ),
    Kind(
        "removed-from-the-cache",
        "After `history_remove` a client in cache mode at the top has recovered.",
        "It has not: there is no newest publication.",
        "The back end took it back.",
        _cache_top,
        (
            {"call": "publish", "body": {"channel": "cache:x@", "data": 1}},
            {"call": "history_remove", "body": {"channel": "cache:x@"}},
            ANYBODY,
            ask(
                2,
                subscribe={
                    "channel": "cache:x@",
                    "recover": True,
                    "offset": 1,
                    "epoch": "$epoch:cache:x@",
                },
            ),
        ),
    ),
    Kind(
        "cache-by-the-api",
        "The API's `subscribe` brings nothing from the cache with `auto_cache_recover`; where the"
        " channel is empty, nobody is subscribed.",
        "The client is subscribed, and gets the newest publication.",
        "A fault of Centrifugo.",
        _cache_by_api,
        (USER, {"call": "subscribe", "body": {"user": "u1@", "channel": "auto:x@"}}),
        parts_ways=True,
    ),
    Kind(
        "deltas-for-all",
        "Only positioned subscribers get differences; publications with `skip_history` are sent"
        " whole, and the next difference is made from the one before them.",
        "All who negotiated deltas get differences, always to what they got last.",
        "The SDK holds what it got last: with Centrifugo's base its checksum fails, which ends the"
        " JavaScript SDK for good.",
        _deltas,
        (
            ANYBODY,
            ask(2, subscribe={"channel": "delta:x@", "delta": "fossil"}),
            {"call": "publish", "body": _RIGHT},
            {"call": "publish", "body": _RIGHT},
        ),
    ),
)
