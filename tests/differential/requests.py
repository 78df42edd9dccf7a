"""Deliberate differences in odd input of clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from tests.differential.examples import ANYBODY, ask
from tests.differential.kind import Kind
from tests.differential.moments import Message, all_objects, calls, said, without
from tests.differential.refusals import command, refused, taken
from tests.differential.steps import Moment, Step


def _text(step: Step) -> str:
    """The first line that a client writes by hand."""
    return next((one for one in step.get("commands", ()) if isinstance(one, str)), "")


def _pong(step: Step) -> bool:
    """Whether a command of the step is a pong."""
    return any(
        one == "{}" or (isinstance(one, dict) and one.get("octets") == "00")
        for one in step.get("commands", ())
    )


def _octets(one: Message) -> bool:
    """Whether the data of a command is bytes that are no JSON."""
    return isinstance(one.get("data"), dict) and "octets" in one["data"]


def _published_bytes(moment: Moment) -> Moment:
    """A publication of bytes that are no JSON, which may end the JSON clients that get it."""
    published = any(_octets(one) for _, one in said(moment.step, "publish"))
    return moment._replace(theirs=moment.ours) if published else moment


def _binary_history(moment: Moment) -> Moment:
    """Publications of a binary channel in the answers to a back end."""
    asked = any(
        name == "history" and "bytes:" in one.get("channel", "") for name, one in calls(moment.step)
    )
    if {"status": 500, "body": "Internal Server Error"} in moment.theirs.get("api", []) and asked:
        return moment._replace(theirs=moment.ours)
    return all_objects(moment, lambda one: without(one, "data", "b64data")) if asked else moment


def _costs_itself(step: Step) -> bool:
    """Whether one of its commands has something that Centrifugo takes for a breach of protocol."""
    asked = [one for _, one in said(step, "presence", "presence_stats", "history", "sub_refresh")]
    return any(
        not one.get("channel")
        or not isinstance(one["channel"], str)
        or one.get("limit", 0) >> 31 > 0
        for one in asked
    )


REQUESTS: Final[Sequence[Kind]] = (
    Kind(
        "errors-of-callbacks",
        "An error of a callback is handed on as it is, without a code or with one that is the"
        " server's.",
        "Error 100 for a code outside 100 to 1999, or none.",
        "A fault of Centrifugo: `centrifuge-python` raises `KeyError`, and codes below 100 are the"
        " SDK's own.",
        refused(command("rpc", lambda one: "error" in str(one.get("data"))), 100),
        (ANYBODY, ask(2, rpc={"method": "m", "data": {"answer": {"error": {"code": 99}}}})),
    ),
    Kind(
        "methods-with-a-colon",
        "`rpc` with the method `a:b` belongs to a namespace of methods, which must be configured.",
        "It reaches the back end like any other.",
        "Names of methods are the back end's.",
        taken(command("rpc", lambda one: ":" in one.get("method", "")), 104),
        (ANYBODY, ask(2, rpc={"method": "a:b", "data": {}})),
    ),
    Kind(
        "bytes-of-clients",
        "A Protobuf client may publish any bytes into any channel, which are handed on to JSON"
        " clients as they are.",
        "In a channel of JSON its data is JSON, else error 107.",
        "One message that is no JSON stops a JavaScript client for good.",
        _published_bytes,
        (ANYBODY, ask(2, publish={"channel": "x@", "data": {"octets": "ff00"}})),
        parts_ways=True,
        codec="protobuf",
    ),
    Kind(
        "bytes-of-calls",
        "Data of a Protobuf client that are not JSON cannot go to a back end: error 100, unless the"
        " callback has `binary_encoding`.",
        "All data of a Protobuf client goes there as `b64data`.",
        "The client of a binary format needs no setting on the server.",
        lambda moment: taken(command("rpc", _octets), 100)(
            taken(command("subscribe", _octets), 100)(moment)
        ),
        (ANYBODY, ask(2, rpc={"method": "m", "data": {"octets": "ff00"}})),
        parts_ways=True,
        codec="protobuf",
    ),
    Kind(
        "binary-channels",
        "JSON clients may use channels with `publication_data_format` `binary`; the first bytes"
        " that are no JSON end them with 3506.",
        "Error 108 `binary channel` for their commands; as a server-side subscription the channel"
        " is left out.",
        "A client should learn at once what it cannot read.",
        refused(lambda step: "bytes:" in json.dumps(step), 108),
        (ANYBODY, ask(2, subscribe={"channel": "bytes:x@"})),
        parts_ways=True,
    ),
    Kind(
        "binary-history",
        "The API's `history` of a binary channel has `data`, or is HTTP 500 where that is no JSON.",
        "It has `b64data`.",
        "A back end can read everything that was published.",
        _binary_history,
        (
            {"call": "publish", "body": {"channel": "bytes:x@", "b64data": "eHl6"}},
            {"call": "history", "body": {"channel": "bytes:x@", "limit": 5}},
        ),
    ),
    Kind(
        "commands-that-cost-themselves",
        "A field of a wrong type, a number beyond 32 bits, no channel in `presence`,"
        " `presence_stats`, `history`: close 3501.",
        "Error 107 for this command; a large `limit` is cut; a field that Repeater does not use may"
        " be anything.",
        "3501 is for good, and takes all other subscriptions along.",
        taken(_costs_itself, 3_501),
        (ANYBODY, ask(2, history={"channel": ""})),
        parts_ways=True,
    ),
    Kind(
        "needless-pongs",
        "A pong that nobody asked for: close 3501.",
        "It is ignored, as is any message in place of a pong.",
        "A pong may cross the server's clock; SDKs differ in when they send one.",
        taken(_pong, 3_501),
        (ANYBODY, {"say": "a", "commands": ["{}"]}),
        parts_ways=True,
    ),
    Kind(
        "strict-json",
        "Text behind a command's object, keys in any case, invalid UTF-8: accepted, and bad bytes"
        " are handed on to others.",
        "Close 3501; 1007 for invalid UTF-8.",
        "A fault of Centrifugo: one client could end others.",
        refused(lambda step: bool(_text(step)), 3_501, 1_007),
        (ANYBODY, {"say": "a", "commands": ['{"id":2,"history":{"channel":"x@"}} x']}),
        parts_ways=True,
    ),
    Kind(
        "statuses",
        "A preflight of SSE: 405. A plain GET of a WebSocket: 400. `/emulation` without a session:"
        " 404.",
        "204; 426; 400.",
        "They say more exactly what was wrong.",
        refused(lambda step: "http" in step or "say" in step, 204, 400, 426),
        ({"http": "GET", "path": "/connection/websocket", "body": ""},),
    ),
)
