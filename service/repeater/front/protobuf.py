"""What Protobuf clients are served with, imported when the first such client comes.

Rule: nothing imports the Protobuf runtime before. It takes tens of milliseconds and some megabytes,
and a server without such clients needs neither. A thread imports it, so that nobody else waits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from repeater.clients.opening import Opening
    from repeater.front.routes import Route
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.protocol.centrifugo.commands import EmulationRequest


async def load() -> None:
    """Have the codecs at hand. A checkpoint only until they are.

    Whoever comes during the import waits for it in a thread, too: an import that is under way
    would hold up the event loop. Cancelled, the import goes on in its thread. No deadline: an
    import reads a few files of this installation.
    """
    if not _import.cache_info().currsize:
        await trio.to_thread.run_sync(_import, abandon_on_cancel=True)


@cache
def _import() -> None:
    """Import the codecs, and remember that they are there as a whole."""
    from repeater.protocol.centrifugo import protobuf_codecs  # noqa: F401


def codec_of(route: Route, opening: Opening, *, asgi: bool = False) -> Codec:
    """The codec of an admitted client; `load` came before, if the client speaks Protobuf.

    `asgi` is set behind an ASGI server, which makes the frames of a WebSocket itself.
    """
    if not opening.protobuf:
        if route.enveloping is not None and opening.wanted is not None and opening.wanted.envelope:
            return route.enveloping[asgi]
        return route.asgi_codec if asgi else route.codec
    from repeater.protocol.centrifugo import protobuf_codecs as codecs

    if route.media_type:
        return codecs.CENTRIFUGE_PROTOBUF_STREAM
    return codecs.CENTRIFUGE_PROTOBUF_ASGI if asgi else codecs.CENTRIFUGE_PROTOBUF


def read_emulation(body: bytes) -> EmulationRequest[bytes]:
    """Read the body of `POST /emulation`; `load` came before.

    Raises:
        DisconnectError: 3501 for a body that is not Protobuf.
    """
    from repeater.protocol.centrifugo.protobuf_reader import read_emulation

    return read_emulation(body)
