"""The SDKs under test. `just clients` installs them; a missing one is skipped, in one line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import trio

from tests.browsing import FLAGS, MISSING, NAMES, chromium
from tests.deadlines import PROCESS_STARTS
from tests.sdk import harness
from tests.sdk.harness import SDK, Driver

HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
MODULES = HERE / "node_modules"
CLIENTS = ("python", "node", "chromium")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Before tests are chosen by marks: mark ours. After: skip clients that are not here."""
    for item in items:
        if client := _client(item):
            # The first of them starts the client, which a cold machine takes long to load.
            item.add_marker(pytest.mark.timeout(2 * PROCESS_STARTS))
        if client == "chromium":
            item.add_marker("browser")
    yield
    _skip_missing_clients(config, items)


def _skip_missing_clients(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each client that is not here, skip one test with the reason and leave out the others."""
    left_out: list[pytest.Item] = []
    for client, reason in _missing_clients(items).items():
        first, *others = [item for item in items if _client(item) == client]
        # One line says it; the summary has a line for every test that is skipped.
        first.add_marker(pytest.mark.skip(f"and {len(others)} more: {reason}"))
        left_out += others
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def _missing_clients(items: list[pytest.Item]) -> dict[str, str]:
    """Why clients that these tests want cannot be driven here."""
    wanted = {_client(item) for item in items}
    missing = {}
    if wanted & {"node", "chromium"} and (reason := _missing_modules()) is not None:
        missing = {"node": reason, "chromium": reason}
    if chromium() is None:
        missing["chromium"] = MISSING
    return {client: reason for client, reason in missing.items() if client in wanted}


def _client(item: pytest.Item) -> str:
    """The client that a test wants, by its parameter."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return ""
    return str(callspec.params.get("driver", callspec.params.get("client", "")))


def _missing_modules() -> str | None:
    """Why the pinned packages cannot be used; None if they can."""
    if not shutil.which("node"):
        return "no Node here: just clients"
    stamp = MODULES / ".installed"
    if not stamp.exists() or stamp.read_text() != (HERE / "package.json").read_text():
        return "the SDKs of tests/sdk/package.json are not installed: just clients"
    return None


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """One driver per SDK, started by the first test that wants it."""
    logs = tmp_path_factory.mktemp("drivers")
    commands = {
        "python": [sys.executable, str(DRIVERS / "python.py")],
        "node": ["node", str(DRIVERS / "node.mjs")],
        "chromium": [sys.executable, str(DRIVERS / "browser.py"), chromium() or NAMES[0], *FLAGS],
    }
    made = {name: Driver(name, command, logs / f"{name}.log") for name, command in commands.items()}
    yield made
    for driver in made.values():
        driver.stop()


@pytest.fixture(params=CLIENTS)
def driver(request: pytest.FixtureRequest, drivers: dict[str, Driver]) -> Driver:
    """Each SDK's driver in turn, running."""
    driver = drivers[request.param]
    driver.start()
    return driver


@pytest.fixture
async def sdk(driver: Driver, nursery: trio.Nursery) -> SDK:
    """Each SDK in turn."""
    nursery.start_soon(driver.read)
    return SDK(driver)


@pytest.fixture(params=[1, 2], ids=["process", "workers"], autouse=True)
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conversation goes on with one process and with two workers: nobody sees which."""
    monkeypatch.setattr(harness, "workers", request.param)
