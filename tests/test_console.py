"""The console: what it answers, and what it does in headless Chromium on a real server process."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from quart import Blueprint

from repeater.config import CurrentSettings, load_settings
from repeater.serving.application import create_app
from repeater.testing import open_test_node
from tests.browsing import Site
from tests.deadlines import LOOP_ANSWERS

MARKUP = "<b>bold</b> <img src=x onerror=document.title='owned'> <script>alert(1)</script> &amp;"
PATHS = ("/", "/console", "/console/console.js", "/console/console.css", "/console/console.svg")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server without the bundled application; nothing in it outlives a test but offsets."""
    with Site(tmp_path_factory.mktemp("data"), "--dev", "--no-comments").running() as site:
        yield site


def publish(site: Site, channel: str, data: Any) -> None:
    """As a back end does it."""
    answer = httpx.post(f"{site.url}/api/publish", json={"channel": channel, "data": data})
    assert "result" in answer.json()


def console(context: BrowserContext, transport: str = "websocket", *channels: str) -> Page:
    """An open console that is connected."""
    page = context.new_page()
    query = [("channel", one) for one in channels or ("news",)]
    page.goto(f"/console?{httpx.QueryParams([*query, ('transport', transport)])}")
    expect(page.get_by_role("status").first).to_have_text("Connected")
    return page


def messages(page: Page) -> Locator:
    return page.locator("#messages > li:not(.note)")


@pytest.fixture(params=["websocket", "sse"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both ways, by the names that the page has for them."""
    return str(request.param)


# ---- what it answers


async def test_it_is_there_in_development_mode_only() -> None:
    """Outside of it the pages, and what belongs to them, are 404."""
    async with open_test_node() as node:
        for dev, status in ((True, 200), (False, 404)):
            settings = CurrentSettings(load_settings(dev=dev, api_key="k" * 16))
            client = create_app(node, settings).test_client()
            for path in PATHS:
                assert (await client.get(path)).status_code == status, path


async def test_it_is_static_and_strict() -> None:
    """A policy that allows nothing from elsewhere, nothing inline, and no frame around it."""
    async with open_test_node() as node:
        app = create_app(node, CurrentSettings(load_settings(dev=True)))
        client = app.test_client()
        for path in PATHS:
            answer = await client.get(path)
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            etag = {"If-None-Match": answer.headers["ETag"]}
            assert (await client.get(path, headers=etag)).status_code == 304
        front = await (await client.get("/")).get_data(as_text=True)
        assert set(re.findall(r'<a href="([^"]*)"', front)) == {"console", "docs"}
        page = await (await client.get("/console")).get_data(as_text=True)
        assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) == {
            *(path[1:] for path in PATHS[2:]),
            "docs",
        }
        assert not re.search(r"style=|\son\w+=", page)


async def test_a_mounted_application_has_the_front_page() -> None:
    """An application may mount `/` even after the console was made; other errors stay the same."""
    front = Blueprint("front", __name__)
    front.get("/")(lambda: "mine")
    async with open_test_node() as node:
        app = create_app(node, CurrentSettings(load_settings(dev=True)))
        app.register_blueprint(front)
        client = app.test_client()
        assert await (await client.get("/")).get_data(as_text=True) == "mine"
        assert (await client.get("/console")).status_code == 200
        assert (await client.get("/missing")).status_code == 404
        assert (await client.post("/console")).status_code == 405


# ---- what it does


def test_it_subscribes_and_shows_what_a_back_end_publishes(
    context: BrowserContext, site: Site, transport: str
) -> None:
    """From REST to the list: channel, size and the JSON as it was sent, long numbers included."""
    page = console(context, transport)
    page.get_by_label("Channel", exact=True).fill("sports")
    page.get_by_role("button", name="Subscribe", exact=True).click()
    expect(page.locator("#channels li[data-state=live]")).to_have_count(2)
    text = '{"id": 12345678901234567890, "ok": [true, null]}'
    body = f'{{"channel": "sports", "data": {text}}}'
    httpx.post(f"{site.url}/api/publish", content=body).raise_for_status()
    expect(messages(page)).to_have_count(1)
    expect(messages(page).locator("strong")).to_have_text("sports")
    expect(messages(page)).to_contain_text(f"{len(text)} B")
    shown = messages(page).locator("pre").inner_text()
    assert shown == text
    assert "own" not in messages(page).inner_text()
    publish(site, "news", {"n": 1})
    expect(messages(page)).to_have_count(2)
    expect(messages(page).first.locator("strong")).to_have_text("news")
    page.get_by_role("button", name="Unsubscribe from news").click()
    expect(page.locator("#channels li")).to_have_count(1)
    publish(site, "news", {"n": 2})
    publish(site, "sports", {"n": 3})
    expect(messages(page)).to_have_count(3)
    expect(page.locator("#messages-count")).to_have_text("3")


def test_it_publishes_and_measures_its_own_latency(
    context: BrowserContext, site: Site, transport: str
) -> None:
    """By keyboard: a publication of this page comes back with its latency, on others without."""
    page, other = console(context, transport), console(context, transport)
    page.get_by_label("Data").fill('{ "text" : "hello" }')
    page.keyboard.press("Control+Enter")
    expect(page.locator("#outcome")).to_contain_text("Published to news")
    expect(messages(page).locator(".own")).to_have_text(re.compile(r"^own · \d+(\.\d)? ms$"))
    expect(messages(page).locator("pre")).to_have_text('{"text": "hello"}')
    expect(page.locator("#latency")).to_have_text(re.compile(r"\d ms$"))
    expect(page.locator("#median")).to_have_text(re.compile(r"\d ms$"))
    expect(messages(other)).to_have_count(1)
    assert messages(other).locator(".own").count() == 0
    expect(other.locator("#latency")).to_have_text("\N{EN DASH}")


def test_what_can_t_be_published_is_said(context: BrowserContext, site: Site) -> None:
    """No JSON never leaves the page; the server's own refusal is shown with its code."""
    page = console(context)
    page.get_by_label("Data").fill("hello")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#outcome")).to_contain_text("Not JSON")
    expect(page.get_by_label("Data")).to_be_focused()
    page.get_by_label("Data").fill('"hello"')
    page.get_by_label("To channel").fill("nowhere:news")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#outcome")).to_contain_text("(102)")
    assert messages(page).count() == 0


def test_markup_stays_text(context: BrowserContext, site: Site, transport: str) -> None:
    """In the channel's name, in keys and in strings: shown as it came, and nothing runs."""
    channel = "<i>x</i>"
    page = console(context, transport, channel)
    expect(page.locator("#channels .name")).to_have_text(channel)
    publish(site, channel, {MARKUP: MARKUP})
    expect(messages(page).locator("strong")).to_have_text(channel)
    shown = json.loads(messages(page).locator("pre").inner_text())
    assert shown == {MARKUP: MARKUP}
    assert page.locator("#messages, #channels").locator("b, i, img, script").count() == 0
    assert page.title() == "Repeater console"


def test_a_killed_server_is_seen_and_comes_back(
    context: BrowserContext, site: Site, transport: str
) -> None:
    """The page says that the connection is lost, and connects again by itself."""
    page = console(context, transport)
    state = page.get_by_role("status").first
    site.stop(signal.SIGKILL)
    expect(state).not_to_have_text("Connected")
    site.start()
    expect(state).to_have_text("Connected")
    publish(site, "news", "back")
    expect(messages(page).locator("pre")).to_have_text('"back"')


def test_a_refused_channel_is_told_from_a_lost_server(context: BrowserContext, site: Site) -> None:
    """A channel of an unknown namespace says so; the others stay connected."""
    page = console(context)
    page.get_by_label("Channel", exact=True).fill("nowhere:news")
    page.get_by_label("Channel", exact=True).press("Enter")
    expect(page.locator("#channels li[data-state=refused]")).to_contain_text("nowhere:news")
    expect(page.get_by_role("status").first).to_have_text("Refused")
    expect(page.locator("#channels li[data-state=live]")).to_contain_text("news")


def test_pause_holds_and_clear_forgets(context: BrowserContext, site: Site) -> None:
    """A pause keeps the list still and counts on; Resume shows what came; Clear begins anew."""
    page = console(context)
    pause = page.locator("#pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    for n in range(3):
        publish(site, "news", n)
    expect(pause).to_have_text("Resume (3)")
    expect(page.locator("#messages-count")).to_have_text("3")
    assert messages(page).count() == 0
    pause.click()
    expect(messages(page).locator("pre")).to_have_text(["2", "1", "0"])
    page.get_by_role("button", name="Clear").click()
    expect(messages(page)).to_have_count(0)
    expect(page.locator("#messages-count")).to_have_text("0")


def test_a_flood_leaves_the_page_alive(context: BrowserContext, site: Site) -> None:
    """Five thousand events: every one is counted, and the newest two hundred are in the list."""
    page = console(context)
    lines = b"".join(b'{"channel": "news", "data": %d}\n' % n for n in range(5_000))
    httpx.post(f"{site.url}/api/stream", content=lines, timeout=LOOP_ANSWERS).raise_for_status()
    expect(page.locator("#messages-count")).to_have_text("5,000")
    expect(messages(page)).to_have_count(200)
    expect(messages(page).first.locator("pre")).to_have_text("4999")


def test_a_long_message_is_shown_on_demand(context: BrowserContext, site: Site) -> None:
    """The beginning first; the button brings all of it."""
    page = console(context)
    publish(site, "news", {"text": "x" * 30_000})
    shown = messages(page).locator("pre")
    expect(messages(page)).to_have_count(1)
    assert len(shown.inner_text()) < 5_000
    messages(page).get_by_role("button", name="Show all").click()
    assert json.loads(shown.inner_text()) == {"text": "x" * 30_000}


def test_the_address_remembers(context: BrowserContext, site: Site) -> None:
    """Channels and transport survive a reload; `news` is the beginning."""
    page = context.new_page()
    page.goto("/console")
    expect(page.locator("#channels .name")).to_have_text(["news"])
    page.get_by_label("Channel", exact=True).fill("a&b")
    page.keyboard.press("Enter")
    page.get_by_label("Server-Sent Events").check()
    page.reload()
    expect(page.locator("#channels .name")).to_have_text(["news", "a&b"])
    expect(page.get_by_label("Server-Sent Events")).to_be_checked()
    for name in ("news", "a&b"):
        page.get_by_role("button", name=f"Unsubscribe from {name}").click()
    expect(page.get_by_role("status").first).to_have_text("Not connected")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, site: Site, scheme: Any) -> None:
    """360 pixels wide: nothing is cut off sideways, and what is to be tapped is large enough."""
    context = browser.new_context(
        base_url=site.url,
        viewport={"width": 360, "height": 640},
        has_touch=True,
        is_mobile=True,
        color_scheme=scheme,
    )
    page = console(context, "websocket", "news", "a-channel-with-a-name-that-is-much-too-long" * 2)
    publish(site, "news", {"text": "x" * 500})
    expect(messages(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= 36
    context.close()


@pytest.mark.parametrize("date", ["Mon, 01 Jan " + "9" * 40 + " 00:00:00 GMT", "1" * 4_000, "("])
async def test_a_date_that_nobody_can_read(date: str) -> None:
    """A page has a tag and no date, so no date of a request is read."""
    async with open_test_node() as node:
        client = create_app(node, CurrentSettings(load_settings(dev=True))).test_client()
        for path in PATHS:
            answer = await client.get(path, headers={"If-Modified-Since": date})
            assert answer.status_code == 200
