"""What a node offers on one channel: publish, history, presence; each checked, with a deadline.

These are methods of `Node`, in a file of their own because they are an idea of their own. `submit`
is the one way to publish: everything else here and in the API is built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar, overload

import msgspec
import trio

from repeater.brokers.contract import Outcome, Page
from repeater.brokers.receipts import Answer, Receipt
from repeater.causes import Cause, Why
from repeater.clients.feed import FEED_LIMIT, Feed, open_feed
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.fanout.recovery import named_position
from repeater.json_text import JSONText, json_of
from repeater.publication import ClientInfo, Publication, StreamPosition, checked

if TYPE_CHECKING:
    from repeater.clients.contract import ClientNode
    from repeater.options import ChannelOptions

T = TypeVar("T")

# Characters of an idempotency key, a version epoch or the name of a tag: as of a channel's name.
_NAME_LIMIT: Final = 255
_OTHER_EPOCH: Final = Why(
    Cause.RECOVERY,
    "the position is of another epoch: the channel's history was lost or begun anew",
    "read from the start, without since",
)
_VERSION_LIMIT: Final = 2**64  # versions are below; an engine keeps them as unsigned 64 bits
VERSION_WRONG: Final = Why(Cause.REQUEST, "version: must be a whole number from 0 to 2^64 - 1")
"""Why a publication is refused that has no such version."""
_NO_DATA: Final = object()  # None is data: `null`

_DATA_MISSING: Final = Why(Cause.REQUEST, "data: missing or empty", "give data, or b64data")
_TOO_FAR_BACK: Final = Why(
    Cause.REQUEST, "since.offset: nothing is before 0", "leave since out to read from the newest on"
)


class ChannelOperations:
    """The methods of a node that act on one channel."""

    __slots__ = ()

    def submit(
        self: ClientNode,
        publication: Publication,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> Answer[Outcome]:
        """Publish one event without waiting; for code that publishes many events in a row.

        The publication's data is JSON text, in a binary channel any bytes. The node marks it as
        `binary` there.

        Returns the event's position, or a receipt of it where the engine has to wait for a disk or
        a network; `answered` awaits one with a deadline. Events are in their streams in the order
        of submission. The position is None if the channel keeps no history.

        Raises:
            ReplyError: the channel's name, the data, a tag or the info is missing or wrong (107),
                binary data is for a channel of JSON (107),
                a key or a tag's name is longer than 255 characters (107), the version is not an
                unsigned number of 64 bits (107), or the namespace is unknown (102).
            trio.WouldBlock: there is no room, and nothing was published; see `wait_room`.
            IntakeFullError: the node is shutting down, and nothing was published.
            BrokerError: the back end is not available, and nothing was published.
        """
        publication, options = checked_publication(self, publication, idempotency_key)
        try:
            return self.broker.submit(
                publication,
                options,
                idempotency_key=idempotency_key,
                skip_history=skip_history,
            )
        except trio.ClosedResourceError:
            raise _refusal(self) from None  # The intake is closed: nothing happened.
        except BrokerError:
            self.broker_errors["publish"] += 1
            raise

    async def wait_room(self: ClientNode, deadline: float = 0.0) -> float:
        """Wait until one more event may be submitted, for at most the publish timeout.

        The caller submits its event before it awaits anything else. Cancelled, nothing happened.
        Returns the deadline of this wait. A caller whose event was refused again gives it back, so
        that all its turns together have one deadline, and each is a checkpoint.

        Raises:
            IntakeFullError: no room in time, or the node is shutting down. Try later.
            BrokerError: the back end is not available.
        """
        again = deadline > 0
        deadline = deadline or trio.current_time() + self.options.publish_timeout
        with trio.move_on_at(deadline):
            try:
                if again:  # `wait_room` itself need not be one.
                    await trio.lowlevel.checkpoint()
                await self.broker.wait_room()
                return deadline
            except trio.ClosedResourceError:
                pass  # The intake is closed: nothing happened.
            except BrokerError:
                self.broker_errors["publish"] += 1
                raise
        raise _refusal(self)

    async def answered(self: ClientNode, receipt: Receipt[T], asked: str = "") -> T:
        """Wait for the back end's answer, for at most the publish timeout.

        Cancelled, what was asked for may have happened or not. `asked` names the call for the
        count of failures; empty if the caller counts.

        Raises:
            ReplyError: the back end refused.
            BrokerError: the back end failed, or did not answer in time. What was asked for may
                have happened: a publish that may be repeated needs an idempotency key.
        """
        try:
            return await self.answer_deadlines.wait(receipt, self.options.publish_timeout)
        except (trio.TooSlowError, BrokerError) as error:
            if asked:
                self.broker_errors[asked] += 1
            if isinstance(error, BrokerError):
                raise
            late = "no answer in time; what was asked for may have happened"
            raise BrokerError(late) from None

    @overload
    async def publish(
        self: ClientNode,
        publication: Publication,
        /,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
    ) -> StreamPosition | None: ...

    @overload
    async def publish(
        self: ClientNode,
        channel: str,
        data: object,
        /,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        tags: dict[str, str] | None = None,
        delta: bool = False,
        version: int = 0,
        version_epoch: str = "",
    ) -> StreamPosition | None: ...

    async def publish(
        self: ClientNode,
        publication: Publication | str,
        data: object = _NO_DATA,
        /,
        *,
        idempotency_key: str = "",
        skip_history: bool = False,
        tags: dict[str, str] | None = None,
        delta: bool = False,
        version: int = 0,
        version_epoch: str = "",
    ) -> StreamPosition | None:
        """Publish one event, and return its position as soon as the broker has taken it.

        `publish("news", {"n": 1})` publishes any value that JSON can write; `bytes` are JSON text
        already, in a binary channel any bytes. `tags`, `delta`, `version` and `version_epoch` are
        as in a `Publication`, which may be given instead of name and data.

        The position is None if the channel keeps no history. Does not wait for fan-out. Waits for
        room in the intake for at most the publish timeout, and as long again for the answer of a
        back end. Cancelled while it waits for room, nothing was published; later the event may
        have been published.

        Raises:
            TypeError: the data has a part that JSON cannot write (a set, a date).
            ValueError: the data is `nan`, refers to itself, or is deeper than 128 levels.
            ReplyError: as `submit`.
            IntakeFullError: no room in time, or the node is shutting down. Nothing was published;
                try later.
            BrokerError: the back end failed, or did not answer in time. The event may have been
                published.
        """
        if publication.__class__ is not Publication:
            publication = _made(publication, data, tags, delta, version, version_epoch)
        elif data is not _NO_DATA or tags is not None or delta or version or version_epoch:
            raise TypeError("publish takes a Publication, or a channel's name and data")
        deadline = 0.0
        while True:
            try:
                answer = self.submit(
                    publication, idempotency_key=idempotency_key, skip_history=skip_history
                )
            except trio.WouldBlock:
                deadline = await self.wait_room(deadline)
            else:
                return (
                    await self.answered(answer, "publish")
                    if isinstance(answer, Receipt)
                    else answer
                )

    def listen(
        self: ClientNode,
        *channels: str,
        since: StreamPosition | Mapping[str, StreamPosition] | None = None,
        recover: bool = True,
        limit: int = FEED_LIMIT,
    ) -> Feed:
        """Hear channels in this process: `async for publication in node.listen("news")`.

        With an engine in this process (memory, SQLite) nothing is missed from this call on. An
        engine of other machines, or the supervisor of a worker, has to be asked first: nothing is
        missed from the beginning of the block on in `async with node.listen("news") as feed`, or
        from the moment when the first publication is awaited.

        No permission is asked for: this is the program's own code. The feed ends with its block, by
        `close`, as soon as nothing refers to it any more, or with the node; see `Feed`.

        Args:
            channels: Their names. The publications of each come in their order.
            since: Begin with what the history has after this position, for several channels by
                name. `StreamPosition(0, "")` stands for all that the history has.
            recover: Read from the history what did not fit into `limit`, or what the engine lost.
                What is not in the history is a `ListenerBehindError`; without `recover`, all of it.
            limit: Bytes that wait at most: of texts, and 256 for each publication. One publication
                always fits. A part of a history that is read is held beside them.

        Raises:
            ValueError: there is no channel, `since` is not that of these channels, or `limit` is
                not above 0.
            ReplyError: 107 or 102 for a channel's name, 107 for an invalid position, 108 for
                `since` in a channel that keeps no history.
        """
        return open_feed(self, channels, since, recover=recover, limit=limit)

    async def history(
        self: ClientNode,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Page:
        """Return past publications of a channel, and the stream's top at the same moment.

        Cancelled, nothing has changed.

        Args:
            channel: The name of a channel that keeps history.
            since: Only publications after this position; with `reverse` those before it. An
                empty epoch stands for any epoch.
            limit: At most so many publications; None for all, 0 for the top alone.
            reverse: Newest first instead of oldest first.

        Raises:
            ReplyError: 107 or 102 for the channel's name, 108 if it keeps no history, 112 for a
                position of another epoch, 107 for an invalid position and for a reverse read
                from before the first publication.
            BrokerError: the broker failed, or did not answer in time.
        """
        options = self.channels.check_kept("history", channel)
        if since is not None and named_position(since.offset, since.epoch).offset < reverse:
            raise ReplyError(ErrorCode.BAD_REQUEST, why=_TOO_FAR_BACK)
        most = options.history_size
        limit = most if limit is None else min(limit, most)
        with _counting(self, "history"):
            answer = self.broker.history(
                channel, options, since=since, limit=limit, reverse=reverse
            )
        page = await self.answered(answer, "history") if isinstance(answer, Receipt) else answer
        if since is not None and since.epoch not in ("", page[1].epoch):
            raise ReplyError(ErrorCode.UNRECOVERABLE_POSITION, why=_OTHER_EPOCH)
        return page

    async def remove_history(self: ClientNode, channel: str) -> None:
        """Forget the publications of a channel that keeps history; its top and epoch stay.

        Raises:
            ReplyError, BrokerError: as `history`.
        """
        self.channels.check_kept("history", channel)
        with _counting(self, "history"):
            answer = self.broker.remove_history(channel)
        if isinstance(answer, Receipt):
            await self.answered(answer, "history")

    async def presence(self: ClientNode, channel: str) -> Mapping[str, ClientInfo]:
        """Return the members of a channel by connection id.

        Raises:
            ReplyError: 107 or 102 for the channel's name, 108 if it does not keep presence.
            BrokerError: the presence store failed, or did not answer in time.
        """
        self.channels.check_kept("presence", channel)
        with _counting(self, "presence"):
            answer = self.presence_store.members(channel)
        return await self.answered(answer, "presence") if isinstance(answer, Receipt) else answer

    async def presence_stats(self: ClientNode, channel: str) -> tuple[int, int]:
        """Return how many connections, and how many different users, are in a channel.

        Raises:
            ReplyError, BrokerError: as `presence`.
        """
        self.channels.check_kept("presence", channel)
        with _counting(self, "presence"):
            answer = self.presence_store.count(channel)
        return await self.answered(answer, "presence") if isinstance(answer, Receipt) else answer


def _made(
    channel: Publication | str,
    data: object,
    tags: dict[str, str] | None,
    delta: bool,
    version: int,
    version_epoch: str,
) -> Publication:
    """The publication of a name and any data.

    Raises:
        TypeError, ValueError: see `ChannelOperations.publish`.
    """
    if not isinstance(channel, str) or data is _NO_DATA:
        raise TypeError("publish takes a Publication, or a channel's name and data")
    # Bytes may be binary data, which the channel says. Others are plain bytes as well, and not a
    # `JSONText`: then the tags are checked with them.
    text = data if isinstance(data, bytes) else bytes(json_of(data))
    return Publication(
        channel, text, tags=tags, delta=delta, version=version, version_epoch=version_epoch
    )


def checked_publication(
    node: ClientNode, publication: Publication, idempotency_key: str
) -> tuple[Publication, ChannelOptions]:
    """The publication as a broker takes it, and its channel's options.

    Raises:
        ReplyError: see `ChannelOperations.submit`.
    """
    options = node.channels.options(publication.channel)
    data_format = options.publication_data_format
    if data_format == "binary":
        publication = msgspec.structs.replace(publication, binary=True)
    elif publication.binary or not publication.data:  # only binary data may be empty
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_no_json(node, publication))
    # The API and the clients' commands give text that is checked already.
    if type(publication.data) is not JSONText:
        publication = checked(publication)
    if data_format == "json_object" and publication.data.lstrip()[:1] != b"{":
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_no_object(node, publication))
    if len(idempotency_key) > _NAME_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_too_long("idempotency_key"))
    if publication.tags or publication.version_epoch or publication.version:
        _check_what_is_kept(publication)
    if options.delta_publish and not publication.delta:
        publication = msgspec.structs.replace(publication, delta=True)
    return publication, options


def _check_what_is_kept(publication: Publication) -> None:
    """Check what a broker keeps beside the data; the body's limit bounds tags in all.

    Raises:
        ReplyError: a text is too long, or the version is not an unsigned number of 64 bits (107).
    """
    if not 0 <= publication.version < _VERSION_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=VERSION_WRONG)
    if len(publication.version_epoch) > _NAME_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_too_long("version_epoch"))
    if publication.tags and max(map(len, publication.tags)) > _NAME_LIMIT:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_too_long("tags", "the name of a tag"))


def _no_json(node: ClientNode, publication: Publication) -> Why:
    """Why a channel of JSON does not take this data."""
    if not publication.binary:
        return _DATA_MISSING
    text = "data: the channel carries JSON, and this publication is marked as binary"
    where = node.channels.table(publication.channel)
    return Why(Cause.REQUEST, text, f'set publication_data_format = "binary" in {where}')


def _no_object(node: ClientNode, publication: Publication) -> Why:
    where = node.channels.table(publication.channel)
    text = "data: the channel takes JSON objects only"
    return Why(Cause.REQUEST, text, f"see publication_data_format in {where}")


def _too_long(field: str, what: str = "") -> Why:
    """Why a text that a broker keeps is refused."""
    return Why(Cause.REQUEST, f"{field}: {what or 'it'} has more than {_NAME_LIMIT} characters")


def _refusal(node: ClientNode) -> IntakeFullError:
    node.refused += 1
    return IntakeFullError()


@contextmanager
def _counting(node: ClientNode, asked: str) -> Iterator[None]:
    try:
        yield
    except BrokerError:
        if asked:
            node.broker_errors[asked] += 1
        raise
