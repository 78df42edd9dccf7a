"""Who can hear a binary channel: clients whose format carries any bytes.

These are clients of Protobuf, and plain WebSockets. Who asks for such a channel in another way is
refused; a subscription that the server gives is left out, and a line of the log says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.publication import Publication

BINARY_CHANNEL: Final = "binary channel"
"""The text of the refusal."""
NOT_FOR_TEXT: Final = Why(
    Cause.NOT_OFFERED,
    "the channel carries bytes, and what this client speaks cannot",
    "use /ws, or an SDK in Protobuf",
)


def fits(codec: Codec, options: ChannelOptions) -> bool:
    """Whether a client with this codec can hear, or read, a channel with these options."""
    return codec.takes_binary or options.publication_data_format != "binary"


def check_fits(codec: Codec, options: ChannelOptions) -> None:
    """Refuse what `fits` denies.

    Raises:
        ReplyError: 108 "binary channel".
    """
    if not fits(codec, options):
        raise ReplyError(ErrorCode.NOT_AVAILABLE, BINARY_CHANNEL, why=NOT_FOR_TEXT)


def warn_of_binary(node: ClientNode, client: Client | None, channel: str, **whose: str) -> None:
    """Tell the operator of a server-side subscription that the client cannot have.

    `whose` says who it is, if there is no client yet.
    """
    node.connection_log.warn("a binary channel was left out", client, channel=channel, **whose)


def carried(
    node: ClientNode, client: Client, channel: str, publications: Sequence[Publication]
) -> Sequence[Publication]:
    """What the client's format can carry of publications that one answer has for it.

    The channel was a binary one when the others were published; a line of the log tells of them.
    """
    if client.codec.takes_binary:
        return publications
    text = [one for one in publications if not one.binary]
    left_out = len(publications) - len(text)
    if left_out:
        what = "binary publications were left out of an answer"
        node.connection_log.warn(what, client, channel=channel, publications=left_out)
    return text
