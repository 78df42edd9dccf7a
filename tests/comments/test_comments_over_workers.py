"""The application on several workers is one: one secret, one counter, no list that is old."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from repeater.comments.comments import prepare
from repeater.comments.options import CommentsError, CommentsOptions
from repeater.comments.settings import CommentsSettings
from repeater.serving.extension import load_settings, prepare_extension
from tests.comments.site import ANN, Site, open_site_on
from tests.deadlines import LOOP_ANSWERS
from tests.members import Workers, open_workers


@asynccontextmanager
async def open_sites(options: CommentsOptions) -> AsyncIterator[tuple[Workers, Site, Site]]:
    """The application on two workers, both begun at the same time, behind one browser."""
    with trio.fail_after(LOOP_ANSWERS):
        await prepare(options)
        async with open_workers(2) as workers:
            first, second = workers.nodes
            async with open_site_on(first, options) as one, open_site_on(second, options) as other:
                yield workers, one, other


def take_cookies(site: Site, other: Site) -> None:
    """Have the other's browser send the cookies that the first has."""
    for cookie in site.browser.cookie_jar or ():
        assert other.browser.cookie_jar is not None
        other.browser.cookie_jar.set_cookie(cookie)


async def test_a_sign_in_holds_on_every_worker(options: CommentsOptions) -> None:
    """They have one secret, which the supervisor has made, and one database."""
    async with open_sites(options) as (_, one, other):
        await one.sign_in()
        take_cookies(one, other)
        found = await (await other.browser.get("/api/me")).json
        assert found["user"]["name"] == ANN["name"]


async def test_a_list_on_another_worker_has_the_newest_comment(
    sqlite_options: CommentsOptions,
) -> None:
    """Its cache forgets before the comment is announced, and fills again."""
    async with open_sites(sqlite_options) as (_, one, other):
        await one.sign_in()
        assert await other.list() == []
        assert await one.list() == []
        for text in ("first", "second"):
            await one.post("/api/new_comment", {"text": text})
            assert [found["text"] for found in await other.list()][-1] == text
        calls = []
        load = other.comments._store.comments

        async def counted(limit: int, before: int | None) -> object:
            calls.append(limit)
            return await load(limit, before)

        other.comments._store.comments = counted  # type: ignore[method-assign,assignment]
        await other.list()
        assert calls == []


async def test_a_worker_that_has_not_begun_has_nothing_to_forget(
    sqlite_options: CommentsOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker of a start is no reason for a warning about the second."""
    await prepare(sqlite_options)
    async with open_workers(2) as workers, open_site_on(workers.nodes[0], sqlite_options) as one:
        assert await one.list() == []
        assert workers.nodes[0].statistics().broker_errors == {}
    assert "without the newest comment" not in caplog.text


async def test_a_silent_worker_does_not_stop_a_comment(
    sqlite_options: CommentsOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """The comment is stored and announced; the log says that a list may be old."""
    async with open_sites(sqlite_options) as (workers, one, _):
        await one.sign_in()
        workers.fall_silent(1)
        answer = await one.post("/api/new_comment", {"text": "here"})
        assert answer.location == "/comments.html"
        assert [found["text"] for found in await one.list()] == ["here"]
        assert "without the newest comment" in caplog.text


async def test_the_counter_is_one(sqlite_options: CommentsOptions) -> None:
    """Requests to any worker count, and those of one that has ended go on counting."""
    async with open_sites(sqlite_options) as (workers, one, other):
        for site in (one, other, other):
            await site.browser.get("/missing")
        assert await (await one.browser.get("/stats/counter")).get_data() == b"4\n"
        assert await (await other.browser.get("/stats/counter")).get_data() == b"5\n"
        member = other.node.control.me
        control = workers.group.running.pop(member.id)
        assert workers.group.supervision is not None
        workers.group.supervision.left(member)
        assert await (await one.browser.get("/stats/counter")).get_data() == b"6\n"
        workers.group.running[member.id] = control


async def test_a_supervisor_that_is_gone_has_no_counter(sqlite_options: CommentsOptions) -> None:
    """503, as with a database that is down."""
    async with open_sites(sqlite_options) as (workers, one, _):
        supervision, workers.group.supervision = workers.group.supervision, None
        assert (await one.browser.get("/stats/counter")).status_code == 503
        workers.group.supervision = supervision


async def test_preparing_twice_changes_nothing(options: CommentsOptions) -> None:
    """A supervisor prepares at each start."""
    await prepare(options)
    secret = (options.data_dir / "secret-key").read_bytes()
    await prepare(options)
    assert (options.data_dir / "secret-key").read_bytes() == secret


async def test_what_cannot_be_prepared_stops_the_start(tmp_path: Path) -> None:
    """In one line, before a worker is started."""
    settings = load_settings(
        comments=True,
        comments_secret_key="x" * 16,
        comments_database_url="postgresql://nobody@127.0.0.1:1/none",
        data_dir=str(tmp_path),
    )
    assert isinstance(settings, CommentsSettings)
    with pytest.raises(CommentsError, match="cannot use the comments' database"):
        await prepare_extension(settings)
    await prepare_extension(load_settings(comments=False))
