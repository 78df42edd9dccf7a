"""The pages in a real browser, headless Chromium, on a real server process."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from sqlalchemy import insert, select

from repeater.comments.options import CommentsOptions
from repeater.comments.tables import comments, make_engine, users
from tests.browsing import Site

ANN = {"email": "ann@example.com", "password": "hunter2hunter", "name": "Ann"}
MARKUP = "<b>bold</b> <img src=x onerror=document.title='owned'> <script>alert(1)</script> &amp;"


class CommentsSite(Site):
    """A server with the application."""

    def post(self, *texts: str) -> None:
        """Comment as Ann, from a program; sign her up if need be."""
        with httpx.Client(base_url=self.url) as client:
            client.post("/api/signup", data=ANN)
            client.post("/api/signin", data=ANN)
            for text in texts:
                answer = client.post("/api/new_comment", data={"text": text})
                assert answer.headers["Location"] == "/comments.html"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CommentsSite]:
    """A server of this test alone."""
    with CommentsSite(tmp_path / "data", "--dev", "--comments").running() as site:
        yield site


def live(context: BrowserContext) -> Page:
    """An open page that is connected."""
    page = context.new_page()
    page.goto("/comments.html")
    expect(page.get_by_role("status")).to_have_text("Live")
    return page


def sign_in(context: BrowserContext) -> Page:
    """Sign up and in by the forms; the page that this ends on."""
    page = context.new_page()
    page.goto("/")
    for label, text in (("E-mail", ANN["email"]), ("Password", ANN["password"]), ("Name", "Ann")):
        page.get_by_label(label).fill(text)
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_url("**/login.html#welcome")
    expect(page.get_by_text("Your account is ready")).to_be_visible()
    page.get_by_label("E-mail").fill(ANN["email"])
    page.get_by_label("Password").fill(ANN["password"])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/comments.html")
    expect(page.get_by_role("status")).to_have_text("Live")
    return page


def texts(page: Page) -> list[str]:
    return page.locator("#comments li p").all_inner_texts()


def test_a_comment_appears_on_the_other_page(
    browser: Browser, context: BrowserContext, site: CommentsSite
) -> None:
    """From the form in one browser to the list in another one, without a reload; once in each."""
    stranger = browser.new_context(base_url=site.url)
    reader, writer = live(stranger), sign_in(context)
    writer.get_by_label("Your comment").fill("hello from Ann")
    writer.get_by_role("button", name="Post").click()
    expect(reader.get_by_text("hello from Ann")).to_be_visible()
    expect(writer.get_by_text("hello from Ann")).to_be_visible()
    expect(writer.get_by_label("Your comment")).to_have_value("")
    for page in (reader, writer):
        page.reload()
        expect(page.get_by_role("status")).to_have_text("Live")
        assert texts(page) == ["hello from Ann"]
    stranger.close()


def test_a_killed_server_comes_back_and_nothing_is_missed(
    context: BrowserContext, site: CommentsSite
) -> None:
    """Both pages say that they lost it, come back by themselves, and show all, in order, once."""
    pages = [live(context), live(context)]
    site.post("one", "two")
    for page in pages:
        expect(page.get_by_text("two", exact=True)).to_be_visible()
    site.stop(signal.SIGKILL)
    for page in pages:
        expect(page.get_by_role("status")).not_to_have_text("Live")
    site.start()
    site.post("three", "four")
    for page in pages:
        expect(page.get_by_role("status")).to_have_text("Live")
    site.post("five")
    for page in pages:
        expect(page.get_by_text("five", exact=True)).to_be_visible()
        assert texts(page) == ["one", "two", "three", "four", "five"]


def fill(site: CommentsSite, count: int) -> None:
    """Put old comments into the database of a site where Ann has signed up."""
    engine = make_engine(CommentsOptions(data_dir=site.data_dir))
    with engine.begin() as connection:
        ann = connection.execute(select(users.c.id)).scalar_one()
        now = time.time_ns() // 1_000_000
        rows = [
            {"user_id": ann, "text": f"old {n}", "at": now - 60_000 * (count - n)}
            for n in range(count)
        ]
        connection.execute(insert(comments), rows)
    engine.dispose()


def test_the_list_needs_no_connection(context: BrowserContext, site: CommentsSite) -> None:
    """A page that cannot subscribe, as while the engine is down, shows the list all the same."""
    site.post("before the outage")
    context.route_web_socket("**/ws?channel=comments", lambda socket: socket.close())
    page = context.new_page()
    page.goto("/comments.html")
    expect(page.get_by_text("before the outage")).to_be_visible()
    expect(page.get_by_role("status")).not_to_have_text("Live")


def test_five_hundred_comments_load(context: BrowserContext, site: CommentsSite) -> None:
    """All of them, the newest in sight; and where there are more, a button brings the earlier."""
    site.post()
    fill(site, 500)
    page = live(context)
    expect(page.locator("#comments li")).to_have_count(500)
    expect(page.get_by_text("old 499", exact=True)).to_be_in_viewport()
    site.post("number 501")
    page = live(context)
    page.get_by_role("button", name="Show earlier comments").click()
    expect(page.locator("#comments li")).to_have_count(501)
    assert texts(page) == [*(f"old {n}" for n in range(500)), "number 501"]


def test_a_long_absence_leaves_no_gap(context: BrowserContext, site: CommentsSite) -> None:
    """Twelve hundred comments while the connection was away: more than one answer holds."""
    page = sign_in(context)
    site.post("before")
    expect(page.get_by_text("before", exact=True)).to_be_visible()
    site.stop()
    fill(site, 1_200)
    site.start()
    expect(page.locator("#comments li")).to_have_count(1_201)
    assert texts(page) == ["before", *(f"old {n}" for n in range(1_200))]


def test_markup_stays_text(context: BrowserContext, site: CommentsSite) -> None:
    """Live and from the list, in the text and in the name: shown as typed, and nothing runs."""
    with httpx.Client(base_url=site.url) as client:
        evil = {**ANN, "email": "eve@example.com", "name": "<i>Eve</i>"}
        client.post("/api/signup", data=evil)
        client.post("/api/signin", data=evil)
        page = live(context)
        client.post("/api/new_comment", data={"text": MARKUP})
    for _ in ("live", "from the list"):
        expect(page.locator("#comments li p")).to_have_text(MARKUP)
        expect(page.locator("#comments li strong")).to_have_text("<i>Eve</i>")
        assert page.locator("#comments").locator("b, i, img, script").count() == 0
        assert page.title() == "Comments"
        page.reload()


def test_it_works_by_keyboard_alone(context: BrowserContext, site: CommentsSite) -> None:
    """Sign up, sign in, post and sign out with Tab, Enter and Ctrl+Enter."""
    page = context.new_page()
    page.goto("/")
    page.get_by_label("E-mail").focus()
    for text in (ANN["email"], ANN["password"], "Ann"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Sign up")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/login.html#welcome")
    page.get_by_label("E-mail").focus()
    page.keyboard.type(ANN["email"])
    page.keyboard.press("Tab")
    page.keyboard.type(ANN["password"])
    page.keyboard.press("Enter")
    page.wait_for_url("**/comments.html")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    page.get_by_label("Your comment").focus()
    page.keyboard.type("typed")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#comments").get_by_text("typed")).to_be_visible()
    expect(page.get_by_label("Your comment")).to_be_focused()
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/login.html")


def test_a_refused_form_says_why_and_keeps_what_was_typed(
    context: BrowserContext, site: CommentsSite
) -> None:
    """On the page itself, for screen readers too; the address stays in its field."""
    site.post()
    page = context.new_page()
    page.goto("/")
    page.get_by_label("E-mail").fill(ANN["email"])
    page.get_by_label("Password").fill(ANN["password"])
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("alert")).to_contain_text("has an account already")
    expect(page.get_by_label("E-mail")).to_have_value(ANN["email"])


def test_forms_work_without_scripts(browser: Browser, site: CommentsSite) -> None:
    """Redirects alone lead from form to form, and back with the message."""
    context = browser.new_context(base_url=site.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("E-mail").fill(ANN["email"])
    page.get_by_label("Password").fill("password")
    page.get_by_role("button", name="Sign up").click()
    expect(page).to_have_url(re.compile("index.html#weak-password"))
    expect(page.get_by_text("Choose a password")).to_be_visible()
    page.get_by_label("E-mail").fill(ANN["email"])
    page.get_by_label("Password").fill(ANN["password"])
    page.get_by_role("button", name="Sign up").click()
    expect(page).to_have_url(re.compile("login.html"))
    page.get_by_label("E-mail").fill(ANN["email"])
    page.get_by_label("Password").fill(ANN["password"])
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile("comments.html"))
    page.get_by_label("Your comment").fill("no script")
    page.get_by_role("button", name="Post").click()
    expect(page).to_have_url(re.compile("comments.html"))
    assert [one["text"] for one in httpx.get(f"{site.url}/api/comments").json()] == ["no script"]
    context.close()


@pytest.mark.parametrize("path", ["/", "/login.html", "/comments.html"])
def test_pages_fit_a_phone(browser: Browser, site: CommentsSite, path: str) -> None:
    """360 pixels wide: nothing is cut off sideways, and what is to be tapped is large enough."""
    site.post("word " * 50, "x" * 300)
    context = browser.new_context(
        base_url=site.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(path)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    if path == "/comments.html":
        expect(page.get_by_role("status")).to_have_text("Live")
        assert page.evaluate("document.querySelector('#comments').scrollWidth") <= 360
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= 36
    context.close()
