"""Both servers with equivalent settings, and the back end and issuer that they ask."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h11
import trio

from tests.deadlines import PROCESS_STARTS
from tests.differential import keys, settings
from tests.differential.links import request
from tests.processes import serving


class Servers(NamedTuple):
    """The ports of both."""

    centrifugo: int
    repeater: int


@asynccontextmanager
async def both(folder: Path, program: str) -> AsyncIterator[Servers]:
    """Run `program`, which is Centrifugo, and Repeater, while the block lasts."""
    async with trio.open_nursery() as nursery:
        open_listeners = partial(trio.serve_tcp, host="127.0.0.1")
        listeners = await nursery.start(open_listeners, _answer, 0)
        address = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        said = (f"{address}/keys", address, keys.rsa_pem(), keys.ecdsa_pem())
        ours = settings.write(folder, "repeater.toml", settings.repeater(*said))
        async with (
            _centrifugo(folder, program, said) as theirs,
            serving("--config", str(ours)) as process,
        ):
            yield Servers(theirs, await process.port())
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _centrifugo(
    folder: Path, program: str, said: tuple[str, str, str, str]
) -> AsyncIterator[int]:
    port = _free_port()
    path = settings.write(folder, "centrifugo.json", settings.centrifugo(port, *said))
    process = await trio.lowlevel.open_process(
        [program, "--config", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(PROCESS_STARTS):
            while not await _listens(port):
                assert process.poll() is None, "centrifugo has ended"
                await trio.sleep(0.05)
        yield port
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def _listens(port: int) -> bool:
    try:
        await (await request(port, "GET", "/")).aclose()
    except OSError:
        return False
    return True


async def _answer(stream: trio.SocketStream) -> None:
    """Answer what the servers ask on one connection, until they close it."""
    async with stream:
        http = h11.Connection(h11.SERVER)
        path, body = "", b""
        while True:
            while (event := http.next_event()) is h11.NEED_DATA:
                try:
                    http.receive_data(bytes(await stream.receive_some(65_536)))
                except trio.BrokenResourceError:
                    return
            if isinstance(event, h11.Request):
                path, body = event.target.decode(), b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                text = json.dumps(_said(path, body)).encode()
                pairs = [("Content-Length", str(len(text))), ("Content-Type", "application/json")]
                head = h11.Response(status_code=200, headers=pairs)
                parts = (head, h11.Data(data=text), h11.EndOfMessage())
                await stream.send_all(b"".join(http.send(one) or b"" for one in parts))
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()
            else:
                return


def _said(path: str, body: bytes) -> Any:
    """The back end's answer: what the question brings along as `data.answer`, or consent."""
    if path == "/keys":
        return keys.key_set()
    question = json.loads(body)
    data = question.get("data")
    if "b64data" in question:
        data = _read(base64.b64decode(question["b64data"]))
    if isinstance(data, dict) and "answer" in data:
        return data["answer"]
    return {"result": {"data": {"heard": data}} if path == "/rpc" else {}}


def _read(data: bytes) -> Any:
    """Whatever a Protobuf client sent, which need not be JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return data.hex()
