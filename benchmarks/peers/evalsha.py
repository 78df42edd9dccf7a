"""The floor of a publish call on Valkey: the same script by the same pipe, one after the other.

A connection sends how many seconds to measure. The answer is a line of JSON with the median of one
call, in milliseconds. Nothing else runs in this process.
Usage: python -m benchmarks.peers.evalsha FOLDER PORT
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import trio

from benchmarks.generator.wire import event
from benchmarks.peers.valkey import SOCKET
from repeater.brokers.valkey.keys import Keys
from repeater.brokers.valkey.scripts import PUBLISH
from repeater.valkey.dial import Greeting, Waited, dial
from repeater.valkey.url import Address

_LIFETIME: Final = 600  # seconds: a floor ends soon after its benchmark in any case


async def _calls_ms(path: str, seconds: float) -> float:
    names = Keys("floor").names("news-1")
    took = list[int]()
    async with dial(Address(path=path), Greeting()) as pipe:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            envelope = b"12345678d" + event(len(took))
            arguments = (b"PUBLISH", "epoch", b"o", 100, 3_600_000, 3_600_000)
            start, waited = time.monotonic_ns(), Waited()
            PUBLISH.ask(
                pipe.ask,
                (names.meta, names.stream),
                (*arguments, b"k", names.bus, envelope),
                waited.tell,
            )
            await waited.answer()
            took.append(time.monotonic_ns() - start)
    return statistics.median(took) / 1e6


async def _serve(path: str, stream: trio.SocketStream) -> None:
    """Answer one client; it is the benchmark's own, so no deadline is needed."""
    async for line in stream:
        found = {"evalsha_ms": await _calls_ms(path, float(line))}
        await stream.send_all(json.dumps(found).encode() + b"\n")


async def _main(path: str, port: int) -> None:
    await trio.serve_tcp(partial(_serve, path), port, host="127.0.0.1")


if __name__ == "__main__":
    signal.alarm(_LIFETIME)
    trio.run(_main, str(Path(sys.argv[1]) / SOCKET), int(sys.argv[2]))
