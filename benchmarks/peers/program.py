"""The shared part of the Python peers' programs: argument, alarm, the channels of a URL.

Each serves `/ws?channel=a&channel=b` to subscribers. Events come in over a WebSocket at
`/publish?channel=a`, each message an event, or as the body of `POST /publish?channel=a` where the
peer has an HTTP server of its own.
"""

from __future__ import annotations

import signal
import sys
from typing import Final
from urllib.parse import parse_qs, urlsplit

HOST: Final = "127.0.0.1"
BACKLOG: Final = 4_096  # a storm's connections must find room in the listener's queue
_LIFETIME: Final = 600  # seconds: a peer ends soon after its benchmark in any case


def begin() -> int:
    """Return the port to listen on; an alarm ends the process if no signal does."""
    signal.alarm(_LIFETIME)
    return int(sys.argv[1])


def split(target: str) -> tuple[str, list[str]]:
    """Return the path of a request's target, and the channels that its query names."""
    url = urlsplit(target)
    return url.path, channels_of(url.query)


def channels_of(query: str) -> list[str]:
    """The values of each `channel=` in a query."""
    return parse_qs(query).get("channel", [])
