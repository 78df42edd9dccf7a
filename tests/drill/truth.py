"""What the nodes say at the end that a channel has, beside what their subscribers were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from tests.drill.followers import Follower
from tests.drill.ledger import BrokenPromise
from tests.drill.links import Ended, Http
from tests.drill.target import Target, call

_SETTLES = 60.0  # seconds: a position is checked every 10 s
_MOST = 5_000


@dataclass(frozen=True)
class Stream:
    """What one node answers about the history of a channel."""

    epoch: str
    top: int
    numbers: Sequence[int]
    """Of the publications that are kept, the last one at the top."""


async def stream_at(target: Target, channel: str) -> Stream:
    """Ask a node for a channel's history.

    Raises:
        Ended: it does not answer.
        BrokenPromise: the offsets have a hole, or do not end at the top.
    """
    async with await target.open() as connection:
        answer = await call(Http(connection), "history", {"channel": channel, "limit": _MOST})
    found: list[dict[str, Any]] = answer["publications"]
    top = answer.get("offset", 0)
    offsets = [one["offset"] for one in found]
    if offsets != list(range(top - len(found) + 1, top + 1)):
        raise BrokenPromise(f"{channel} is at {top}, and has {offsets[:1]} to {offsets[-1:]}")
    return Stream(answer.get("epoch", ""), top, [one["data"]["n"] for one in found])


async def wait_agreed(
    targets: Sequence[Target], followers: Sequence[Follower], *, epochs: bool = True
) -> None:
    """Wait until all nodes say the same, and all followers are there and have just that.

    Nobody publishes meanwhile.

    Args:
        targets: The nodes.
        followers: All subscribers.
        epochs: Whether their epochs must be right. A stream that is evicted before its first
            publication has another epoch then, and whoever waits for that one is not told.

    Raises:
        BrokenPromise: they do not come to that, or a follower has something else.
    """
    channels = sorted({one.progress.channel for one in followers})
    reason = ""
    with trio.move_on_after(_SETTLES):
        while True:
            try:
                reason = await _difference(targets, followers, channels, epochs=epochs)
            except (Ended, OSError, trio.BrokenResourceError) as error:
                reason = f"no answer: {error!r}"
            if not reason:
                return
            await trio.sleep(0.3)
    raise BrokenPromise(reason)


async def _difference(
    targets: Sequence[Target],
    followers: Sequence[Follower],
    channels: Sequence[str],
    *,
    epochs: bool,
) -> str:
    """What differs and may still come right; empty if nothing does.

    Raises:
        BrokenPromise: a follower at the top has seen something else.
    """
    for channel in channels:
        stream, *others = [await stream_at(one, channel) for one in targets]
        if any(other != stream for other in others):
            return f"nodes differ: {channel} is {_short(stream)}, {_short(others[0])}"
        for follower in followers:
            at = follower.progress
            if at.channel != channel:
                continue
            right = at.epoch == stream.epoch or not epochs
            if not right or at.offset != stream.top or not follower.live:
                return f"{at.name} is at {at.epoch} {at.offset}, {channel} at {_short(stream)}"
            count = min(len(at.recent), len(stream.numbers))
            if list(at.recent)[len(at.recent) - count :] != stream.numbers[-count:][:count]:
                raise BrokenPromise(f"{at.name} has seen something else than {channel} has")
    return ""


def _short(stream: Stream) -> str:
    return f"{stream.epoch} {stream.top}"
