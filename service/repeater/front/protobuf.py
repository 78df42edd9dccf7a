"""The codecs of Protobuf clients, made when the first such client comes.

Rule: nothing imports the Protobuf runtime before. It takes tens of milliseconds and some megabytes,
and a server without such clients needs neither. A thread imports it, so that nobody else waits.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.clients.opening import Opening
    from repeater.front.routes import Route
    from repeater.protocol.centrifugo.codecs import Codec
    from repeater.protocol.centrifugo.commands import EmulationRequest

_CODECS: Final = "repeater.protocol.centrifugo.protobuf_codecs"


async def load() -> None:
    """Have the codecs at hand. A checkpoint only the first time.

    Cancelled, the import goes on in its thread, and the next caller finds it done. No deadline: an
    import reads a few files of this installation.
    """
    if _CODECS not in sys.modules:
        await trio.to_thread.run_sync(import_module, _CODECS, abandon_on_cancel=True)


def codec_of(route: Route, opening: Opening, *, asgi: bool = False) -> Codec:
    """The codec of an admitted client; `load` came before, if the client speaks Protobuf.

    `asgi` is set behind an ASGI server, which makes the frames of a WebSocket itself.
    """
    if opening.protobuf:
        codecs: dict[str, Codec] = import_module(_CODECS).CODECS
        return codecs[f"{opening.name}-asgi" if asgi else opening.name]
    return route.asgi_codec if asgi else route.codec


def read_emulation(body: bytes) -> EmulationRequest[bytes]:
    """Read the body of `POST /emulation`; `load` came before.

    Raises:
        DisconnectError: it is not Protobuf.
    """
    read: Callable[[bytes], EmulationRequest[bytes]] = import_module(_CODECS).read_emulation
    return read(body)
