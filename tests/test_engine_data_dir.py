"""The data directory of servers with the engine "valkey": commands ask them there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from repeater.config import CurrentSettings, load_settings
from repeater.errors import BrokerError
from repeater.serving.storage import Storage, open_storage
from tests.deadlines import PROCESS_STARTS
from tests.processes import serving
from tests.valkeys import ValkeyServer, valkey


@pytest.fixture
def engine() -> Iterator[ValkeyServer]:
    with valkey() as server:
        yield server


def variables(engine: ValkeyServer, folder: Path) -> Mapping[str, str]:
    return {"REPEATER_ENGINE_URL": engine.unix_url, "REPEATER_DATA_DIR": str(folder)}


@pytest.mark.slow
@pytest.mark.timeout(5 * PROCESS_STARTS)
async def test_workers_restart(engine: ValkeyServer, tmp_path: Path) -> None:
    """The server makes its folder, where `repeater workers restart` finds it."""
    given = variables(engine, tmp_path / "data")
    async with serving("--dev", "--workers", "2", variables=given) as server:
        await server.port()
        command = [sys.executable, "-m", "repeater", "workers", "restart"]
        restart = await trio.run_process(command, capture_stdout=True, env={**os.environ, **given})
        told = [line.partition(" is a new")[0] for line in restart.stdout.decode().splitlines()]
        assert told == ["worker 1 of 2", "worker 2 of 2"]
        assert await server.end() == 0
        assert b"Traceback" not in server.log


@pytest.mark.slow
@pytest.mark.timeout(5 * PROCESS_STARTS)
async def test_a_second_server(engine: ValkeyServer, tmp_path: Path) -> None:
    """It is refused in one line, unless it takes over."""
    given = variables(engine, tmp_path)
    async with serving("--dev", variables=given) as first:
        await first.port()
        async with serving("--dev", variables=given) as second:
            await second.line(f"Error: data_dir: {tmp_path} is in use by process")
            assert await second.process.wait() == 1
        async with serving("--dev", "--take-over", variables=given) as second:
            await second.port()
            with trio.fail_after(PROCESS_STARTS):
                assert await first.process.wait() == 0
            assert await second.end() == 0


async def test_a_storage_lets_go_of_the_folder(tmp_path: Path) -> None:
    """Another server may have it then; it is taken again only if that one has ended."""

    def of_supervisor(*, later: bool = False) -> AbstractAsyncContextManager[Storage]:
        settings = load_settings(engine_url="valkey://localhost", data_dir=str(tmp_path))
        return open_storage(CurrentSettings(settings), later=later, for_workers=True)

    async with of_supervisor() as old:
        async with of_supervisor(later=True) as new:
            await old.let_go()
            await new.open()
            with pytest.raises(BrokerError, match="is in use by process"):
                await old.take_again()
        await old.take_again()
    async with of_supervisor():
        pass
