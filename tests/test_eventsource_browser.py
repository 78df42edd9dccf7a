"""A real browser: its `EventSource` comes back after a refusal, and a foreign page gets nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import BrowserContext

from tests.browsing import Site
from tests.deadlines import LOOP_ANSWERS

OPEN = """path => {
    window.source = new EventSource(path);
    window.heard = [];
    window.source.onmessage = event => window.heard.push(event.data);
}"""
STATE = "() => window.source.readyState"
CLOSED = 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with room for one subscriber."""
    data = tmp_path_factory.mktemp("data")
    with Site(data, "--dev", "--no-comments", limits__connections="1").running() as site:
        yield site


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of another site's empty page: by name neither `localhost` nor `127.0.0.1`."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.2", 0), Empty)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.2:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LOOP_ANSWERS)


def test_it_comes_back_when_there_is_room(context: BrowserContext, site: Site) -> None:
    """While the server is full the browser asks again and again, and then it hears."""
    page = context.new_page()
    page.goto("/docs")
    with httpx.stream("GET", f"{site.url}/events?channel=news") as other:
        assert other.status_code == 200
        page.evaluate(OPEN, "/events?channel=news")
        page.wait_for_timeout(1_500)
        assert page.evaluate(STATE) != CLOSED
    for _ in range(100):  # a pause of up to three seconds, and some more on a busy machine
        httpx.post(f"{site.url}/api/publish", json={"channel": "news", "data": 1})
        if page.evaluate("() => window.heard.length"):
            break
        page.wait_for_timeout(200)
    assert page.evaluate("() => window.heard[0]") == "1"
    page.evaluate("() => window.source.close()")


def test_the_network_tab_of_a_foreign_page_says_why(
    context: BrowserContext, site: Site, elsewhere: str
) -> None:
    """In development mode, in a header of the answer, whose body no browser shows."""
    said: list[str] = []

    def note(event: dict[str, dict[str, str]]) -> None:
        said.extend(
            value for name, value in event["headers"].items() if name.lower() == "repeater-refused"
        )

    page = context.new_page()
    tab = context.new_cdp_session(page)
    tab.send("Network.enable")
    tab.on("Network.responseReceivedExtraInfo", note)
    page.goto(elsewhere)
    page.evaluate(OPEN, f"{site.url}/events?channel=news")
    page.wait_for_function(f"() => window.source.readyState === {CLOSED}")
    for _ in range(100):
        if said:
            break
        page.wait_for_timeout(50)
    assert said
    assert "is not in allowed_origins" in said[0]


def test_a_foreign_page_reaches_nothing(
    context: BrowserContext, site: Site, elsewhere: str
) -> None:
    """In development mode: no stream, no WebSocket, and no call of the API, even without CORS."""
    page = context.new_page()
    page.goto(elsewhere)
    page.evaluate(OPEN, f"{site.url}/events?channel=news")
    page.wait_for_function(f"() => window.source.readyState === {CLOSED}")
    opened = page.evaluate(
        """address => new Promise(done => {
            const socket = new WebSocket(address);
            socket.onopen = () => done(true);
            socket.onclose = () => done(false);
        })""",
        f"{site.url.replace('http', 'ws')}/ws?channel=news",
    )
    assert opened is False
    before = httpx.post(f"{site.url}/api/history", json={"channel": "foreign"}).json()
    page.evaluate(
        """address => fetch(address, {
            method: 'POST', mode: 'no-cors', body: '{"channel":"foreign","data":1}',
        }).then(() => null, () => null)""",
        f"{site.url}/api/publish",
    )
    after = httpx.post(f"{site.url}/api/history", json={"channel": "foreign"}).json()
    assert after["result"]["offset"] == before["result"]["offset"] == 0
