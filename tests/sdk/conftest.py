"""The SDKs under test: what is missing is installed before any test's time counts, or said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.sdk.features import PENDING
from tests.sdk.harness import SDK, Driver

HERE = Path(__file__).parent
DRIVERS = HERE / "drivers"
MODULES = HERE / "node_modules"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
INSTALL = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
INSTALL_TIME = 120  # seconds; it takes one
CLIENTS = ("python", "node", "chromium")

_missing: dict[str, str] = {}
"""Why clients cannot be driven here: one line each."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what waits for a feature; see which clients are here for the rest."""
    waiting = [item for item in items if _needs(item) & PENDING]
    if waiting:
        config.hook.pytest_deselected(items=waiting)
        items[:] = [item for item in items if item not in waiting]
    if any("sdk" in getattr(item, "fixturenames", ()) for item in items):
        _missing.update(_look_for_clients())


def _needs(item: pytest.Item) -> set[str]:
    return {name for marker in item.iter_markers("needs") for name in marker.args}


def _look_for_clients() -> dict[str, str]:
    missing = {}
    if (reason := _install_modules()) is not None:
        missing = {"node": reason, "chromium": reason}
    if _chromium() is None:
        missing["chromium"] = "no Chromium here: apt-get install chromium"
    return missing


def _chromium() -> str | None:
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def _install_modules() -> str | None:
    """Install the pinned packages, unless these are there; why not, if they are not."""
    wanted, stamp = (HERE / "package.json").read_text(), MODULES / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return None if shutil.which("node") else "no Node here: apt-get install nodejs"
    if not (shutil.which("node") and shutil.which("npm")):
        return "no Node here: apt-get install nodejs npm"
    try:
        subprocess.run(INSTALL, cwd=HERE, timeout=INSTALL_TIME, check=True, capture_output=True)
    except subprocess.SubprocessError as error:
        return f"npm could not install the SDK (in tests/sdk: npm install): {error}"
    stamp.write_text(wanted)
    return None


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """One driver per SDK, started by the first test that wants it."""
    logs = tmp_path_factory.mktemp("drivers")
    commands = {
        "python": [sys.executable, str(DRIVERS / "python.py")],
        "node": ["node", str(DRIVERS / "node.mjs")],
        "chromium": [sys.executable, str(DRIVERS / "browser.py"), _chromium() or "chromium"],
    }
    made = {name: Driver(name, command, logs / f"{name}.log") for name, command in commands.items()}
    yield made
    for driver in made.values():
        driver.stop()


@pytest.fixture(params=CLIENTS)
def driver(request: pytest.FixtureRequest, drivers: dict[str, Driver]) -> Driver:
    """Each SDK's driver in turn, running."""
    if request.param in _missing:
        pytest.skip(_missing[request.param])
    driver = drivers[request.param]
    driver.start()
    return driver


@pytest.fixture
async def sdk(driver: Driver, nursery: trio.Nursery) -> SDK:
    """Each SDK in turn."""
    nursery.start_soon(driver.read)
    return SDK(driver)
