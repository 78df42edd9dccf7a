"""What a server tells systemd about its state: sd_notify(3), a datagram to a Unix socket.

systemd asks for it by `Type=notify` and `WatchdogSec` in the unit. A server that another program
started has nobody to tell, and every call here does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

import trio

from repeater.config import service_manager
from repeater.log import get_logger

_log = get_logger("notify")

_EXTENSION: Final = 30.0  # seconds that systemd waits longer for a start that goes on
_EXTENSIONS_EVERY: Final = 10.0
_PATIENCE: Final = 1.0  # seconds
_WATCHDOG_PART: Final = 0.5  # of systemd's interval, as sd_watchdog_enabled(3) advises


class Notifier:
    """Tells systemd. No call fails: a message that cannot be sent is lost, and logged."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """Know where to send.

        Args:
            address: The path of a Unix socket, or `@` and an abstract name; empty for nobody.
            watchdog: Seconds within which `WATCHDOG=1` must come; 0 if nobody waits for that.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog

    def ready(self) -> None:
        """The server listens, or has read its configuration again."""
        self._tell("READY=1")

    def is_main(self) -> None:
        """This process is the service's main one from now on: it took over from another."""
        self._tell(f"MAINPID={os.getpid()}")

    def mute(self) -> None:
        """Say nothing more: another process has the service."""
        self._address = ""

    def reloading(self) -> None:
        """The server reads its configuration again; `ready` says when that is done."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """The server shuts down."""
        self._tell("STOPPING=1")

    async def extend(self, scope: trio.CancelScope) -> None:
        """Have systemd wait longer for a start that goes on, until the scope is cancelled.

        A file with a long history takes its time to be read.
        """
        with scope:
            while self._address:
                self._tell(f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1e6:.0f}", patience=0.0)
                await trio.sleep(_EXTENSIONS_EVERY)

    async def watch(self, answering: Callable[[], bool]) -> None:
        """Tell the watchdog that all is well for as long as `answering` says so, until cancelled.

        Returns at once if systemd has no watchdog for this process.
        """
        while self._address and self._watchdog:
            if answering():
                self._tell("WATCHDOG=1", patience=0.0)
            await trio.sleep(self._watchdog * _WATCHDOG_PART)

    def _tell(self, message: str, patience: float = _PATIENCE) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # systemd reads at once, unless its queue is full: then a state that it is not told
                # of would fail the unit, and the server stands still for a moment instead.
                sock.settimeout(patience)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            _log.warning("systemd cannot be told", message=message, reason=str(error))


def open_notifier() -> Notifier:
    """A notifier for this process's service manager, if it has one."""
    return Notifier(*service_manager())
