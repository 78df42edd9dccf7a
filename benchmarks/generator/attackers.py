"""The handle of the attackers' process: begins an attack, ends it, and returns its tally."""

from __future__ import annotations

import subprocess
import sys
from typing import Final, Self

import msgspec

from benchmarks.generator.attack import Order, Tally
from benchmarks.generator.wire import WireError
from benchmarks.servers import ROOT

_STOP: Final = 60.0  # seconds to reset its connections; on a busy core its priority is low


class Attackers:
    """One process, on the generator's core. Owned by a `with` block, which ends it."""

    def __init__(self) -> None:
        """Start the process; it waits for its order without any work."""
        self._process = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.generator.attack"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def begin(self, order: Order) -> None:
        """Begin the attack."""
        assert self._process.stdin is not None
        encoded = msgspec.msgpack.encode(order)
        self._process.stdin.write(len(encoded).to_bytes(4) + encoded)
        self._process.stdin.flush()

    def end(self) -> Tally:
        """End the attack: all connections are reset.

        Raises:
            WireError: the attackers failed.
        """
        try:
            said, _ = self._process.communicate(timeout=_STOP)
            return msgspec.msgpack.decode(said, type=Tally)
        except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
            raise WireError("the attackers' process failed") from error
