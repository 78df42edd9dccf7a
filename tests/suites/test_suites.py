"""The tests that published clients bring along, unpatched, against our server on their port.

Each suite wants `localhost:8000` for itself, so each part of it runs in a network of its own, where
nothing else is. `just clients` downloads the sdists, and the Go SDK with its tests; nothing of them
is in this repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from tests.deadlines import PROCESS_STARTS
from tests.sdk.clients import GO, OWN_TOOLCHAIN, missing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SDISTS = ROOT / ".suites"
GO_SDK = "github.com/centrifugal/centrifuge-go"
ISOLATED = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
"""A network of one's own, and nothing in it that outlives the program."""
DURATION = 2 * PROCESS_STARTS
"""Seconds for one part of a suite; 15 here."""

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(DURATION + PROCESS_STARTS)]


class Suite(msgspec.Struct, frozen=True):
    """One client's suite."""

    name: str
    """The client's, as it is installed and as our settings for it are called."""
    folder: str
    """The sdist's, without the version."""
    parts: int
    """How many run at the same time: these tests wait most of their time."""
    arguments: tuple[str, ...]
    """What pytest is told."""
    reaching: int
    """How many of the tests reach our server, at least. Others have fakes, or need none."""


SUITES = (
    # Written for unittest, with helpers at the top that pytest would take for tests.
    Suite("centrifuge-python", "centrifuge_python", 3, ("-o", "python_functions="), 31),
    # Asynchronous tests without a mark, which want `anyio_backend`.
    Suite("cent", "cent", 1, ("-p", "anyio.pytest_plugin", "-o", "anyio_mode=auto"), 14),
)


@pytest.fixture(params=SUITES, ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    """Each suite in turn."""
    chosen: Suite = request.param
    return chosen


@pytest.fixture
def folder(suite: Suite) -> Path:
    """Where the suite was unpacked to."""
    version = importlib.metadata.version(suite.name)
    folder = SDISTS / f"{suite.folder}-{version}"
    if not folder.exists():
        pytest.skip(f"the sdist of {suite.name} {version} is not here: just clients")
    if not (folder / "tests").exists():
        pytest.skip(f"the sdist of {suite.name} {version} has no tests")
    return folder


@pytest.fixture
def _network() -> None:
    """Skip where nobody may have a network of one's own."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    if subprocess.run([*ISOLATED, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no network of one's own for a test here")


@pytest.mark.usefixtures("_network")
async def test_a_suite_passes(
    suite: Suite, folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All of its tests; the run's summary says how many of them have reached our server."""
    async with trio.open_nursery() as nursery:
        for number in range(suite.parts):
            nursery.start_soon(_run, suite, folder, tmp_path / f"{number}", number)
    _judge(suite.name, tmp_path, suite.reaching, record_property)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """The tests of the Go SDK, as a program; the module cache has them."""
    if reason := missing("go"):
        pytest.skip(reason)
    program = tmp_path / "centrifuge-go"
    done = subprocess.run(
        ["go", "test", "-C", str(GO), "-mod=readonly", "-c", "-o", str(program), GO_SDK],
        env={**os.environ, **OWN_TOOLCHAIN, "GOPROXY": "off"},
        capture_output=True,
        text=True,
        timeout=DURATION,
    )
    if "GOPROXY=off" in done.stderr:
        pytest.skip(f"{GO_SDK} is not in the module cache: just clients")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.usefixtures("_network")
async def test_the_suite_of_go_passes(
    compiled: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All but one of its tests."""
    # It publishes bytes that are not JSON to a channel of JSON: error 107 (protocol, section 4.3).
    left_out = "TestPublishProtobuf"
    workplace = tmp_path / "0"
    where = (str(HERE / "centrifuge-go.toml"), str(compiled), str(workplace), left_out)
    await _run_isolated("centrifuge-go", "tests.suites.inside_go", *where)
    _judge("centrifuge-go", tmp_path, 25, record_property)


async def _run(suite: Suite, folder: Path, workplace: Path, number: int) -> None:
    """One part of a suite, in a network of its own; `workplace` is not there yet."""
    where = (str(folder), f"{number}/{suite.parts}", str(workplace))
    # One test that hangs is named before the whole part is given up.
    patience = ("-p", "pytest_timeout", f"--timeout={DURATION / 2}")
    told = ("-q", "--tb=short", "tests", *patience, *suite.arguments)
    settings = str(HERE / f"{suite.name}.toml")
    name = f"part {number} of {suite.name}"
    await _run_isolated(name, "tests.suites.inside", settings, *where, *told)


async def _run_isolated(name: str, module: str, *arguments: str) -> None:
    """Run a module in a network of its own, and judge what it says."""
    with trio.move_on_after(DURATION):
        done = await trio.run_process(
            [*ISOLATED, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            check=False,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            deliver_cancel=_kill,
        )
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, said[-8_000:]
        assert "Traceback" not in said
        return
    pytest.fail(f"{name} does not end")


async def _kill(process: trio.Process) -> None:
    """`unshare` lets no other signal through, and takes all that it started with it."""
    process.kill()


def _judge(
    name: str, folder: Path, reaching: int, record_property: Callable[[str, object], None]
) -> None:
    """Say how many tests have reached our server; so many must have."""
    counts = _counts(folder)
    reached = sum(count > 0 for count in counts.values())
    record_property(
        "suite", f"{name}: {len(counts)} tests passed, {reached} of them reached our server"
    )
    assert reached >= reaching


def _counts(folder: Path) -> dict[str, int]:
    """What the parts have counted, by test."""
    counts: dict[str, int] = {}
    for path in folder.glob("*/counts.json"):
        counts |= json.loads(path.read_text())
    return counts
