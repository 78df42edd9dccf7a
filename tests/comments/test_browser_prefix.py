"""The pages, and the console, of a server under `path_prefix`, in headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browsing import Site

ANN = {"email": "ann@example.com", "password": "hunter2hunter", "name": "Ann"}
PREFIX = "/realtime"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server of this test alone, under the prefix."""
    with Site(tmp_path, "--dev", "--comments", path_prefix=PREFIX).running() as site:
        yield site


def strays(context: BrowserContext) -> list[str]:
    """The requests of this browser that leave the prefix, from here on."""
    found: list[str] = []
    context.on(
        "request",
        lambda request: (
            None
            if re.match(r"[a-z]+://[^/]+/realtime(/|$)", request.url)
            else found.append(request.url)
        ),
    )
    return found


def fill(page: Page, *names: str) -> None:
    labels = {"email": "E-mail", "password": "Password", "name": "Name"}
    for name in names:
        page.get_by_label(labels[name]).fill(ANN[name])


def sign_in(page: Page, site: Site) -> None:
    """From the front page to the list, by forms and redirects alone."""
    page.goto(f"{site.url}/")
    fill(page, "email", "password", "name")
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_url(re.compile(f"{site.url}/login.html"))
    fill(page, "email", "password")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site.url}/comments.html")


def test_a_comment_appears_on_the_other_page(
    browser: Browser, context: BrowserContext, site: Site
) -> None:
    """Sign up, in and out, comment and read along; no request leaves the prefix."""
    stranger = browser.new_context()
    stray = strays(context), strays(stranger)
    reader, writer = stranger.new_page(), context.new_page()
    reader.goto(site.url)  # without a slash: a redirect leads to the page, whose links work
    reader.get_by_role("link", name="Read along").click()
    expect(reader.get_by_role("status")).to_have_text("Live")
    sign_in(writer, site)
    writer.get_by_label("Your comment").fill("hello from Ann")
    writer.get_by_role("button", name="Post").click()
    expect(reader.get_by_text("hello from Ann")).to_be_visible()
    expect(writer.get_by_text("hello from Ann")).to_be_visible()
    assert {one["path"] for one in context.cookies()} == {f"{PREFIX}/"}
    writer.get_by_role("button", name="Sign out").click()
    writer.wait_for_url(f"{site.url}/login.html")
    assert "identity" not in {one["name"] for one in context.cookies()}
    stranger.close()
    assert stray == ([], [])


def test_forms_work_without_scripts(browser: Browser, site: Site) -> None:
    """The redirects of the server have the prefix, and so have those back with a message."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, site)
    page.goto(f"{site.url}/index.html")
    fill(page, "email", "password")
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_url(f"{site.url}/index.html#taken")
    context.close()


def test_the_console_and_the_description(context: BrowserContext, site: Site) -> None:
    """The console hears by both transports and publishes; the page of the API shows calls."""
    stray = strays(context)
    for transport in ("websocket", "sse"):
        page = context.new_page()
        page.goto(f"{site.url}/console?channel=news&transport={transport}")
        expect(page.get_by_role("status").first).to_have_text("Connected")
        httpx.post(f"{site.url}/api/publish", json={"channel": "news", "data": f"by {transport}"})
        expect(page.locator("#messages")).to_contain_text(f"by {transport}")
        expect(page.locator("#curl")).to_contain_text(f"{site.url}/api/publish")
        page.get_by_role("button", name="Publish").click()
        expect(page.locator("#outcome")).to_contain_text("Published to news")
    page.get_by_role("link", name="API").click()
    page.wait_for_url(f"{site.url}/docs")
    expect(page.locator("#publish pre").first).to_contain_text(f"{site.url}/api/publish")
    assert stray == []
