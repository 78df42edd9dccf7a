"""The JavaScript SDK in headless Chromium, with the browser's own WebSocket.

Commands come in on stdin and are handed to the page; events and results go out on stdout. The
page, the driver and the SDK's bundle come from a server of this process: nothing is fetched.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

HERE = Path(__file__).parent
BUILDS = HERE.parent / "node_modules/centrifuge/dist"
FILES = {
    "/": (HERE / "page.html", "text/html"),
    "/driver.js": (HERE / "driver.js", "text/javascript"),
    "/centrifuge.js": (BUILDS / "centrifuge.js", "text/javascript"),
    "/centrifuge.protobuf.js": (BUILDS / "centrifuge.protobuf.js", "text/javascript"),
}


class Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path not in FILES:
            self.send_error(404)
            return
        path, kind = FILES[self.path]
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        return


def emit(value: Any) -> None:
    print(json.dumps(value), flush=True)


async def main(port: int, chromium: str, *flags: str) -> None:
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium, args=flags) as browser,
    ):
        page = await browser.new_page()
        page.on("pageerror", lambda error: print("page:", error, file=sys.stderr, flush=True))
        await page.expose_function("emit", emit)
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.wait_for_function("() => window.handle !== undefined")

        async def hand_over(line: str) -> None:
            emit(await page.evaluate("command => window.handle(command)", json.loads(line)))

        emit("ready")
        async with asyncio.TaskGroup() as tasks:
            while line := await asyncio.to_thread(sys.stdin.readline):
                tasks.create_task(hand_over(line))


with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asyncio.run(main(server.server_port, *sys.argv[1:]))
    server.shutdown()
