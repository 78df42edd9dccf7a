"""A message of an emulated session, which may be on another node than the one that got it.

With workers, a request may reach another worker than the stream's. That worker forwards the message
to the node that the request names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from repeater.brokers.control import Question, UnknownMemberError
from repeater.clients.emulation import OverflowedError, UnknownSessionError
from repeater.clients.questions import Questions, encoded
from repeater.errors import BrokerError, ReplyError

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.clients.contract import ClientNode

_TAKEN: Final = b"taken"
_UNKNOWN: Final = b"unknown"
_FULL: Final = b"full"


class EmulatedMessage(msgspec.Struct, frozen=True):
    """A message of a session; see `Emulation.take`. It is text, or `octets` of Protobuf."""

    session: str
    text: str = msgspec.field(default="", name="message")
    credentials: str = ""
    octets: bytes = b""

    @property
    def message(self) -> str | bytes:
        """The text or the octets."""
        return self.octets or self.text


def emulated(session: str, message: str | bytes, credentials: str) -> EmulatedMessage:
    """A message as it goes to its session's node."""
    if isinstance(message, bytes):
        return EmulatedMessage(session, credentials=credentials, octets=message)
    return EmulatedMessage(session, message, credentials)


async def emulate(node: ClientNode, member: str, message: EmulatedMessage) -> None:
    """Queue a message in its session, which is on the node with this id.

    A checkpoint only if this is another node; it is asked for at most a second. Cancelled, the
    message may have been queued.

    Raises:
        UnknownSessionError, OverflowedError: as `Emulation.take`. The session counts as unknown
            also if its node does not answer: its client then comes back.
    """
    if member == node.id:
        node.emulation.take(message.session, message.message, message.credentials)
        return
    try:
        answer = await node.control.ask(member, Question("emulate", encoded(message)))
    except (UnknownMemberError, ReplyError, BrokerError):
        raise UnknownSessionError from None
    if answer == _FULL:
        raise OverflowedError
    if answer != _TAKEN:
        raise UnknownSessionError


def register(node: ClientNode, questions: Questions) -> None:
    """Have a node take messages that others forward."""

    async def emulate(_asker: Member, body: bytes) -> bytes:
        message = msgspec.msgpack.decode(body, type=EmulatedMessage)
        try:
            node.emulation.take(message.session, message.message, message.credentials)
        except UnknownSessionError:
            return _UNKNOWN
        except OverflowedError:
            return _FULL
        return _TAKEN

    questions.register("emulate", emulate)
