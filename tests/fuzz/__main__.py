"""The command: attack a server for some seconds, and say how to see again what broke it."""

from __future__ import annotations

import socket
import struct
import tempfile
from pathlib import Path
from random import Random

import click
import trio

from tests.fuzz.target import BrokenPromise, Target, attacked
from tests.fuzz.ways import PLAIN, http2

_RESET = struct.pack("ii", 1, 0)
_CHECK_EVERY = 10  # cases
_TOGETHER = 4  # connections of one case


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=300.0, help="How long to attack.")
@click.option("--seed", default=1, help="The same seed makes the same cases.")
@click.option("--case", type=int, help="Only this case of the seed, as a failure names it.")
def main(seconds: float, seed: int, case: int | None) -> None:
    """Send strangers' bytes to a running server, and check that nobody else notices.

    Each case is made of its seed and number alone: by depth, number, size and spelling of its
    values, by every way in, in pieces, on several connections at once, with any kind of end.
    """
    for secure, share in ((False, 0.7), (True, 0.3)):
        trio.run(_attack, secure, seconds * share, seed, case)


async def _attack(secure: bool, seconds: float, seed: int, only: int | None) -> None:
    number = -1 if only is None else only - 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            async with attacked(Path(folder), secure=secure) as target:
                until = trio.current_time() + seconds
                while trio.current_time() < until and (only is None or number < only):
                    number += 1
                    with trio.fail_after(60):
                        await _case(target, Random(f"{seed}:{secure}:{number}"), secure=secure)
                    if number % _CHECK_EVERY == 0 or only is not None:
                        await target.check()
        except* BrokenPromise as group:
            reasons = "; ".join(str(one) for one in _leaves(group))
            name = "TLS" if secure else "plain"
            raise click.ClickException(
                f"seed {seed}, {name}, at most {_CHECK_EVERY} cases before {number}: {reasons}"
            ) from None
    click.echo(f"{'TLS and HTTP/2' if secure else 'plain'}: {number + 1} cases, all promises kept")


def _leaves(group: BaseExceptionGroup[BrokenPromise]) -> list[BaseException]:
    leaves = list[BaseException]()
    for one in group.exceptions:
        leaves += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return leaves


async def _case(target: Target, rng: Random, *, secure: bool) -> None:
    """Some connections at once, each with bytes of its own."""
    async with trio.open_nursery() as nursery:
        for _ in range(rng.randint(1, _TOGETHER)):
            if secure and rng.random() < 0.8:
                nursery.start_soon(_connection, target, http2(rng), Random(rng.random()), "h2")
            else:
                way = rng.choice(PLAIN)
                nursery.start_soon(_connection, target, way(rng), Random(rng.random()))


async def _connection(target: Target, sent: bytes, rng: Random, *protocols: str) -> None:
    """Send the bytes in some pieces, perhaps read, and end in one of the ways there are."""
    try:
        stream = await target.open(*protocols)
        with trio.move_on_after(1):  # a server that does not read is waited for no longer
            for piece in _pieces(sent, rng):
                await stream.send_all(piece)
                if rng.random() < 0.2:
                    await trio.sleep(0.001)
            if rng.random() < 0.6:
                with trio.move_on_after(0.05):
                    while await stream.receive_some(65_536):
                        pass
        await _end(stream, rng)
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        return  # the server ended it first


def _pieces(sent: bytes, rng: Random) -> list[bytes]:
    """The bytes cut at some places; now and then without their end."""
    if rng.random() < 0.1:
        sent = sent[: rng.randrange(len(sent) + 1)]
    places = sorted(rng.randrange(len(sent) + 1) for _ in range(rng.choice((0, 0, 1, 3, 20))))
    return [sent[start:end] for start, end in zip([0, *places], [*places, len(sent)], strict=True)]


async def _end(stream: trio.abc.Stream, rng: Random) -> None:
    """Close, half-close and wait, or reset."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(inner, trio.SocketStream)
    end = rng.random()
    if end < 0.3:
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    elif end < 0.6:
        inner.socket.shutdown(socket.SHUT_WR)
        with trio.move_on_after(0.05):
            while await inner.receive_some(65_536):
                pass
    await trio.aclose_forcefully(stream)


if __name__ == "__main__":
    main()
