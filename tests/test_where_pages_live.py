"""The recipes of docs/deployment.md, "Where pages live", with the files of deploy/pages.

In headless Chromium, which finds every name below `localhost` on this machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from benchmarks.ports import free_port
from tests.browsing import somebody
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.nginx import NGINX, nginx
from tests.processes import SERVE, starts_processes
from tests.sdk.clients import missing

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "deploy" / "pages"
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
SDK = ROOT / "tests" / "sdk" / "node_modules" / "centrifuge" / "dist" / "centrifuge.js"
SECRET = "the secret of both, 32 bytes or more"
KEY = "k" * 16

pytestmark = starts_processes
with_sdk = pytest.mark.skipif(not SDK.exists(), reason=str(missing("node") or "no SDK"))
with_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def recipe(name: str, **places: str) -> str:
    """A file of deploy/pages, with our places instead of its own, each of which it must have."""
    text = (RECIPES / name).read_text(encoding="utf-8")
    for old, new in places.items():
        written = PLACES[old]
        assert written in text, f"{name} has no {written}"
        text = text.replace(written, new)
    return text


PLACES = {
    "listen": "listen 80;",
    "application": "127.0.0.1:3000",
    "socket": "/run/repeater/repeater.sock",
    "prefix": 'path_prefix = "/realtime"',
    "origin": "https://www.example.com",
}


@contextmanager
def program(
    *command: object, ready: Callable[[], bool], log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose standard error is in `log`, as soon as it answers; killed at the end."""
    environment = {"PATH": "/usr/bin:/bin", **variables}
    with (
        log.open("wb") as said,
        subprocess.Popen(list(map(str, command)), env=environment, stderr=said) as process,
    ):
        try:
            until = time.monotonic() + PROCESS_STARTS
            while not ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=LOOP_ANSWERS).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """For sockets, whose paths must be short, for files and logs."""
    with tempfile.TemporaryDirectory(prefix="repeater-") as name:
        yield Path(name)


@contextmanager
def application(folder: Path, port: int, script: str, *options: object) -> Iterator[None]:
    """The application of the recipes."""
    command = (sys.executable, RECIPES / "app.py", "--port", port, "--script", script)
    ready = partial(answers, f"http://127.0.0.1:{port}/")
    log = folder / "application.log"
    with program(*command, "--sdk", SDK, *options, ready=ready, log=log, TOKEN_SECRET=SECRET):
        yield


class Repeater(NamedTuple):
    """A server process: how a back end reaches it, and what it says."""

    client: httpx.Client
    log: Path

    def publish(self, text: str) -> None:
        answer = self.client.post("api/publish", json={"channel": "news", "data": text})
        assert "result" in answer.json(), answer.text

    def numbers(self) -> tuple[int, int]:
        """How many clients are connected, of how many users."""
        (node,) = self.client.post("api/info", json={}).json()["result"]["nodes"]
        return node["num_clients"], node["num_users"]

    def refusals(self, cause: str) -> list[str]:
        """The lines of the log that name this cause."""
        return [line for line in self.log.read_text().splitlines() if f"cause={cause}" in line]


@contextmanager
def repeater(
    folder: Path, configuration: str, base: str, *arguments: object, uds: Path | None = None
) -> Iterator[Repeater]:
    """A server with this file and a key."""
    file = folder / "repeater.toml"
    file.write_text(configuration)
    transport = httpx.HTTPTransport(uds=None if uds is None else str(uds))
    log = folder / "repeater.log"
    with (
        httpx.Client(
            base_url=base,
            transport=transport,
            headers={"X-API-Key": KEY, "Host": "localhost"},
            timeout=LOOP_ANSWERS,
        ) as client,
        program(
            *SERVE,
            *("--config", file, "--no-comments", *arguments),
            ready=lambda: " is up on " in log.read_text(),
            log=log,
            REPEATER_API_KEY=KEY,
            NO_COLOR="1",
        ),
    ):
        yield Repeater(client, log)


@pytest.fixture
def someone(browser: Browser) -> Iterator[BrowserContext]:
    """Somebody's browser."""
    with somebody(browser) as context:
        yield context


def said(page: Page, way: str, text: str = "") -> Locator:
    """What the page has shown of one way in, beginning with this."""
    return page.locator("#heard li", has_text=re.compile(rf"^{re.escape(f'{way}: {text}')}"))


def heard(page: Page, way: str, text: str, times: int = 1) -> None:
    """Wait until the page has shown this of one way in, so many times at least."""
    expect(said(page, way, text).nth(times - 1)).to_be_attached()


def sign_in(page: Page) -> None:
    page.get_by_role("button", name="Sign in").click()


# ---- one domain


class Domain(NamedTuple):
    """One domain, behind nginx."""

    url: str
    realtime: str
    """Where Repeater is, for pages."""
    repeater: Repeater


@pytest.fixture(params=["one-domain.conf", "own-paths.conf", "rewriting"])
def domain(request: pytest.FixtureRequest, folder: Path) -> Iterator[Domain]:
    """Repeater under a path of the application's domain, or with its own paths there.

    Under a path nginx passes the prefix on, or takes it off.
    """
    outside = "" if request.param == "own-paths.conf" else "/realtime"
    prefix = "/realtime" if request.param == "one-domain.conf" else ""
    path, app, port = folder / "r.sock", free_port(), free_port()
    places = {"application": f"127.0.0.1:{app}", "socket": str(path)}
    settings = recipe("one-domain.toml", **places, prefix=f'path_prefix = "{prefix}"')
    file = "one-domain.conf" if outside else request.param
    blocks = recipe(file, **places, listen=f"listen 127.0.0.1:{port};")
    if outside and not prefix:
        blocks = blocks.replace("proxy_pass http://repeater;", "proxy_pass http://repeater/;")
    with ExitStack() as stack:
        stack.enter_context(application(folder, app, "one-domain.js", "--realtime", outside))
        base = f"http://localhost{prefix}/"
        running = stack.enter_context(repeater(folder, settings, base, uds=path))
        stack.enter_context(nginx(folder, f"http {{\n{blocks}\n}}"))
        yield Domain(f"http://example.localhost:{port}", outside, running)


@with_sdk
@with_nginx
def test_one_domain_shares_its_cookies(domain: Domain, someone: BrowserContext) -> None:
    """The SDK and an EventSource, by cookies alone: no origin is allowed, and no token is seen."""
    page = someone.new_page()
    page.goto(domain.url)
    heard(page, "sdk", "disconnected: not signed in")  # so said the application's callback
    sign_in(page)
    heard(page, "sdk", "connected by websocket")
    heard(page, "sdk", "subscribed")
    heard(page, "events", "open")
    domain.repeater.publish("to all")
    heard(page, "sdk", "to all")
    heard(page, "events", "to all")
    assert said(page, "sdk", "to all").count() == said(page, "events", "to all").count() == 1
    assert domain.repeater.numbers() == (2, 1)
    assert domain.repeater.refusals("origin") == []


@with_sdk
@with_nginx
def test_the_fallback_of_one_domain(domain: Domain, someone: BrowserContext) -> None:
    """Without WebSockets the SDK streams, and sends its commands to `/emulation`."""
    someone.add_init_script("delete window.WebSocket")
    page = someone.new_page()
    page.goto(domain.url)
    sign_in(page)
    heard(page, "sdk", "connected by http_stream")
    heard(page, "sdk", "subscribed")
    domain.repeater.publish("streamed")
    heard(page, "sdk", "streamed")


@with_sdk
@with_nginx
def test_what_is_not_for_strangers_stays_inside(domain: Domain) -> None:
    """The server API, the metrics and the callback are 404 from outside, however spelled."""
    prefix = domain.realtime
    paths = ["/internal/connect", "/%69nternal/connect", "//internal/connect"]
    paths += [f"{prefix}{path}" for path in ("/api/publish", "/metrics", "/%61pi/publish")]
    paths += [f"{prefix}/{path}" for path in ("/api/publish", "/metrics")]
    with httpx.Client(headers={"X-API-Key": KEY}, timeout=LOOP_ANSWERS) as stranger:
        for path in paths:
            port = domain.url.rpartition(":")[2]
            request = stranger.build_request("POST", f"http://127.0.0.1:{port}/", content=b"{}")
            request.extensions["target"] = path.encode()
            assert stranger.send(request).status_code == 404, path


# ---- two domains


class Domains(NamedTuple):
    """The application's domain, and Repeater's."""

    url: str
    repeater: Repeater


@contextmanager
def two_domains(
    folder: Path, page: str, realtime: str, *, allowed: str = "", options: tuple[object, ...] = ()
) -> Iterator[Domains]:
    """The application at the name `page` and Repeater at `realtime`, each on a port of its own."""
    app, port = free_port(), free_port()
    url = f"http://{page}:{app}"
    settings = recipe("two-domains.toml", origin=allowed or url)
    where = ("--realtime", f"http://{realtime}:{port}")
    with (
        application(folder, app, "two-domains.js", *where, *options),
        repeater(folder, settings, f"http://127.0.0.1:{port}/", "--port", port) as running,
    ):
        yield Domains(url, running)


@with_sdk
def test_two_domains_meet_by_a_token(folder: Path, someone: BrowserContext) -> None:
    """Different sites: `getToken` of the SDK, and a token in an EventSource's address."""
    with two_domains(folder, "page.localhost", "rt.localhost") as domains:
        page = someone.new_page()
        page.goto(domains.url)
        heard(page, "sdk", "disconnected: unauthorized")  # nobody is signed in: no token
        sign_in(page)
        heard(page, "sdk", "subscribed")
        heard(page, "events", "open")
        domains.repeater.publish("across")
        heard(page, "sdk", "across")
        heard(page, "events", "across")
        assert said(page, "events with a cookie").count() == 0  # the cookie is the other site's
        assert domains.repeater.numbers() == (2, 1)


@with_sdk
def test_a_token_is_renewed_before_it_expires(folder: Path, someone: BrowserContext) -> None:
    """The SDK's connection goes on; an EventSource gets another address, and misses nothing."""
    options = ("--lifetime", 3)
    with two_domains(folder, "page.localhost", "rt.localhost", options=options) as domains:
        page = someone.new_page()
        page.goto(domains.url)
        sign_in(page)
        heard(page, "sdk", "subscribed")
        heard(page, "events", "open", times=2)  # the first stream has ended with its token
        heard(page, "events", "open", times=3)
        domains.repeater.publish("later")
        heard(page, "sdk", "later")
        assert said(page, "sdk", "connected").count() == 1
        assert said(page, "sdk", "disconnected").count() == 0


@with_sdk
def test_two_names_of_one_site_share_a_cookie(folder: Path, someone: BrowserContext) -> None:
    """`withCredentials`, and a cookie of the name that both end with: no address has a token."""
    names = "www.example.localhost", "realtime.example.localhost"
    options = ("--cookie-domain", "example.localhost")
    with two_domains(folder, *names, options=options) as domains:
        page = someone.new_page()
        page.goto(domains.url)
        sign_in(page)
        heard(page, "events with a cookie", "open")
        domains.repeater.publish("by cookie")
        heard(page, "events with a cookie", "by cookie")


@with_sdk
def test_an_origin_that_is_not_allowed_is_in_the_log(folder: Path, someone: BrowserContext) -> None:
    """The page hears nothing, and does not know why; the server's log says it in one line."""
    allowed = "https://another.example.com"
    with two_domains(folder, "page.localhost", "rt.localhost", allowed=allowed) as domains:
        page = someone.new_page()
        page.goto(domains.url)
        sign_in(page)
        for _ in range(2):  # and again, one to three seconds later
            with page.expect_event("requestfailed", lambda request: "/events" in request.url):
                pass
        domains.repeater.publish("unheard")
        assert page.locator("#heard li").count() == 0
        lines = domains.repeater.refusals("origin")
        assert any("what=events" in line for line in lines)
        assert any("what=websocket" in line for line in lines)
        for line in lines:
            assert f"add '{domains.url}' to allowed_origins" in line
            assert "token=" not in line


# ---- the page of the documentation


def test_the_page_prints_the_files() -> None:
    """Each block of "Where pages live" is a part of a file that is tested here."""
    section = DEPLOYMENT.partition("\n## Where pages live\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\w+\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    files = [stripped(path.read_text(encoding="utf-8")) for path in RECIPES.iterdir()]
    assert len(blocks) > 5
    for block in blocks:
        assert any(stripped(block) in file for file in files), block


def stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
