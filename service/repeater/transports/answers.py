"""An answer of the API as the bytes of an HTTP/1.1 response."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from repeater.api.answers import Answer

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_date = (0, "")


def _http_date() -> str:
    """The time for the `date` header, formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]


def encode_answer(answer: Answer, *, keep_alive: bool) -> bytes:
    """Status line, headers and body; without `keep_alive` it says that the connection ends."""
    lines = [
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}",
        f"content-type: {answer.content_type}",
        f"content-length: {len(answer.body)}",
        f"date: {_http_date()}",
        *(f"{name.lower()}: {value}" for name, value in answer.headers),
    ]
    if not keep_alive:
        lines.append("connection: close")
    return "\r\n".join((*lines, "\r\n")).encode("latin-1") + answer.body
