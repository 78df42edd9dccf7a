"""The codecs of WebSockets that negotiated compression: those of other WebSockets, deflated.

Listeners are grouped by codec. So what is written for one group is compressed once, too. Whether a
channel's publications are compressed is a matter of the subscription's codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from repeater.protocol.centrifugo.codecs import Codec, DeltaCodec
from repeater.protocol.websocket.deflate import Compressor, DeflatedFrame

if TYPE_CHECKING:
    from repeater.options import ChannelOptions

_KEPT: Final = 256  # codecs; each pair of a codec and a size has one


class DeflatedCodec(Codec):
    """Another codec whose frames are compressed. Made by `Compression.codec`."""

    __slots__ = ("_compression", "_min_size", "_plain")

    def __init__(self, compression: Compression, plain: Codec, min_size: int) -> None:
        """Compress what `plain`, a codec of WebSocket frames, writes."""
        frame = plain._frame
        assert frame is not None, "an ASGI server makes the frames itself"
        super().__init__(
            f"{plain.name}-deflate",
            plain.format,
            frame=DeflatedFrame(compression.compressor, frame, min_size),
            ping=plain.ping,
            answered=plain.answered,
        )
        if plain.delta is not None:
            self.delta = DeltaCodec.of(self)
        self._compression = compression
        self._plain = plain
        self._min_size = min_size

    def for_channel(self, options: ChannelOptions) -> Codec:
        """The codec of what carries this channel's publications: as the channel's options say."""
        if not options.compression:
            return self._plain
        if options.compression_min_size in (0, self._min_size):
            return self
        return self._compression.codec(self._plain, options.compression_min_size)


class Compression:
    """The compressor of a server's listeners, and the codecs that use it. Owned by these."""

    def __init__(self) -> None:
        self.compressor: Final = Compressor()
        self._codecs: dict[tuple[Codec, int], DeflatedCodec] = {}

    def codec(self, plain: Codec, min_size: int) -> DeflatedCodec:
        """The codec that compresses what `plain` writes, messages from `min_size` bytes on.

        The same arguments give the same codec. After 256 of them, which takes many reloads with
        other sizes, the oldest is made anew: its connections then form groups of their own.
        """
        codec = self._codecs.get((plain, min_size))
        if codec is None:
            if len(self._codecs) >= _KEPT:
                del self._codecs[next(iter(self._codecs))]
            codec = self._codecs[plain, min_size] = DeflatedCodec(self, plain, min_size)
        return codec
