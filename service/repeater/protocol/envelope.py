"""The envelope of a plain subscriber's event: a JSON object that says which channel it is of.

Example: `{"id":"F1yfJc_W:KZnhGdiU:Ag","channel":"news","offset":1,"epoch":"KZnhGdiU",
"time":1795636800000,"tags":{"k":"v"},"data":{"n":3}}`. What an event does not have is left out:
`offset`, `epoch` and `time` without a number, `tags` without tags, `id` where the client cannot
come back. Binary data is `b64data` in place of `data`. `time` is Unix milliseconds.

On a WebSocket, which has no other kinds of message, an object without `channel` is not an event:
`{"id":...}` moves the client's id on, and `reset` and `disconnect` are members of their own.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Final

import msgspec

from repeater.errors import Disconnect
from repeater.publication import Publication

_encode = msgspec.json.Encoder().encode

_AROUND: Final = 160
"""At most the bytes around data, channel, tags and id: names of fields, an offset of 20 digits, an
epoch of up to 32 characters, a time, and what separates the message from the next one."""


def envelope(publication: Publication, event_id: bytes) -> bytes:
    """The object of one event. An id has no character that JSON escapes."""
    parts = [b'{"id":"', event_id, b'","channel":'] if event_id else [b'{"channel":']
    parts.append(_encode(publication.channel))
    if publication.offset:
        numbers = (publication.offset, _encode(publication.epoch), publication.time)
        parts.append(b',"offset":%d,"epoch":%b,"time":%d' % numbers)
    if publication.tags:
        parts += (b',"tags":', _encode(publication.tags))
    if publication.binary:
        parts += (b',"b64data":"', b64encode(publication.data), b'"}')
    else:
        parts += (b',"data":', publication.data, b"}")
    return b"".join(parts)


def size_of_envelope(publication: Publication) -> int:
    """At most the bytes of a publication's envelope and its frame, without the id."""
    data = len(publication.data)
    size = (4 * data // 3 + 4 if publication.binary else data) + _AROUND
    size += len(_encode(publication.channel))
    return size + len(_encode(publication.tags)) if publication.tags else size


def lone_id(event_id: bytes) -> bytes:
    """The message that only says where the client is."""
    return b'{"id":"%b"}' % event_id


def reset_message(channels: Sequence[str], event_id: bytes) -> bytes:
    """The message that says that events of these channels are missing."""
    reset = _encode({"channels": channels})
    if not event_id:
        return b'{"reset":%b}' % reset
    return b'{"id":"%b","reset":%b}' % (event_id, reset)


def farewell_message(disconnect: Disconnect) -> bytes:
    """The message that says why the connection ends."""
    return b'{"disconnect":%b}' % _encode(disconnect)
