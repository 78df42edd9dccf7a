"""A real browser: its `EventSource` begins in the past once, and one stream serves all its tabs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page

from tests.browsing import Site
from tests.signing import SECRET, sign

PAGE = Path(__file__).parent.parent / "docs" / "transports.md"
RECIPE = re.compile(r"<!-- one-stream-for-all-tabs -->\n```js\n(.*?)```", re.DOTALL)
OPEN = """path => {
    window.heard = [];
    window.resets = [];
    window.opened = 0;
    window.source = new EventSource(path);
    window.source.onopen = () => window.opened++;
    window.source.onmessage = event => window.heard.push(JSON.parse(event.data).data);
    window.source.addEventListener("reset", event => window.resets.push(event.data));
}"""
SHOW = """
window.heard = [];
const show = (channel, data) => window.heard.push(`${channel} ${data}`);
const reload = channels => window.heard.push(channels);
"""
STREAMS = 6  # of a browser to one host, over HTTP/1.1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data = tmp_path_factory.mktemp("data")
    with Site(data, "--dev", "--no-comments", token__hmac_secret_key=SECRET).running() as site:
        yield site


def call(site: Site, method: str, **parameters: Any) -> Any:
    answer = httpx.post(f"{site.url}/api/{method}", json=parameters)
    assert answer.status_code == 200
    assert "error" not in answer.json()
    return answer.json()["result"]


def wait_for(page: Page, heard: list[object]) -> None:
    page.wait_for_function("count => window.heard.length >= count", arg=len(heard))
    assert page.evaluate("() => window.heard") == heard


def test_it_begins_at_the_start_once(context: BrowserContext, site: Site) -> None:
    """The server ends the stream, and the browser sends the same address again: nothing that it
    had comes twice, and what it missed comes."""
    for word in ("once", "upon"):
        call(site, "publish", channel="story", data=word)
    page = context.new_page()
    page.goto("/docs")
    token = sign({"sub": "reader"})
    page.evaluate(OPEN, f"/events?channel=story&envelope=1&since=start&token={token}")
    wait_for(page, ["once", "upon"])
    for number, word in enumerate(("a", "time"), 1):
        call(site, "disconnect", user="reader")
        call(site, "publish", channel="story", data=word)
        page.wait_for_function("number => window.opened > number", arg=number)
    wait_for(page, ["once", "upon", "a", "time"])
    assert page.evaluate("() => window.resets") == []
    page.evaluate("() => window.source.close()")


def test_one_stream_serves_all_tabs(context: BrowserContext, site: Site) -> None:
    """As the documentation shows it: more tabs than a browser has connections hear everything, and
    when the tab with the stream is closed another one goes on behind the last event."""
    found = RECIPE.search(PAGE.read_text())
    assert found is not None
    pages = [context.new_page() for _ in range(STREAMS + 2)]
    for page in pages:
        page.goto("/docs")
    for page in pages:
        page.evaluate(f"() => {{{SHOW}{found[1]}}}")
    while not call(site, "channels")["channels"].get("news"):
        pages[0].wait_for_timeout(50)
    call(site, "publish", channel="news", data=1)
    for page in pages:
        wait_for(page, ["news 1"])
    first, *others = pages
    assert call(site, "channels")["channels"]["sports"]["num_clients"] == 1
    first.close()
    call(site, "publish", channel="sports", data=2)
    for page in others:
        wait_for(page, ["news 1", "sports 2"])
    for page in others:
        page.close()
