"""HTTP/1.1 answers as bytes: the one writer of the native paths' answers.

`write_answer` writes an answer whose body has a known length; `write_head` writes the head of a
response that ends with its connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import msgspec

Headers = Iterable[tuple[str, str]]

NOT_STORED: Final = ("cache-control", "no-store")
"""The header of every answer here: a cache must not answer for the server (RFC 9111)."""
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_NO_CONTENT: Final = 204  # its answer has no Content-Length (RFC 9110, section 8.6)


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer. `headers` are sent in addition to content type and length."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    """Empty for an answer without a body."""
    headers: tuple[tuple[str, str], ...] = ()

    def header_lines(self) -> list[tuple[str, str]]:
        """All headers of this answer, for any writer. Names are in lower case."""
        lines = [("content-type", self.content_type)] if self.content_type else []
        lines.append(NOT_STORED)
        if self.status != _NO_CONTENT:
            lines.append(("content-length", str(len(self.body))))
        lines += [(name.lower(), value) for name, value in self.headers]
        return lines


def answer_status(status: HTTPStatus, headers: Headers = (), text: str = "") -> Answer:
    """Make an answer with a line of text as the body; without `text`, the status's phrase."""
    body = f"{text or status.phrase}\n".encode()
    return Answer(int(status), body, "text/plain; charset=utf-8", tuple(headers))


def write_answer(answer: Answer, *, keep_alive: bool, date: str = "") -> bytes:
    """Return status line, headers and body; without `keep_alive` add `connection: close`.

    `date` is the value of the header of that name; if it is empty, the header is left out.
    """
    # The lines of `header_lines`, written out for speed: every call of the API passes here.
    text = f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
    if answer.content_type:
        text += f"content-type: {answer.content_type}\r\n"
    if answer.status != _NO_CONTENT:
        text += f"content-length: {len(answer.body)}\r\ncache-control: no-store\r\n"
    else:
        text += "cache-control: no-store\r\n"
    for name, value in answer.headers:
        text += f"{name.lower()}: {value}\r\n"
    if date:
        text += f"date: {date}\r\n"
    text += "\r\n" if keep_alive else "connection: close\r\n\r\n"
    return text.encode("latin-1") + answer.body


def write_head(status: int, headers: Headers) -> bytes:
    """Return status line and headers, up to and including the empty line."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    return f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{''.join(lines)}\r\n".encode("latin-1")
