"""Every route of the application, on SQLite and on PostgreSQL."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import repeater.comments
from repeater.comments import problems
from repeater.comments.comments import open_comments
from repeater.comments.options import CommentsError, CommentsOptions, Rate
from repeater.comments.problems import Problem
from repeater.comments.settings import CommentsSettings
from repeater.comments.store import StoreError
from repeater.config import CurrentSettings
from repeater.options import ChannelOptions, NodeOptions
from repeater.serving.application import create_app
from repeater.serving.extension import EXTENSION, load_settings
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.comments.site import ANN, JSON, open_site

STATIC = Path(repeater.comments.__file__).parent / "static"


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread's end brings about, in its own time; `open_site` has the deadline."""
    while not condition():  # noqa: ASYNC110  # nothing in the product tells a test
        await trio.sleep(0.01)


async def test_sign_up_sign_in_comment_and_read(options: CommentsOptions) -> None:
    """The whole way, as a browser without scripts goes it; each step leads to the next page."""
    async with open_site(options) as site:
        assert (await site.post("/api/signup", ANN)).location == "/login.html"
        assert (await site.post("/api/signin", ANN)).location == "/comments.html"
        answer = await site.post("/api/new_comment", {"text": " hello\r\nworld "})
        assert (answer.status_code, answer.location) == (302, "/comments.html")
        (comment,) = await site.list()
        assert (comment["text"], comment["name"]) == ("hello\nworld", "Ann")
        me = await (await site.browser.get("/api/me")).json
        assert me == {"user": {"uid": comment["uid"], "name": "Ann"}}
        assert (await site.post("/api/signout")).location == "/login.html"
        assert await (await site.browser.get("/api/me")).json == {"user": None}
        answer = await site.post("/api/new_comment", {"text": "late"})
        assert answer.location == "/login.html#sign-in"


async def test_a_subscriber_gets_a_text_frame(options: CommentsOptions) -> None:
    """One JSON object for each comment, in the order of the list, and what the list says of it."""
    transport = MemoryTransport()
    async with open_site(options) as site, connect(site.node, transport, ["comments"]):
        await site.sign_in()
        for number in range(3):
            await site.post("/api/new_comment", {"text": f"number {number}"})
        await until(lambda: len(transport.sent) == 3)
        live = [msgspec.json.decode(chunk) for chunk in transport.sent]
        assert live == await site.list()
        if not options.database_url:  # PostgreSQL has an order of its own
            assert list(live[0])[:2] == ["uid", "text"]


async def test_addresses_never_leave(options: CommentsOptions) -> None:
    """Neither a list, a frame, a cookie nor a made-up name shows the address or a part of it."""
    account = {"email": "zebulon@example.com", "password": "hunter2hunter"}
    transport = MemoryTransport()
    async with open_site(options) as site, connect(site.node, transport, ["comments"]):
        await site.post("/api/signup", account)
        cookie = (await site.post("/api/signin", account)).headers["Set-Cookie"]
        await site.post("/api/new_comment", {"text": "hello"})
        await until(lambda: transport.sent)
        page = await (await site.browser.get("/api/comments")).get_data()
        me = await (await site.browser.get("/api/me")).get_data()
    for shown in (cookie.encode(), page, me, *transport.sent):
        assert b"zebulon" not in shown.lower()


BAD_FORMS = [
    ("/api/signup", {"email": "nobody", "password": "hunter2hunter"}, problems.BAD_ADDRESS),
    ("/api/signup", {"email": "a@b.example", "password": "short"}, problems.WEAK_PASSWORD),
    ("/api/signup", {}, problems.BAD_ADDRESS),
    ("/api/signup", {**ANN, "name": "a@b"}, problems.BAD_NAME),
    ("/api/signup", {**ANN, "email": " ANN@example.com"}, problems.TAKEN),
    ("/api/signin", {**ANN, "password": "wrong password"}, problems.WRONG),
    ("/api/signin", {**ANN, "email": "bob@example.com"}, problems.WRONG),
    ("/api/signin", {}, problems.WRONG),
    ("/api/new_comment", {"text": " \n "}, problems.EMPTY),
    ("/api/new_comment", {}, problems.EMPTY),
    ("/api/new_comment", {"text": "x" * 2_001}, problems.TOO_LONG),
]


@pytest.mark.parametrize(("path", "form", "problem"), BAD_FORMS)
async def test_a_bad_form_comes_back_with_a_message(
    options: CommentsOptions, path: str, form: dict[str, str], problem: Problem
) -> None:
    """A browser is sent back to the form, which has the message; a program gets 4xx and JSON."""
    async with open_site(options) as site:
        await site.sign_in()
        answer = await site.post(path, form)
        assert answer.status_code == 302
        page, _, name = (answer.location or "").partition("#")
        assert name == problem.name
        shown = re.sub(r"<a .*</a>", "", (STATIC / page.strip("/")).read_text())
        assert re.search(rf'<p class="message" id="{name}" tabindex="-1">{problem.text}', shown)
        answer = await site.post(path, form, JSON)
        assert answer.status_code == problem.status
        assert await answer.json == {"error": problem.text}
        assert len(await site.list()) == 0


async def test_wrong_address_and_wrong_password_are_one_answer(options: CommentsOptions) -> None:
    """Byte for byte, headers included."""
    async with open_site(options) as site:
        await site.post("/api/signup", ANN)
        answers = [
            await site.post("/api/signin", {**ANN, field: "wrong@example.com"})
            for field in ("email", "password")
        ]
        first, second = [(a.status_code, list(a.headers), await a.get_data()) for a in answers]
        assert first == second


async def test_the_cookie_is_the_browser_s_alone(sqlite_options: CommentsOptions) -> None:
    """HttpOnly and SameSite always, Secure under TLS; signed, so that a changed one is nobody's."""
    async with open_site(sqlite_options) as site:
        await site.post("/api/signup", ANN)
        plain = (await site.post("/api/signin", ANN)).headers["Set-Cookie"]
        assert "HttpOnly" in plain
        assert "SameSite=Lax" in plain
        assert "; Secure" not in plain
        tls = (await site.post("/api/signin", ANN, scheme="https")).headers["Set-Cookie"]
        assert "; Secure" in tls
        value = plain.partition("=")[2].partition(";")[0]
        # Not the last character: some of its bits do not belong to the signature.
        forged = value[:-10] + ("A" if value[-10] != "A" else "B") + value[-9:]
        stranger = site.app.test_client()
        for cookie in (forged, "", "x.y.z", value.partition(".")[0]):
            headers = {"Cookie": f"identity={cookie}"}
            answer = await stranger.post("/api/new_comment", form={"text": "x"}, headers=headers)
            assert answer.location == "/login.html#sign-in"
        assert await site.list() == []


async def test_a_program_without_the_cookie_gets_401(sqlite_options: CommentsOptions) -> None:
    """Where a browser is sent to sign in."""
    async with open_site(sqlite_options) as site:
        answer = await site.post("/api/new_comment", {"text": "x"}, JSON)
        assert answer.status_code == 401
        assert await answer.json == {"error": "Sign in to comment."}


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    ],
)
async def test_another_site_s_form_is_refused(
    sqlite_options: CommentsOptions, headers: dict[str, str]
) -> None:
    """Whatever it posts, with the cookie or without, it does nothing."""
    async with open_site(sqlite_options) as site:
        await site.sign_in()
        for path in ("/api/new_comment", "/api/signin", "/api/signup", "/api/signout"):
            answer = await site.post(path, {**ANN, "text": "x"}, headers)
            assert answer.status_code == 403
            assert "Set-Cookie" not in answer.headers
        assert await site.list() == []
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert (await site.post("/api/new_comment", {"text": "x"}, own)).status_code == 302


async def test_lists_go_back_page_by_page(options: CommentsOptions) -> None:
    """Newest last; `before` continues; more than the most is the most; nonsense is 400."""
    async with open_site(msgspec.structs.replace(options, page_default=3, page_limit=4)) as site:
        await site.sign_in()
        for number in range(6):
            await site.post("/api/new_comment", {"text": str(number)})
        assert [c["text"] for c in await site.list()] == ["3", "4", "5"]
        first = await site.list("?limit=4")
        assert [c["text"] for c in first] == ["2", "3", "4", "5"]
        assert [c["text"] for c in await site.list("?limit=99")] == ["2", "3", "4", "5"]
        before = await site.list(f"?limit=4&before={first[0]['id']}")
        assert [c["text"] for c in before] == ["0", "1"]
        for query in ("limit=0", "limit=x", "before=-1", "limit=%C2%B2", f"before={10**19}"):
            answer = await site.browser.get(f"/api/comments?{query}")
            assert answer.status_code == 400
            assert "error" in await answer.json


async def test_a_list_is_answered_from_the_cache(
    sqlite_options: CommentsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reader costs no query; a new comment is in the next answer."""
    async with open_site(sqlite_options) as site:
        await site.sign_in()
        await site.list()
        calls = []
        read = site.comments._store.comments

        async def counted(limit: int, before: int | None = None) -> list[Any]:
            calls.append(limit)
            return await read(limit, before)

        monkeypatch.setattr(site.comments._store, "comments", counted)
        assert await site.list() == []
        assert calls == []
        await site.post("/api/new_comment", {"text": "new"})
        assert [c["text"] for c in await site.list()] == ["new"]
        assert calls == [50]


async def test_the_counter_counts_requests(sqlite_options: CommentsOptions) -> None:
    """All of them, whatever they ask and get, itself included; as text."""
    async with open_site(sqlite_options) as site:
        for path in ("/", "/health", "/missing"):
            await site.browser.get(path)
        answer = await site.browser.get("/stats/counter")
        assert answer.mimetype == "text/plain"
        assert await answer.get_data() == b"4\n"


async def test_limits_answer_429(options: CommentsOptions) -> None:
    """Sign-ups by address, sign-ins by address and by account, comments by account."""
    few = Rate(burst=2, per_second=0.001)
    limited = msgspec.structs.replace(options, sign_up_rate=few, account_rate=few, comment_rate=few)
    async with open_site(limited) as site:
        await site.sign_in()
        await site.post("/api/signup", {})
        wrong = {**ANN, "password": "wrong password"}
        calls = [("/api/signup", {}), ("/api/signin", wrong), ("/api/new_comment", {"text": "x"})]
        for path, form in calls:
            for _ in range(3):
                answer = await site.post(path, form, JSON)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) > 60
            assert "error" in await answer.json
        assert (await site.post("/api/signin", ANN)).status_code == 429  # for the right one too


async def test_large_forms_are_refused(sqlite_options: CommentsOptions) -> None:
    """By their declared length before they are read; every comment that is allowed fits."""
    async with open_site(sqlite_options) as site:
        await site.sign_in()
        large = {"text": "x" * 40_000}
        answer = await site.post("/api/new_comment", large, {**JSON, "Content-Length": "40005"})
        assert answer.status_code == 413
        assert (await site.post("/api/new_comment", large, JSON)).status_code == 400
        for letter in "x\u00e9\u6f22\U0001f642":
            answer = await site.post("/api/new_comment", {"text": letter * 2_000})
            assert answer.location == "/comments.html"


async def test_text_that_no_database_takes_is_cleaned(options: CommentsOptions) -> None:
    """NUL and bytes that are not UTF-8 do no harm."""
    async with open_site(options) as site:
        await site.sign_in()
        answer = await site.browser.post(
            "/api/new_comment",
            data=b"text=a%00b%ff%ed%a0%80c",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert answer.location == "/comments.html"
        (comment,) = await site.list()
        assert comment["text"].startswith("ab")
        for name in ("email", "password"):
            await site.post("/api/signin", {**ANN, name: "a\0b"})


async def test_a_failing_database_is_503(
    sqlite_options: CommentsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says "try later" and shows no SQL; the server goes on."""
    async with open_site(sqlite_options) as site:

        async def fail(*given: object) -> None:
            raise StoreError("SELECT went wrong")

        monkeypatch.setattr(site.comments._store, "comments", fail)
        monkeypatch.setattr(site.comments._store, "credentials", fail)
        for answer in (
            await site.browser.get("/api/comments"),
            await site.post("/api/signin", ANN),
        ):
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert b"SELECT" not in await answer.get_data()


@pytest.mark.parametrize("path", ["/", "/index.html", "/login.html", "/comments.html"])
async def test_pages_are_static_and_strict(sqlite_options: CommentsOptions, path: str) -> None:
    """HTML with a policy that runs no script but ours; unchanged pages are not sent again."""
    async with open_site(sqlite_options) as site:
        answer = await site.browser.get(path)
        assert answer.status_code == 200
        assert answer.mimetype == "text/html"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = await answer.get_data(as_text=True)
        links = re.findall(r'(?:href|src)="(/[^"#]*)', page)
        assert "//" not in "".join(links)
        for link in links:
            assert (await site.browser.get(link)).status_code == 200
        etag = {"If-None-Match": answer.headers["ETag"]}
        assert (await site.browser.get(path, headers=etag)).status_code == 304


async def test_the_api_key_is_not_the_application_s(sqlite_options: CommentsOptions) -> None:
    """Outside development mode its routes need no key, and back ends' routes still do."""
    settings = load_settings(
        comments=True,
        comments_secret_key="x" * 16,
        data_dir=str(sqlite_options.data_dir),
        api_key="the key",
    )
    assert isinstance(settings, CommentsSettings)
    options = settings.comments_options()
    async with open_test_node() as node, open_comments(node, options) as comments:
        blueprints = EXTENSION.blueprints(lambda: comments)
        browser = create_app(node, CurrentSettings(settings), blueprints).test_client()
        assert (await browser.get("/api/comments")).status_code == 200
        assert (await browser.post("/api/signup", form=ANN)).location == "/login.html"
        assert (await browser.post("/api/publish", data=b"{}")).status_code == 401


async def test_a_channel_that_is_none_stops_the_start(sqlite_options: CommentsOptions) -> None:
    """Said in one line, not at the first comment."""
    async with open_test_node(
        NodeOptions(channel=ChannelOptions(channel_regex=re.compile("x")))
    ) as node:
        with pytest.raises(CommentsError, match="cannot be published in 'comments'"):
            async with open_comments(node, sqlite_options):
                pass


async def test_a_stock_asgi_server_runs_it_too(
    sqlite_options: CommentsOptions,
) -> None:
    """`create_app()` opens node and application by itself, for as long as it is served."""
    settings = load_settings(dev=True, comments=True, data_dir=str(sqlite_options.data_dir))
    app = create_app(None, CurrentSettings(settings))
    async with app.test_app() as running:
        client = running.test_client()
        assert (await client.post("/api/signup", form=ANN)).location == "/login.html"


async def test_headers_that_take_long_to_read(sqlite_options: CommentsOptions) -> None:
    """A long `Accept` counts as a browser's, and a long `Content-Type` as too large a form."""
    async with open_site(sqlite_options) as site:
        for accept in ("application/json", "text/plain;q=0.1, " * 20 + "application/json"):
            answer = await site.post("/api/new_comment", {}, {"Accept": accept})
            assert answer.status_code == 401
        answer = await site.post(
            "/api/new_comment", {}, {"Accept": "text/plain;q=0.1, " * 800 + "application/json"}
        )
        assert (answer.status_code, answer.location) == (302, "/login.html#sign-in")
        form = "application/x-www-form-urlencoded" + "; a=b" * 3_000
        answer = await site.browser.post(
            "/api/new_comment", data=b"text=a", headers={"Content-Type": form}
        )
        assert answer.status_code == 413


async def test_the_log_of_a_failing_database_is_bounded(
    sqlite_options: CommentsOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Anybody may ask, and each request fails: one line a second."""
    async with open_site(sqlite_options) as site:

        async def fail(*given: object) -> None:
            raise StoreError("it is down")

        monkeypatch.setattr(site.comments._store, "comments", fail)
        with caplog.at_level(logging.ERROR, "repeater"):
            for _ in range(20):
                assert (await site.browser.get("/api/comments")).status_code == 503
        assert len(caplog.records) < 5


async def test_no_cookie_hides_a_session(sqlite_options: CommentsOptions) -> None:
    """The cookies beside it are not unquoted, whatever they are."""
    async with open_site(sqlite_options) as site:
        await site.post("/api/signup", ANN)
        signed = (await site.post("/api/signin", ANN)).headers.getlist("Set-Cookie")
        cookie = next(one for one in signed if one.startswith("identity=")).partition(";")[0]
        client = site.app.test_client(use_cookies=False)
        for before in ("a=b; ", 'quote="unclosed; ', "=; ", 'escaped="' + "\\101" * 2_000 + '"; '):
            me = await client.get("/api/me", headers={"Cookie": before + cookie})
            assert (await me.json)["user"]["name"] == "Ann"
