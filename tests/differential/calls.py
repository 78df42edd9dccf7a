"""Deliberate differences in the server API and in what a back end answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from tests.differential.examples import ANYBODY, ask, by
from tests.differential.kind import Kind
from tests.differential.moments import Message, all_objects, pairs, without
from tests.differential.refusals import call, command, refused, taken
from tests.differential.steps import Moment


def _nodes(moment: Moment) -> Moment:
    """What nodes tell of themselves."""
    told = moment.step.get("call") == "info"
    return all_objects(moment, lambda one: without(one, "nodes")) if told else moment


def _no_replies(moment: Moment) -> Moment:
    """The empty list of an empty batch."""

    def changed(one: Message) -> Message:
        return without(one, "replies") if one.get("replies") == [] else one

    return all_objects(moment, changed)


_COUNTED: Final = frozenset({"subscribe", "unsubscribe", "disconnect", "refresh"})


def _counts(moment: Moment) -> Moment:
    """How many connections or subscriptions a call has changed."""

    called = moment.step.get("call")
    keys = {"result"} if called in _COUNTED else _COUNTED if called == "batch" else ()

    def changed(one: Message) -> Message:
        counts = {key for key in one if key in keys and _is_count(one[key])}
        return one | {key: {} for key in counts}

    return all_objects(moment, changed)


def _is_count(value: object) -> bool:
    return isinstance(value, dict) and set(value) in ({"num_clients"}, {"num_subs"})


def _texts(moment: Moment) -> Moment:
    """What errors of calls say behind the code's text, and bodies of equal refusals."""
    if "call" not in moment.step:
        return moment

    def brief(one: Message) -> Message:
        error = one.get("error")
        if not isinstance(error, dict) or "message" not in error:
            return one
        return {**one, "error": {**error, "message": error["message"].partition(": ")[0]}}

    def changed(their: Message, our: Message) -> tuple[Message, Message]:
        if their.get("status") == our.get("status") not in (None, 200):
            return without(their, "body"), without(our, "body")
        return their, our

    return pairs(all_objects(moment, brief), changed)


CALLS: Final[Sequence[Kind]] = (
    Kind(
        "errors-say-why",
        "The text of an API error is its code's, `bad request`. A refusal with a status has a text,"
        " or no body.",
        "The text begins with the code's, and says what is wrong:"
        " `bad request: channel: must be text, not a number`. Every refusal is JSON.",
        "The author of a back end finds the field. Libraries act on codes, and on statuses.",
        _texts,
        ({"call": "publish", "body": {"channel": "", "data": 1}},),
    ),
    Kind(
        "names-of-calls",
        "The API checks no channel names.",
        "Error 107 for a name that no client could subscribe to.",
        "Nobody would hear the event, and nobody would know.",
        refused(call("publish", lambda one: not str(one.get("channel")).isascii()), 107),
        ({"call": "publish", "body": {"channel": "é@", "data": 1}},),
    ),
    Kind(
        "data-is-json",
        "`b64data` may be any bytes in any channel.",
        "In a channel of JSON it is JSON, else error 107.",
        "One event that is no JSON stops a JavaScript client for good.",
        refused(call("publish", lambda one: "b64data" in one), 107),
        ({"call": "publish", "body": {"channel": "x@", "b64data": "eHl6"}},),
    ),
    Kind(
        "wrong-types-of-calls",
        "A field of a wrong type in a call: HTTP 400, a text.",
        "HTTP 200 with error 107, as for any other mistake.",
        "`cent` raises an exception that says what was wrong.",
        refused(call("publish", lambda one: not isinstance(one.get("channel"), str)), 107),
        ({"call": "publish", "body": {"channel": 1, "data": 1}},),
    ),
    Kind(
        "old-form-of-the-api",
        '`POST /api` with `{"method":..}` is served.',
        "404.",
        "Current libraries do not use it (section 18.3).",
        refused(lambda step: step.get("path") == "/api", 404),
        (
            {
                "http": "POST",
                "path": "/api",
                "body": {"method": "publish", "params": {"channel": "x@", "data": 1}},
            },
        ),
    ),
    Kind(
        "methods-of-maps",
        "The methods `map_*` and `shared_poll_publish` exist; a subscription with a `type` that the"
        " namespace does not have is error 103.",
        "404; error 108 `not offered here`.",
        "They are experimental.",
        lambda moment: refused(command("subscribe", lambda one: one.get("type")), 108)(
            refused(lambda step: step.get("call", "").startswith("map_"), 404)(moment)
        ),
        (ANYBODY, ask(2, subscribe={"channel": "x@", "type": 1})),
    ),
    Kind(
        "size-of-a-call",
        "A body has no limit.",
        "413 above `body_limit` (512 KiB).",
        "One event must not fill a subscriber's outbox. Cut a large batch, or raise the limit.",
        refused(lambda step: len(json.dumps(step)) > 524_288, 413),
        ({"call": "publish", "body": {"channel": "x@", "data": "x" * 600_000}},),
    ),
    Kind(
        "depth-of-data",
        "Data may be nested some thousand levels deep.",
        "128 levels, else 400 from the API and close 3501 for a client.",
        "Deep nesting breaks parsers of clients.",
        refused(lambda step: "[" * 129 in json.dumps(step), 400, 107, 3501),
        (
            {
                "call": "publish",
                "body": '{"channel":"x@","data":' + "[" * 1_000 + "]" * 1_000 + "}",
            },
        ),
    ),
    Kind(
        "empty-batch",
        "The answer to a batch without commands is `{}`.",
        '`{"replies":[]}`.',
        "Libraries look for `replies`.",
        _no_replies,
        ({"call": "batch", "body": {"commands": []}},),
    ),
    Kind(
        "info-of-nodes",
        "`info` tells Centrifugo's metrics.",
        "Repeater's.",
        "They are other programs.",
        _nodes,
        ({"call": "info", "body": {}},),
    ),
    Kind(
        "counts-of-calls",
        "`subscribe`, `unsubscribe`, `disconnect` and `refresh` of the API are answered `{}`.",
        "`num_clients`, for `unsubscribe` `num_subs`: how many the call has changed.",
        "A person who disconnects somebody wants to know whether anybody was there.",
        _counts,
        ({"call": "disconnect", "body": {"user": "u1@"}},),
    ),
    Kind(
        "expiry-in-the-past",
        "The API's `subscribe` with an `expire_at` in the past: `{}`, or error 100.",
        "Error 107.",
        "A fault of Centrifugo: error 100 makes a back end try for ever.",
        refused(call("subscribe", lambda one: one.get("expire_at", {}).get("$in", 0) < 0), 107),
        (
            {
                "call": "subscribe",
                "body": {"user": "u1@", "channel": "x@", "expire_at": {"$in": -60}},
            },
        ),
    ),
    Kind(
        "pattern-without-an-end",
        "`channels` with the pattern `[a`: error 100.",
        "It matches nothing.",
        "A fault of Centrifugo, as above.",
        taken(call("channels", lambda one: one.get("pattern") == "[a"), 100),
        ({"call": "channels", "body": {"pattern": "[a"}},),
    ),
    Kind(
        "ends-say-why",
        "`disconnect` of the API with code 3000, without a code or without a reason: the close"
        " frame has no code, no reason, or there is none.",
        "3503 in place of no code, `force disconnect` in place of no reason, and always a close"
        " frame.",
        "A fault of Centrifugo: without a reason the JavaScript SDK comes back for ever"
        " (section 8.2).",
        refused(
            call(
                "disconnect",
                lambda one: (
                    one.get("disconnect", {}).get("code", 0) in (0, 3_000)
                    or not one["disconnect"].get("reason")
                ),
            ),
            *(3_000, 3_503, 4_000, 4_500),
        ),
        (
            by({}),
            {"call": "disconnect", "body": {"user": "u1@", "disconnect": {"code": 4_000}}},
        ),
    ),
)
