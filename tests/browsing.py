"""A real server process to browse to, and how its browser, headless Chromium, is found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from benchmarks.ports import free_port
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"Chromium is missing ({', '.join(NAMES)}): just clients"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """The first Chromium of the PATH, by the names that distributions give it."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def somebody(browser: Browser, base_url: str | None = None) -> Iterator[BrowserContext]:
    """Somebody's browser. No page may have an error in it at the end."""
    context = browser.new_context(base_url=base_url)
    context.set_default_timeout(1_000 * LOOP_ANSWERS)
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context
    context.close()
    assert errors == []


class Site:
    """A server process that can be killed and started again on the same port and data."""

    def __init__(self, data_dir: Path, *arguments: str, **settings: str) -> None:
        """`settings` are those of the server, by their names."""
        self.data_dir = data_dir
        self.settings = {f"REPEATER_{name.upper()}": value for name, value in settings.items()}
        self.arguments = arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{settings.get('path_prefix', '')}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "repeater", "serve", *self.arguments]
        environment = {**os.environ, "REPEATER_DATA_DIR": str(self.data_dir), **self.settings}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], env=environment, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PROCESS_STARTS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                answer = httpx.get(f"{self.url}/health", timeout=LOOP_ANSWERS)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                assert answer.status_code == 200
                return
        self.stop(signal.SIGKILL)
        raise AssertionError("the server did not start")

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start it, and stop it behind the block."""
        try:
            self.start()
            yield self
        finally:
            self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.send_signal(number)
            try:
                process.wait(LOOP_ANSWERS)
            finally:
                process.kill()
                process.wait()
