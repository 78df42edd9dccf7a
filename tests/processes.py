"""A server in a process of its own, as the command starts it, and what it says."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from tests.deadlines import PROCESS_STARTS

SERVE = (sys.executable, "-m", "repeater", "serve")

starts_processes = pytest.mark.timeout(3 * PROCESS_STARTS)
"""The time of a test that starts one process or two, and then has to do with them."""


class ServerProcess:
    """A running server. Lives inside `serving`, which ends it."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log = b""
        self._read = 0
        self._more = trio.Event()
        self._over = False

    async def collect(self) -> None:
        """Read what it says until it has ended."""
        assert self.process.stderr is not None
        async for text in self.process.stderr:
            self.log += text
            self._more.set()
            self._more = trio.Event()
        self._over = True
        self._more.set()

    async def line(self, mark: str) -> str:
        """The next line with this in it, once it has come; those before it are passed over."""
        pattern = re.compile(rb"[^\n]*%s[^\n]*\n" % re.escape(mark.encode()))
        with trio.fail_after(PROCESS_STARTS):
            while (found := pattern.search(self.log, self._read)) is None:
                assert not self._over, f"it ended before {mark!r}: {self.log!r}"
                await self._more.wait()
        self._read = found.end()
        return found[0].decode()

    async def port(self) -> int:
        """The port of its first address, from its first line; an engine may be there before."""
        found = re.search(r"://127\.0\.0\.1:(\d+)", await self.line("://127.0.0.1:"))
        assert found is not None
        return int(found[1])

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal that ends it; its status."""
        self.process.send_signal(number)
        with trio.fail_after(PROCESS_STARTS):
            return await self.process.wait()


@asynccontextmanager
async def serving(
    *arguments: str,
    command: Sequence[str] = SERVE,
    variables: Mapping[str, str] | None = None,
    descriptors: int | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[ServerProcess]:
    """A server on a free port, or where it is told to `--listen`; killed at the end if need be.

    Its only settings are the arguments and `variables`; it may have so many descriptors, and
    inherits those of `pass_fds`.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REPEATER_")}

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    where = () if "--listen" in arguments else ("--port", "0")
    process = await trio.lowlevel.open_process(
        [*command, *where, *arguments],
        stderr=subprocess.PIPE,
        preexec_fn=limit,
        pass_fds=pass_fds,
        env={**environment, "REPEATER_COMMENTS": "false", **(variables or {})},
    )
    server = ServerProcess(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.collect)
        try:
            yield server
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    assert process.stderr is not None
    await process.stderr.aclose()
