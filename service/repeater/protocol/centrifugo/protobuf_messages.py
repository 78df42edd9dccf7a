"""The messages of client.proto as classes, made at run time from the compiled descriptor.

Importing this module imports `google.protobuf`, so a process does it for its first Protobuf client
and not before. The descriptor goes into a pool of its own: no other schema in the process can
collide with it. No code is generated; `protobuf_reader` and `protobuf_writer` alone know the fields
of a message, and nothing else touches one.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final, Protocol

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

PACKAGE: Final = "repeater.client"
UNREADABLE: Final = (DecodeError, UnicodeDecodeError)
"""What `FromString` raises. The second one is that of the runtime without its part in C, which is
there for every platform and slow."""


class MessageClass(Protocol):
    """A class of messages. The fields of a message are attributes of the schema's names."""

    def __call__(self, **fields: Any) -> Any:
        """Make a message of its fields: a message among them is a dict of its own fields."""

    def FromString(self, data: bytes, /) -> Any:  # noqa: N802 - the runtime's name
        """Read a message.

        Raises:
            UNREADABLE: the bytes are not a message, have text that is not UTF-8, or more levels
                than the runtime's 100.
        """


def message_class(name: str) -> MessageClass:
    """The class of a message of the schema."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _pool() -> DescriptorPool:
    compiled = FileDescriptorSet.FromString((files("repeater") / "client.binpb").read_bytes())
    pool = DescriptorPool()
    for file in compiled.file:
        pool.Add(file)
    return pool


_POOL: Final = _pool()
