"""A server with two workers, in real processes: nobody who speaks to it sees how many there are."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest
import trio
import trio_websocket

from tests.deadlines import PROCESS_STARTS
from tests.http_streams import Peer
from tests.processes import serving, starts_processes
from tests.signing import SECRET

pytestmark = [starts_processes, pytest.mark.slow]

CONNECTIONS = 16  # with two workers, all on one of them once in 32,768 runs
HELD = {
    "REPEATER_TOKEN__HMAC_SECRET_KEY": SECRET,
    "REPEATER_CHANNEL__PRESENCE": "true",
    "REPEATER_CHANNEL__HISTORY_SIZE": "10",
    "REPEATER_CHANNEL__HISTORY_TTL": "1m",
    "REPEATER_COMMENTS_SECRET_KEY": "x" * 16,
    "REPEATER_ALLOWED_HOSTS": "*",
}


def token(user: str) -> str:
    return jwt.encode({"sub": user}, SECRET, algorithm="HS256")


class Server:
    """A server, to which every request goes by a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._url = f"http://127.0.0.1:{port}"

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self._url, timeout=PROCESS_STARTS) as client:
            return await client.request(method, path, **more)

    async def call(self, name: str, **body: Any) -> Any:
        """The result of a call of the API."""
        answer = (await self.request("POST", f"/api/{name}", json=body)).json()
        assert "error" not in answer, answer
        return answer["result"]

    async def metrics(self, name: str) -> dict[str, float]:
        """The samples of a metric by the worker, the empty text for none, added up."""
        text = (await self.request("GET", "/metrics")).text
        found: dict[str, float] = {}
        for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE):
            number = re.search(r'worker="(\w+)"', labels)
            key = number[1] if number else ""
            found[key] = found.get(key, 0) + float(value)
        return found


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Server, int]]:
    """A server with two workers, and the id of its supervisor."""
    variables = {**HELD, "REPEATER_DATA_DIR": str(tmp_path)}
    async with serving("--dev", "--comments", "--workers", "2", variables=variables) as process:
        server = Server(await process.port())
        with trio.fail_after(PROCESS_STARTS):
            yield server, process.process.pid
        assert await process.end() == 0
        assert b"Traceback" not in process.log


@asynccontextmanager
async def connected(server: Server, user: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A user's connection that hears `news`."""
    # A stream of our own, as the library leaves one open whose peer has closed it.
    async with (
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
        trio.open_nursery() as nursery,
        await trio_websocket.wrap_client_stream(
            nursery, stream, "t", "/connection/websocket"
        ) as socket,
    ):
        command = {"connect": {"token": token(user)}, "id": 1}
        await socket.send_message(json.dumps(command))
        assert "connect" in json.loads(await socket.get_message())
        await socket.send_message('{"subscribe":{"channel":"news"},"id":2}')
        assert "subscribe" in json.loads(await socket.get_message())
        yield socket


async def line_of(peer: Peer) -> Any:
    """The next message of a stream."""
    while True:
        line = await peer.until(b"\n")
        if line.strip():
            return json.loads(line)


async def all_up(server: Server) -> None:
    """Wait until both workers answer."""
    while sum((await server.metrics("repeater_worker_up")).values()) < 2:  # noqa: ASYNC110
        await trio.sleep(0.1)


async def end_of(socket: trio_websocket.WebSocketConnection) -> int:
    """The code with which it is closed."""
    with pytest.raises(trio_websocket.ConnectionClosed) as closed:
        await socket.get_message()
    reason = closed.value.reason
    return 0 if reason is None else reason.code


async def check_calls(server: Server) -> None:
    """Counts, presence and metrics are those of one server; a call ends connections anywhere."""
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(connected(server, "ann" if number else "bob"))
            for number in range(CONNECTIONS)
        ]
        spread = await server.metrics("repeater_connections")
        assert set(spread) == {"1", "2"}
        assert sum(spread.values()) == CONNECTIONS
        for _ in range(4):
            assert await server.metrics("repeater_users") == {"": 2}
            assert await server.metrics("repeater_channels") == {"": 1}
            channels = (await server.call("channels"))["channels"]
            assert channels == {"news": {"num_clients": CONNECTIONS}}
            (info,) = (await server.call("info"))["nodes"]
            assert (info["num_clients"], info["num_users"]) == (CONNECTIONS, 2)
            stats = await server.call("presence_stats", channel="news")
            assert stats == {"num_clients": CONNECTIONS, "num_users": 2}
        await server.call("publish", channel="news", data=1)
        for socket in sockets:
            assert json.loads(await socket.get_message())["push"]["pub"]["data"] == 1
        await server.call("unsubscribe", user="ann", channel="news")
        for socket in sockets[1:]:
            assert json.loads(await socket.get_message())["push"]["unsubscribe"]["code"] == 2_000
        assert (await server.call("presence_stats", channel="news"))["num_clients"] == 1
        await server.call("block_user", user="ann")
        for socket in sockets[1:]:
            assert await end_of(socket) == 3_503
        assert sum((await server.metrics("repeater_connections")).values()) == 1
        assert await server.metrics("repeater_users") == {"": 1}
        assert await server.metrics("repeater_denials") == {"": 1}
        await server.call("disconnect", user="bob")
        assert await end_of(sockets[0]) == 3_503


async def check_emulation(server: Server, supervisor: int) -> None:
    """Each `/emulation` is taken, and answered on the stream; a killed worker's session is not."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        peer = Peer(stream)
        connect = json.dumps({"connect": {"token": token("eve")}, "id": 1})
        await peer.request("POST", "/connection/http_stream", connect)
        reply = (await line_of(peer))["connect"]
        named = {"session": reply["session"], "node": reply["node"]}
        emulate = partial(server.request, "POST", "/emulation")
        for number in range(2, 12):
            data = f'{{"presence_stats":{{"channel":"news"}},"id":{number}}}'
            assert (await emulate(json={**named, "data": data})).status_code == 204
            assert (await line_of(peer))["id"] == number
        before = await server.metrics("repeater_connections_opened_total")
        os.kill(psutil.Process(supervisor).children()[0].pid, signal.SIGKILL)
        await all_up(server)
        assert await server.metrics("repeater_connections_opened_total") == before
        # Its worker has lived on, or was the one.
        assert (await emulate(json={**named, "data": "{}"})).status_code in (204, 404)


async def check_comments(server: Server) -> None:
    """A session, a list and the counter are the same on each worker; a page hears at once."""
    account = {"email": "ann@example.com", "password": "hunter2hunter", "name": "Ann"}
    await server.request("POST", "/api/signup", data=account)
    signed_in = await server.request("POST", "/api/signin", data=account)
    cookies = {"Cookie": "; ".join(f"{k}={v}" for k, v in signed_in.cookies.items())}
    url = f"ws://127.0.0.1:{server.port}/ws?channel=comments"
    async with AsyncExitStack() as stack:
        pages = [
            await stack.enter_async_context(trio_websocket.open_websocket_url(url))
            for _ in range(CONNECTIONS)
        ]
        for number in range(6):
            me = (await server.request("GET", "/api/me", headers=cookies)).json()
            assert me["user"]["name"] == "Ann"
            text = {"text": f"number {number}"}
            await server.request("POST", "/api/new_comment", data=text, headers=cookies)
            for page in pages:
                assert json.loads(await page.get_message())["text"] == text["text"]
            for _ in range(3):
                found = (await server.request("GET", "/api/comments")).json()
                assert [one["text"] for one in found][-1] == text["text"]
    first = int((await server.request("GET", "/stats/counter")).text)
    for number in range(1, 5):
        assert int((await server.request("GET", "/stats/counter")).text) == first + number


async def event_of(peer: Peer) -> tuple[str, Any]:
    """The id and the data of the next event of an event stream."""
    while True:
        block = (await peer.until(b"\n\n")).decode()
        fields = dict(re.findall(r"^(id|data): ?(.*)$", block, re.MULTILINE))
        if "data" in fields:
            return fields.get("id", ""), json.loads(fields["data"])


async def check_streams(server: Server) -> None:
    """An event stream is resumed on whichever worker takes it; the console is on each."""
    last = ""
    for number in range(8):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            peer = Peer(stream)
            more = {"Last_Event_ID": last} if last else {}
            await peer.request("GET", "/events?channel=stream", **more)
            if last:  # what was published while nobody was connected
                assert (await event_of(peer))[1] == {"missed": number - 1}
            await server.call("publish", channel="stream", data={"here": number})
            last, data = await event_of(peer)
            assert data == {"here": number}
            assert last
        await server.call("publish", channel="stream", data={"missed": number})
        assert (await server.request("GET", "/console")).status_code == 200


async def test_two_workers_are_one_server(tmp_path: Path) -> None:
    """For back ends and scrapers, for emulated clients, and for the bundled application."""
    async with running(tmp_path) as (server, supervisor):
        await check_calls(server)
        await check_streams(server)
        await check_comments(server)
        await check_emulation(server, supervisor)
