"""HTTP/1.1 answers as bytes: the one writer of what is answered natively.

An answer with a body of known length is `write_answer`; a response that ends with its connection
has its head from `write_head`.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import msgspec

Headers = Iterable[tuple[str, str]]

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_NO_CONTENT: Final = 204  # whose answer has no length (RFC 9110, section 8.6)


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer. `headers` come on top of content type and length."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    """Empty for an answer without a body."""
    headers: tuple[tuple[str, str], ...] = ()

    def header_lines(self) -> list[tuple[str, str]]:
        """All headers that describe this answer, whoever writes it. Names are in lower case."""
        lines = [("content-type", self.content_type)] if self.content_type else []
        if self.status != _NO_CONTENT:
            lines.append(("content-length", str(len(self.body))))
        lines += [(name.lower(), value) for name, value in self.headers]
        return lines


def answer_status(status: HTTPStatus, headers: Headers = (), text: str = "") -> Answer:
    """A status with a line of text as the body, its own phrase if there is none."""
    body = f"{text or status.phrase}\n".encode()
    return Answer(int(status), body, "text/plain; charset=utf-8", tuple(headers))


def write_answer(answer: Answer, *, keep_alive: bool, date: str = "") -> bytes:
    """Status line, headers and body; without `keep_alive` it says that the connection ends.

    `date` is the time for the header of that name, left out where it is empty.
    """
    # Written out, since every call of the API passes here: the same lines as `header_lines`.
    text = f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
    if answer.content_type:
        text += f"content-type: {answer.content_type}\r\n"
    if answer.status != _NO_CONTENT:
        text += f"content-length: {len(answer.body)}\r\n"
    for name, value in answer.headers:
        text += f"{name.lower()}: {value}\r\n"
    if date:
        text += f"date: {date}\r\n"
    text += "\r\n" if keep_alive else "connection: close\r\n\r\n"
    return text.encode("latin-1") + answer.body


def write_head(status: int, headers: Headers) -> bytes:
    """Status line and headers, up to and including the empty line."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    return f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{''.join(lines)}\r\n".encode("latin-1")
