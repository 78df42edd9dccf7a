"""The SDKs under test. `just clients` installs them; a missing one is skipped, in one line."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import trio

from tests.deadlines import PROCESS_STARTS
from tests.sdk import harness
from tests.sdk.clients import CLIENTS, missing, programs
from tests.sdk.harness import SDK, Driver


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Before tests are chosen by marks: mark ours. After: leave out what cannot be driven."""
    for item in items:
        if client := _client(item):
            # The first of them builds and starts the client: a cold machine takes long to load it.
            item.add_marker(pytest.mark.timeout(3 * PROCESS_STARTS))
            if CLIENTS[client].sdk == "chromium":
                item.add_marker("browser")
    yield
    left_out = [item for item in items if not _applies(item)]
    left_out += _skip_missing([item for item in items if item not in set(left_out)])
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def _applies(item: pytest.Item) -> bool:
    """Whether the SDK has what the test needs, and goes through it with these workers."""
    if not (name := _client(item)):
        return True
    client = CLIENTS[name]
    needed = {feature for mark in item.iter_markers("needs") for feature in mark.args}
    return not needed & client.lacks and (client.workers or _parameter(item, "workers") != 2)


def _skip_missing(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each SDK that is not here, skip one test with the reason; the others, to leave out."""
    left_out: list[pytest.Item] = []
    wanted = {CLIENTS[name].sdk for item in items if (name := _client(item))}
    for sdk in sorted(wanted):
        if (reason := missing(sdk)) is not None:
            first, *others = [
                item for item in items if (name := _client(item)) and CLIENTS[name].sdk == sdk
            ]
            # One line says it; the summary has a line for every test that is skipped.
            first.add_marker(pytest.mark.skip(f"and {len(others)} more of {sdk}: {reason}"))
            left_out += others
    return left_out


def _client(item: pytest.Item) -> str:
    """The client that a test wants, by its parameter; empty for none."""
    return str(_parameter(item, "driver") or _parameter(item, "client") or "")


def _parameter(item: pytest.Item, name: str) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(name)


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """One driver per SDK, started by the first test that wants it."""
    folder = tmp_path_factory.mktemp("drivers")
    made = {
        name: Driver(name, program, folder / f"{name}.log")
        for name, program in programs(folder).items()
    }
    yield made
    for driver in made.values():
        driver.stop()


@pytest.fixture(params=CLIENTS)
def driver(request: pytest.FixtureRequest, drivers: dict[str, Driver]) -> Driver:
    """The driver of each client's SDK in turn, running."""
    driver = drivers[CLIENTS[request.param].sdk]
    driver.start()
    return driver


@pytest.fixture
async def sdk(request: pytest.FixtureRequest, driver: Driver, nursery: trio.Nursery) -> SDK:
    """Each client in turn."""
    nursery.start_soon(driver.read)
    return SDK(driver, protobuf=CLIENTS[_client(request.node)].protobuf)


@pytest.fixture(params=[1, 2], ids=["process", "workers"], autouse=True)
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations go on with one process and with two workers: nobody sees which."""
    monkeypatch.setattr(harness, "workers", request.param)
