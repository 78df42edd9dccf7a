"""`publish` and `broadcast`: one event into one channel, or into many.

A body is parsed once. The text of `data` is passed on as it arrived.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import trio

from repeater.api.answers import Failure, Result
from repeater.api.refusals import item_failed, missing, reply_error
from repeater.brokers.contract import Outcome
from repeater.brokers.receipts import Answer, Receipt
from repeater.causes import Cause, Why
from repeater.errors import BrokerError, ErrorCode, IntakeFullError, ReplyError
from repeater.json_text import accepted
from repeater.publication import Publication, StreamPosition

if TYPE_CHECKING:
    from repeater.api.budget import Budget
    from repeater.api.refusals import Fault
    from repeater.node import Node


class PublishBody(msgspec.Struct, frozen=True):
    """`POST /api/publish`, and a line of `POST /api/stream`. Unknown fields are ignored.

    `b64data` is Base64 of the data: of JSON text, or in a binary channel of any bytes.
    """

    channel: str = ""
    data: msgspec.Raw = msgspec.Raw()
    b64data: str = ""
    skip_history: bool = False
    tags: dict[str, str] | None = None
    idempotency_key: str = ""
    delta: bool = False
    version: Annotated[int, msgspec.Meta(ge=0)] = 0
    version_epoch: str = ""


class BroadcastBody(PublishBody, frozen=True):
    """`POST /api/broadcast`: the same event into several channels."""

    channels: list[str] = []


class Responses(msgspec.Struct, frozen=True):
    """The outcome for each channel, in the order of the request."""

    responses: list[Result | Failure]


Submitted = list[Answer[Outcome] | Failure]
"""The outcomes of a broadcast so far, in the order of its channels."""

IN_FLIGHT: Final = 4_096
"""Events of one call that wait for the back end's answer at a time."""

_NOT_BASE64: Final = Why(Cause.REQUEST, "b64data: not Base64")


async def publish(
    node: Node, body: PublishBody, budget: Budget
) -> StreamPosition | dict[str, object]:
    """Publish one event, and return its position if the channel keeps history.

    Two cases publish nothing. An idempotency key that was used before returns the position of the
    first publication. A version that is not newer than the last returns the stream's top.

    Raises:
        ReplyError: the channel or the data is missing or wrong (107), or the channel's namespace
            is unknown (102).
        BrokerError: the back end failed.
        IntakeFullError: fan-out made no room in time.
    """
    await budget.give_way()
    answer = await submit(node, body, body.channel, budget)
    # As `published`, in fewer steps: each call of a back end that waits comes here.
    position = await node.answered(answer, "publish") if isinstance(answer, Receipt) else answer
    return {} if position is None else position


async def published(
    node: Node, answer: Answer[Outcome], budget: Budget
) -> StreamPosition | dict[str, object]:
    """The result of a `publish` that was submitted, as soon as the back end has answered.

    Raises:
        ReplyError, BrokerError: as `outcome_of`.
    """
    position = await outcome_of(node, answer, budget) if isinstance(answer, Receipt) else answer
    return {} if position is None else position


async def outcome_of(node: Node, receipt: Receipt[Outcome], budget: Budget) -> Outcome:
    """The back end's answer to one event. Waits for it, unless an earlier wait timed out.

    Raises:
        ReplyError: the back end refused the event.
        BrokerError: the back end failed, or did not answer in time. The event may have been
            published.
    """
    if not (receipt.settled or budget.awaits_answers):
        node.broker_errors["publish"] += 1
        raise BrokerError("no answer in time; the event may have been published")
    try:
        return await node.answered(receipt, "publish")
    except BrokerError:
        budget.awaits_answers = receipt.settled
        raise


async def broadcast(node: Node, body: BroadcastBody, budget: Budget) -> Responses:
    """Publish the same event into each channel, in their order; each has its own outcome.

    If the intake stays full for the publish timeout, the remaining channels do not wait: each is
    published if there is room, or fails with 111.

    Raises:
        ReplyError: the list of channels is empty (107).
    """
    return await responses(node, await submit_each(node, body, budget), budget)


async def submit_each(node: Node, body: BroadcastBody, budget: Budget) -> Submitted:
    """Submit the event of a `broadcast` into each channel; raises as `broadcast`."""
    if not body.channels:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=missing("channels"))
    submitted: Submitted = []
    for number, channel in enumerate(body.channels):
        oldest = submitted[number - IN_FLIGHT] if number >= IN_FLIGHT else None
        if isinstance(oldest, Receipt):
            submitted[number - IN_FLIGHT] = await _outcome_or_failure(
                node, oldest, budget, number - IN_FLIGHT
            )
        try:
            submitted.append(await submit(node, body, channel, budget))
        except (ReplyError, BrokerError, IntakeFullError) as error:
            submitted.append(_failed(node, budget, error, number))
        await budget.give_way()
    return submitted


async def responses(node: Node, submitted: Submitted, budget: Budget) -> Responses:
    """The result of a `broadcast`, as soon as the back end has answered for each channel."""
    found: list[Result | Failure] = []
    for number, answer in enumerate(submitted):
        outcome = answer
        if isinstance(answer, Receipt):
            outcome = await _outcome_or_failure(node, answer, budget, number)
            await budget.give_way()
        if isinstance(outcome, Failure):
            found.append(outcome)
        else:
            found.append(Result({} if outcome is None else outcome))
    return Responses(found)


async def _outcome_or_failure(
    node: Node, receipt: Receipt[Outcome], budget: Budget, number: int
) -> Outcome | Failure:
    """`outcome_of` for one event of several."""
    try:
        return await outcome_of(node, receipt, budget)
    except (ReplyError, BrokerError) as error:
        return _failed(node, budget, error, number)


def _failed(node: Node, budget: Budget, fault: Fault, number: int) -> Failure:
    """The answer for the channel with this number."""
    at = f"channels[{number}]"
    return item_failed(node, budget, "broadcast", reply_error(fault), at)


def publication_of(body: PublishBody, channel: str) -> Publication:
    """The event that a body describes.

    Raises:
        ReplyError: `b64data` is not Base64 (107).
    """
    data = _decoded(body.b64data) if body.b64data else accepted(body.data)
    return Publication(
        channel,
        data,
        tags=body.tags,
        delta=body.delta,
        version=body.version,
        version_epoch=body.version_epoch,
    )


def _decoded(text: str) -> bytes:
    """Decode Base64 data. Whether it must be JSON says the channel, and so the node checks it."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise ReplyError(ErrorCode.BAD_REQUEST, why=_NOT_BASE64) from None


async def submit(node: Node, body: PublishBody, channel: str, budget: Budget) -> Answer[Outcome]:
    """Submit the event of a body to one channel; between events, the caller gives way.

    A checkpoint only when there is no room. Waits for room, unless an earlier wait of this call
    timed out.

    Raises:
        IntakeFullError: there is no room. And the errors of `publish`.
    """
    publication = publication_of(body, channel)
    deadline = 0.0
    while True:
        try:
            return node.submit(
                publication,
                idempotency_key=body.idempotency_key,
                skip_history=body.skip_history,
            )
        except trio.WouldBlock:
            deadline = await _wait_room(node, budget, deadline)


async def _wait_room(node: Node, budget: Budget, deadline: float) -> float:
    if not budget.patient:
        raise IntakeFullError
    try:
        deadline = await node.wait_room(deadline)
    except IntakeFullError:
        budget.patient = False
        raise
    budget.renew()
    return deadline
