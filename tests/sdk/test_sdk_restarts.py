"""Every SDK over a restart of a server with durable history, and over a restored backup."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from repeater.brokers.sqlite.copies import back_up, restore
from repeater.brokers.sqlite.journal import FILE
from repeater.options import ChannelOptions
from tests.sdk.harness import SDK, Peer, publish, running

pytestmark = pytest.mark.sdk

KEPT = ChannelOptions(history_size=100, history_ttl=60, force_recovery=True)

in_thread = trio.to_thread.run_sync


async def told(client: Peer) -> tuple[bool, bool]:
    again = await client.heard("subscribed", "news")
    return again["was_recovering"], again["recovered"]


async def rest(client: Peer, last: str) -> list[Any]:
    """What it hears up to this publication."""
    heard = await client.data("news", 1)
    while heard[-1] != last:
        heard += await client.data("news", 1)
    return heard


async def test_a_restart_keeps_everything(sdk: SDK, tmp_path: Path) -> None:
    """What is published before the client is back is recovered, once and in order."""
    server_of = partial(running, settings={"data_dir": str(tmp_path)}, channel=KEPT)
    async with AsyncExitStack() as stack:
        async with server_of() as server:
            client = await stack.enter_async_context(sdk.client(server))
            await client.subscribe("news")
            await publish(server, "news", 1, 2)
            assert await client.data("news", 2) == [1, 2]
        async with server_of(port=server.port) as server:
            await publish(server, "news", 3, 4)
            assert await told(client) == (True, True)
            await publish(server, "news", "last")
            assert await rest(client, "last") == [3, 4, "last"]


async def test_a_restored_backup_is_told(sdk: SDK, tmp_path: Path) -> None:
    """The client has seen more than the backup has; nothing is claimed to be recovered."""
    folder, backup = tmp_path / "data", tmp_path / "backup"
    server_of = partial(running, settings={"data_dir": str(folder)}, channel=KEPT)
    async with AsyncExitStack() as stack:
        async with server_of() as server:
            client = await stack.enter_async_context(sdk.client(server))
            await client.subscribe("news")
            await publish(server, "news", 1, 2)
        await in_thread(back_up, folder / FILE, backup)
        async with server_of(port=server.port) as server:
            await publish(server, "news", 3, 4)
            assert await told(client) == (True, True)
            assert await client.data("news", 4) == [1, 2, 3, 4]
        await in_thread(restore, folder, backup)
        async with server_of(port=server.port) as server:
            await publish(server, "news", "a", "b", "c")  # Past the offset that the client has.
            assert await told(client) == (True, False)
            await publish(server, "news", "last")
            heard = await rest(client, "last")
            assert heard == ["a", "b", "c", "last"][-len(heard) :]  # Back before or after these.


async def test_an_old_copy_that_was_put_back_by_hand_is_told(sdk: SDK, tmp_path: Path) -> None:
    """The client is ahead of the file, which gives its channel another epoch for everybody."""
    folder = tmp_path / "data"
    server_of = partial(running, settings={"data_dir": str(folder)}, channel=KEPT)
    async with AsyncExitStack() as stack:
        async with server_of() as server:
            client = await stack.enter_async_context(sdk.client(server))
            await client.subscribe("news")
            await publish(server, "news", 1, 2)
        await in_thread(shutil.copy, folder / FILE, tmp_path / "copy")
        async with server_of(port=server.port) as server:
            await publish(server, "news", 3, 4, 5, 6)
            assert await told(client) == (True, True)
            assert await client.data("news", 6) == [1, 2, 3, 4, 5, 6]
            _, seen = await server.node.history("news", limit=0)
        await in_thread(shutil.copy, tmp_path / "copy", folder / FILE)
        async with server_of(port=server.port) as server:
            assert await told(client) == (True, False)
            _, top = await server.node.history("news", limit=0)
            assert (seen.offset, top.offset) == (6, 2)
            assert seen.epoch != top.epoch
            await publish(server, "news", "last")
            assert await rest(client, "last") == ["last"]
