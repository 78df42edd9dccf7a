"""What clients hand in as data: JSON text, or any bytes from clients whose format carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError
from repeater.json_text import NOTHING, JSONText, accepted, json_text

if TYPE_CHECKING:
    import msgspec

    from repeater.clients.client import Client


def json_of_bytes(data: msgspec.Raw) -> JSONText:
    """The data of a command of a binary format as JSON text; empty for none.

    Nobody has looked at it. The data of a text format was checked with its command (`accepted`).

    Raises:
        ReplyError: 107 for bytes that are not JSON text.
    """
    try:
        return json_text(bytes(data)) if data else NOTHING
    except ValueError as error:
        why = Why(
            Cause.REQUEST,
            f"the data is not JSON: {error}",
            'a namespace with publication_data_format = "binary" takes bytes',
        )
        raise ReplyError(ErrorCode.BAD_REQUEST, why=why) from None


def any_data(client: Client, data: msgspec.Raw) -> bytes:
    """The data of a command for the back end; empty for none.

    A text format has checked it, so it is a `JSONText`. A binary one passes any bytes, which
    nobody looks at.
    """
    return bytes(data) if client.codec.format.binary else accepted(data)
