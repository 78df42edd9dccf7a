"""Who can hear a binary channel: clients whose format carries any bytes.

These are clients of Protobuf, and plain WebSockets. Who asks for such a channel in another way is
refused; a subscription that the server gives is left out, and a line of the log says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.errors import ErrorCode, ReplyError

if TYPE_CHECKING:
    from repeater.clients.client import Client
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions
    from repeater.protocol.centrifugo.codecs import Codec

BINARY_CHANNEL: Final = "binary channel"
"""The text of the refusal."""


def fits(codec: Codec, options: ChannelOptions) -> bool:
    """Whether a client with this codec can hear, or read, a channel with these options."""
    return codec.takes_binary or options.publication_data_format != "binary"


def check_fits(codec: Codec, options: ChannelOptions) -> None:
    """Refuse what `fits` denies.

    Raises:
        ReplyError: 108 "binary channel".
    """
    if not fits(codec, options):
        raise ReplyError(ErrorCode.NOT_AVAILABLE, BINARY_CHANNEL)


def warn_of_binary(node: ClientNode, client: Client | None, channel: str, **whose: str) -> None:
    """Tell the operator of a server-side subscription that the client cannot have.

    `whose` says who it is, if there is no client yet.
    """
    node.connection_log.warn("a binary channel was left out", client, channel=channel, **whose)
