"""What a browser's EventSource makes of a stream: the HTML standard's parser, and no more."""

from __future__ import annotations

import re

import msgspec

_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r)")


class Event(msgspec.Struct, frozen=True):
    kind: str
    data: str
    last_event_id: str


class EventSource:
    """Parses bytes as they come; keeps the last event id, as a browser does for coming back."""

    def __init__(self, last_event_id: str = "") -> None:
        self.events: list[Event] = []
        self.last_event_id = last_event_id
        self.retry: int | None = None
        self._id = last_event_id
        self._buffer = b""
        self._data: list[str] = []
        self._kind = ""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        # A CR at the very end may be half a CRLF: it waits for what follows.
        while (line := _LINE.match(self._buffer)) and not (
            line.end() == len(self._buffer) and line[2] == b"\r"
        ):
            self._buffer = self._buffer[line.end() :]
            self._take(line[1].decode())

    def _take(self, line: str) -> None:
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        data, kind, self._data, self._kind = self._data, self._kind or "message", [], ""
        if data:
            self.events.append(Event(kind, "\n".join(data), self.last_event_id))

    def data(self, kind: str = "message") -> list[str]:
        """The data of every event of a kind so far."""
        return [event.data for event in self.events if event.kind == kind]
