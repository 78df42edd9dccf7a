"""What holds after every test: no socket stays open, and no node keeps anything of a client.

And the browser, for the tests that have a `site` to browse to.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

from repeater import deadlines
from repeater.clients import announcements
from repeater.log import _last_step
from repeater.node import Node
from repeater.testing import UnixClock
from tests.browsing import FLAGS, MISSING, Site, chromium, somebody
from tests.certificates import Authority
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.postgres_servers import postgresql_18
from tests.refusing import RefusedLines

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

# Time is measured by each test's own deadline. An example may take long, and so may finding one,
# when the machine has other things to do.
settings.register_profile(
    "repeater", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("repeater")

_DESCRIPTORS = Path("/proc/self/fd")


def open_sockets() -> set[str]:
    """The sockets of this process, by the names that the kernel gives them."""
    names = set()
    for entry in os.listdir(_DESCRIPTORS):
        try:
            target = os.readlink(_DESCRIPTORS / entry)
        except FileNotFoundError:
            continue  # The descriptor of the listing itself.
        if target.startswith("socket:"):
            names.add(target)
    return names


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL 18 for the whole run; SQLAlchemy's URL of it."""
    with postgresql_18() as url:
        yield url


@pytest.fixture
def slow_clock() -> MockClock:
    """A clock on which a second takes longer than any test: no rate has room for one more."""
    return MockClock(rate=0.01)


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `just test`: one more than cores, because tests wait half of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in a browser are marked so, and have the time that processes take to start."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker(pytest.mark.timeout(3 * PROCESS_STARTS))


@pytest.fixture(autouse=True)
def _log_is_as_before() -> Iterator[None]:
    """What a test changes of the process's log ends with it: commands configure it."""
    root, ours = logging.getLogger(), logging.getLogger("repeater")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    processors = _last_step.processors
    yield
    root.handlers = handlers
    root.setLevel(level)
    ours.setLevel(our_level)
    _last_step.processors = processors


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test: no new socket, and every node's hub, wheel and backlogs are empty.

    No Trio task can be left: the nurseries that a test opened have ended before it has.
    """
    nodes: list[Node] = []
    make = Node.__init__

    def remember(node: Node, *parts: object) -> None:
        make(node, *parts)  # type: ignore[arg-type]
        if node._now is time.time:
            node._now = UnixClock()  # a mock clock moves expiries, too
        nodes.append(node)

    monkeypatch.setattr(Node, "__init__", remember)
    before = open_sockets() if _DESCRIPTORS.is_dir() else set()
    yield
    for node in nodes:
        assert not node.registry.clients
        assert not node.hub.channels
        assert not node.heartbeat._slots
        assert not node.backlogs.backlogged
    if _DESCRIPTORS.is_dir() and open_sockets() - before:
        gc.collect()
        assert not open_sockets() - before


@pytest.fixture(autouse=True)
def _deadlines_come_at_their_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines have no random part, so that a test can say when they come."""
    monkeypatch.setattr(deadlines, "SPREAD", 0.0)


@pytest.fixture
def refused(caplog: pytest.LogCaptureFixture) -> Iterator[RefusedLines]:
    """The lines of the log about refusals, as an operator sees them."""
    with caplog.at_level(logging.INFO, "repeater"):
        yield RefusedLines(caplog)


@pytest.fixture
def announced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins and leaves are held for no time, so that a test need not wait for them."""
    monkeypatch.setattr(announcements, "HOLD", 0.0)


@pytest.fixture(scope="session")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority(certificate_authority: trustme.CA, tmp_path: Path) -> Authority:
    """The authority of all tests, with a certificate for this one."""
    made = Authority(certificate_authority, tmp_path / "cert.pem", tmp_path / "key.pem")
    made.issue()
    return made


@pytest.fixture(autouse=True)
def _http2_needs_tls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test whose way in is `h2` has servers with a certificate: HTTP/2 is negotiated by TLS."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "h2" in callspec.params.values():
        monkeypatch.setattr("tests.serving.authority", request.getfixturevalue("authority"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a module, which are marked `browser` for it."""
    from playwright.sync_api import expect, sync_playwright

    if (program := chromium()) is None:
        pytest.skip(MISSING)
    expect.set_options(timeout=1_000 * LOOP_ANSWERS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=FLAGS, timeout=1_000 * PROCESS_STARTS
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    """Somebody's browser, which begins at the site."""
    with somebody(browser, site.url) as context:
        yield context
