"""What a server keeps across restarts, as its settings say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from repeater.access.grants import ConnectionGrant, Denial
from repeater.access.sqlite_denials import open_sqlite_denials
from repeater.api.methods import call
from repeater.brokers.memory import MemoryBroker
from repeater.brokers.sqlite import opening
from repeater.brokers.sqlite.broker import SQLiteBroker
from repeater.brokers.sqlite.errors import JournalError
from repeater.brokers.sqlite.file_system import network_file_system
from repeater.brokers.sqlite.journal import Journal
from repeater.config import ConfigError, load_settings
from repeater.errors import FORCE_DISCONNECT
from repeater.node import Node
from repeater.publication import Publication, StreamPosition
from repeater.serving import server as serving
from repeater.serving.server import open_server
from tests.refusing import usual_error

pytestmark = pytest.mark.timeout(60)


BLOCKED = {"result": {"changed": True, "num_clients": 0, "num_subs": 0}}


async def ask(node: Node, method: str, **fields: object) -> Any:
    answer = await call(node, method, msgspec.json.encode(fields))
    return msgspec.json.decode(answer.body)


def settings_of(folder: Path | None = None, **more: Any) -> Any:
    if folder is not None:
        more["data_dir"] = str(folder)
    return load_settings(dev=True, port=0, **more)


async def test_history_and_epoch_survive_a_restart(tmp_path: Path) -> None:
    """With `data_dir` alone: whoever comes back after the restart misses nothing."""
    async with open_server(settings_of(tmp_path)) as server:
        node = server.node
        first = await node.publish(Publication("c", b"1"))
        await node.publish(Publication("c", b"2"), idempotency_key="k")
    assert first is not None
    async with open_server(settings_of(tmp_path)) as server:
        node = server.node
        assert isinstance(node.broker, SQLiteBroker)
        found, top = await node.history("c", since=first)
        assert [one.data for one in found] == [b"2"]
        assert top == StreamPosition(2, first.epoch)
        assert await node.publish(Publication("c", b"2"), idempotency_key="k") == top
        assert await node.publish(Publication("c", b"3")) == StreamPosition(3, first.epoch)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, "memory"),
        ({"data_dir": "x"}, "sqlite"),
        ({"data_dir": "x", "engine": "memory"}, "memory"),
        ({"engine": "sqlite"}, "sqlite"),
        ({"engine": ""}, "memory"),
    ],
)
def test_the_engine_that_is_meant(more: dict[str, str], wanted: str) -> None:
    """A directory that was chosen is a wish for durable history, unless the engine says no."""
    settings = load_settings(**more)
    assert settings.engine_in_force == wanted
    assert (settings.kept_in is None) is (wanted == "memory" and "data_dir" not in more)


@pytest.mark.parametrize("more", [{}, {"engine": "memory", "data_dir": "x"}])
def test_durability_needs_a_file(more: dict[str, str]) -> None:
    """It promises something that memory cannot keep."""
    with pytest.raises(ConfigError, match='durability: needs the engine "sqlite"'):
        load_settings(durability="disk", **more)


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_limits_over_all_nodes_need_an_engine_that_nodes_share(engine: str) -> None:
    """An engine of one server cannot count what other nodes have."""
    with pytest.raises(ConfigError, match=r'limits\.scope: needs the engine "valkey"'):
        load_settings(engine=engine, limits={"scope": "cluster"})
    assert load_settings(engine=engine, limits={"scope": "node"}).engine == engine


async def test_a_reload_changes_no_engine(tmp_path: Path) -> None:
    """A `data_dir` that was left out at the start stays left out, whatever else is reloaded."""
    async with open_server(settings_of()) as server:
        changes = await server.reload(settings_of(tmp_path, denial_limit=5))
        assert changes.live == ("denial_limit",)
        assert "data_dir" in changes.restart
        assert server.node.options.denial_limit == 5
        again = await server.reload(settings_of(denial_limit=6))
        assert again.live == ("denial_limit",)
        assert again.restart == ()


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_a_second_server_is_refused(tmp_path: Path, engine: str) -> None:
    """On the same directory, in one line that names the process of the first."""
    async with open_server(settings_of(tmp_path, engine=engine)):
        with pytest.raises(ConfigError) as found:
            async with open_server(settings_of(tmp_path)):
                raise AssertionError("it started")
    (line,) = str(found.value).splitlines()
    assert f"data_dir: {tmp_path} is in use by process {os.getpid()}" in line
    async with open_server(settings_of(tmp_path)):
        pass


async def test_an_outage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing is error 100, the server is not ready and says why, and blocks are refused."""

    def failing(journal: Journal) -> None:
        raise JournalError("disk full")

    async with open_server(settings_of(tmp_path)) as server:
        monkeypatch.setattr(Journal, "transaction", failing)
        error = {"code": 100, "message": "internal server error"}
        published = await ask(server.node, "publish", channel="c", data=1)
        blocked = await ask(server.node, "block_user", user="ann")
        assert usual_error(published["error"]) == usual_error(blocked["error"]) == error
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            answer = await client.get("/health/ready")
            assert answer.status_code == 503
            assert answer.json() == {"status": "broker down", "reason": "history: disk full"}
            assert "repeater_broker_up 0.0" in (await client.get("/metrics")).text


async def test_denials_move_into_the_history_once(tmp_path: Path) -> None:
    """What an earlier version kept stays in force; what is lifted later does not come back."""
    async with open_sqlite_denials(tmp_path / "denials.sqlite3") as store:
        await store.save(Denial(user="ann"))
        await store.save(Denial(user="bob"))
        await store.save(Denial(token_id="t", expire_at=2**40))
    async with open_server(settings_of(tmp_path)) as server:
        denials = server.node.denials
        assert denials.refusal(ConnectionGrant("ann")) is FORCE_DISCONNECT
        assert len(denials) == 3
        assert await ask(server.node, "unblock_user", user="ann") == {"result": {"changed": True}}
        assert await ask(server.node, "block_user", user="cid") == BLOCKED
    assert not (tmp_path / "denials.sqlite3").exists()
    async with open_server(settings_of(tmp_path)) as server:
        denials = server.node.denials
        assert denials.refusal(ConnectionGrant("ann")) is None
        for user in ("bob", "cid"):
            assert denials.refusal(ConnectionGrant(user)) is FORCE_DISCONNECT


async def test_memory_keeps_denials_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of history beside them is not read, and the log says so."""
    async with open_server(settings_of(tmp_path)) as server:
        await server.node.publish(Publication("c", b"1"))
    async with open_server(settings_of(tmp_path, engine="memory")) as server:
        assert isinstance(server.node.broker, MemoryBroker)
        assert await ask(server.node, "block_user", user="ann") == BLOCKED
    assert any("are not used" in record.getMessage() for record in caplog.records)
    async with open_server(settings_of(tmp_path, engine="memory")) as server:
        assert server.node.denials.refusal(ConnectionGrant("ann")) is FORCE_DISCONNECT


async def test_a_broker_that_a_program_brings_wins(tmp_path: Path) -> None:
    """Then the directory has no history, and keeps denials as before."""
    broker = MemoryBroker()
    async with open_server(settings_of(tmp_path), broker=broker) as server:
        assert server.node.broker is broker
        assert await ask(server.node, "block_user", user="ann") == BLOCKED
    assert {*os.listdir(tmp_path)} == {"lock", "denials.sqlite3"}


async def test_it_listens_once_history_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody connects to a server that cannot answer yet."""
    steps: list[str] = []
    load, listen = opening._load, serving._listening

    def loading(*arguments: Any) -> None:
        load(*arguments)
        steps.append("loaded")

    def listening(*arguments: Any) -> Any:
        steps.append("listens")
        return listen(*arguments)

    monkeypatch.setattr(opening, "_load", loading)
    monkeypatch.setattr(serving, "_listening", listening)
    async with open_server(settings_of(tmp_path)):
        assert steps == ["loaded", "listens"]


async def test_a_load_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    """A signal does not wait for the end of a large file; the folder is free again."""
    async with open_server(settings_of(tmp_path)) as server:
        for _ in range(10):
            await server.node.publish(Publication("c", b"1"))
    with trio.move_on_after(0) as scope:
        async with open_server(settings_of(tmp_path)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    async with open_server(settings_of(tmp_path)) as server:
        assert (await server.node.history("c", limit=0))[1].offset == 10


def test_a_network_file_system_is_known_by_its_mount(tmp_path: Path) -> None:
    """By the device of the folder, whatever the mount point is called."""
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / /a rw - nfs4 b rw\n2 0 {number} / /a\\040b rw x:1 - cifs c rw\n")
    assert network_file_system(tmp_path, mounts) == "cifs"
    mounts.write_text(f"2 0 {number} / / rw x:1 y:2 - ext4 /dev/x rw\n")
    assert network_file_system(tmp_path, mounts) == ""
    assert network_file_system(tmp_path, tmp_path / "missing") == ""
