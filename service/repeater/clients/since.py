"""Where a plain subscriber begins, as its request says: an event id, or a time, count or `start`.

The id of the last event wins over `since`: a browser that reconnects sends both, because it sends
the same URL again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from repeater.fanout.rewind import Rewind
from repeater.protocol.sse.event_id import UNKNOWN, parse_event_id
from repeater.publication import StreamPosition

Positions = Mapping[str, StreamPosition]

SINCE_FORMS: Final = (
    "since is one of: start, last:20, time:2026-11-25T20:00:00Z, or the id of an event"
)
"""The text of the refusal."""

_START: Final = "start"
_LAST: Final = re.compile(r"last:(\d{1,19})", re.ASCII)
# RFC 3339, section 5.6. A `+` that was not escaped in a URL comes as a space.
_TIME: Final = re.compile(
    r"time:(\d{4}-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d):(\d\d)(?:\.(\d{1,9})\d*)?"
    r"([Zz]|[-+ ]\d\d:\d\d)",
    re.ASCII,
)
_ID: Final = re.compile(r"[\w-]{8}:[^:]*:[\w-]+", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LEAP_SECOND: Final = 60
_MILLISECOND: Final = timedelta(milliseconds=1)


class SinceError(ValueError):
    """A `since` has none of its forms."""


def positions_of(last_event_id: str, channels: Sequence[str]) -> dict[str, StreamPosition]:
    """The client's positions in these channels; `UNKNOWN` in all of them for an invalid id.

    An id of other channels, and one of an older form, are invalid: they cannot be told apart.
    """
    positions = parse_event_id(last_event_id, channels)
    return dict.fromkeys(channels, UNKNOWN) if positions is None else positions


def parse_since(since: str, channels: Collection[str], now: float) -> Positions | Rewind:
    """The positions that an id names, or the part of the past that is asked for.

    There are no positions, as for a client that comes for the first time, if nothing is asked for:
    the text is empty, asks for the last 0 events, or names a time after `now`, in Unix seconds.

    Raises:
        SinceError: the text has none of the forms.
    """
    if not since:
        return {}
    if since == _START:
        return Rewind()
    if found := _LAST.fullmatch(since):
        return Rewind(count=int(found[1])) if int(found[1]) else {}
    if found := _TIME.fullmatch(since):
        time = _milliseconds(*found.groups(default=""))
        return {} if time > now * 1_000 else Rewind(time=time)
    if _ID.fullmatch(since):
        return positions_of(since, list(channels))
    raise SinceError(SINCE_FORMS)


def _milliseconds(date: str, minute: str, second: str, fraction: str, zone: str) -> int:
    """Unix milliseconds, at least 1: no publication is older.

    Raises:
        SinceError: there is no such day, time of day or zone.
    """
    seconds = int(second)
    try:
        begin = datetime.fromisoformat(f"{date}T{minute}:00{zone.upper().replace(' ', '+')}")
        if seconds > _LEAP_SECOND:
            raise SinceError(SINCE_FORMS)
    except ValueError:
        raise SinceError(SINCE_FORMS) from None
    whole = (begin - _EPOCH) // _MILLISECOND + seconds * 1_000
    return max(1, whole + int(fraction.ljust(3, "0")[:3]))
