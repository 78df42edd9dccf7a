"""What clients hand in as data: JSON text, or any bytes from clients whose format carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.errors import ErrorCode, ReplyError
from repeater.json_text import JSONText, accepted, json_text

if TYPE_CHECKING:
    import msgspec

    from repeater.clients.client import Client


def json_data(client: Client, data: msgspec.Raw) -> JSONText:
    """The data of a command as JSON text; empty for none.

    A text format has checked it with the command. A binary one passes any bytes.

    Raises:
        ReplyError: 107 for bytes that are not JSON text.
    """
    if not client.codec.format.binary or not data:
        return accepted(data)
    try:
        return json_text(bytes(data))
    except ValueError:
        raise ReplyError(ErrorCode.BAD_REQUEST) from None


def any_data(client: Client, data: msgspec.Raw) -> bytes:
    """The data of a command for the back end; empty for none.

    A text format has checked it, so it is a `JSONText`. A binary one passes any bytes, which
    nobody looks at.
    """
    return bytes(data) if client.codec.format.binary else accepted(data)
