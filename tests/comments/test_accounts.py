"""Accounts: strangers lock nobody out, sign-out ends the session, nothing that was sent is kept."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

import msgspec
import pytest
import trio
from quart import Response
from trio.testing import MockClock

from repeater.comments import problems
from repeater.comments.cache import _MEMORY, _OVERHEAD, MemoryCache
from repeater.comments.limits import Guesses, KnownBrowser, account_key
from repeater.comments.options import CommentsOptions, Rate
from repeater.comments.problems import ProblemError
from repeater.comments.rules import check_name
from repeater.comments.store import Comment
from tests.comments.site import ANN, JSON, Site, open_site

WRONG = {**ANN, "password": "wrong password"}
ANN_KEY = account_key(ANN["email"])


async def from_address(site: Site, address: str, form: dict[str, str]) -> Response:
    """A sign-in of a browser without cookies at this address."""
    return await site.app.test_client().post(
        "/api/signin", form=form, headers=JSON, scope_base={"client": (address, 1)}
    )


async def test_strangers_do_not_lock_a_user_out(options: CommentsOptions) -> None:
    """Whoever guesses is refused at that address; the user gets in from another one."""
    async with open_site(options) as site:
        await site.post("/api/signup", ANN)
        answers = [await from_address(site, "192.0.2.1", WRONG) for _ in range(11)]
        assert [one.status_code for one in answers] == [401] * 10 + [429]
        assert (await from_address(site, "192.0.2.1", ANN)).status_code == 429
        assert (await from_address(site, "192.0.2.2", ANN)).status_code == 302


async def test_a_known_browser_goes_through(options: CommentsOptions) -> None:
    """Where the user signed in before, no stranger's attempts count, however many there are.

    Not even those at the same address, and not after the user signed out.
    """
    few = Rate(burst=3, per_second=0.001)
    limited = msgspec.structs.replace(
        options,
        account_rate=few,
        account_total_rate=few,
        sign_in_rate=Rate(burst=6, per_second=0.001),
    )
    async with open_site(limited) as site:
        await site.sign_in()
        await site.post("/api/signout")
        for _ in range(10):
            await from_address(site, "<local>", WRONG)
        assert (await from_address(site, "<local>", ANN)).status_code == 429
        assert (await from_address(site, "192.0.2.9", ANN)).status_code == 429  # the wider limit
        assert (await site.post("/api/signin", ANN)).location == "/comments.html"


async def test_a_known_browser_is_known_for_its_account_only(options: CommentsOptions) -> None:
    """A cookie of one's own account opens no way to guess another's password."""
    few = Rate(burst=2, per_second=0.001)
    async with open_site(msgspec.structs.replace(options, account_rate=few)) as site:
        await site.post("/api/signup", {**ANN, "email": "bob@example.com"})
        await site.sign_in()
        form = {"email": "bob@example.com", "password": "wrong password"}
        answers = [await site.post("/api/signin", form, JSON) for _ in range(3)]
        assert [one.status_code for one in answers] == [401, 401, 429]


async def test_right_passwords_do_not_count(options: CommentsOptions) -> None:
    """A user with many devices is never refused."""
    few = Rate(burst=2, per_second=0.001)
    limited = msgspec.structs.replace(options, account_rate=few, account_total_rate=few)
    async with open_site(limited) as site:
        await site.post("/api/signup", ANN)
        answers = [await from_address(site, "192.0.2.1", ANN) for _ in range(5)]
        assert {one.status_code for one in answers} == {302}


async def test_attempts_at_the_same_time(autojump_clock: MockClock) -> None:
    """A place is taken before the password is looked at, and given back unless it was wrong."""
    guesses = Guesses(Rate(burst=2, per_second=0.001), Rate(burst=9, per_second=0.001), 100)
    outcomes: list[str] = []

    async def attempt(problem: problems.Problem | None) -> None:
        try:
            with guesses.attempt("ann", "peer", None):
                await trio.sleep(1)
                if problem is not None:
                    raise ProblemError(problem)
        except ProblemError as error:
            outcomes.append(error.problem.name)
        else:
            outcomes.append("right")

    async with trio.open_nursery() as nursery:
        for problem in (None, problems.BUSY, problems.WRONG):
            nursery.start_soon(attempt, problem)
    assert sorted(outcomes) in (["busy", "right", "too-many"], ["busy", "too-many", "wrong"],
                                ["right", "too-many", "wrong"])  # fmt: skip
    with trio.move_on_after(0.5):  # who hangs up has learnt nothing
        await attempt(problems.WRONG)
    outcomes.clear()
    for _ in range(3):
        await attempt(problems.WRONG)
    assert outcomes[-1] == "too-many"
    browser = KnownBrowser("ann", "id")
    with guesses.attempt("ann", "peer", browser):
        pass


async def test_sign_in_keeps_nothing_that_was_sent(sqlite_options: CommentsOptions) -> None:
    """A long text that is not an address is wrong at once, and no memory holds it afterwards."""
    async with open_site(sqlite_options) as site:
        long = "x" * 30_000
        for number in range(8):
            form = {"email": f"{number}{long}", "password": f"{number}{long}"}
            assert (await site.post("/api/signin", form, JSON)).status_code == 401
        await site.post("/api/signin", {**WRONG, "email": "x" * 240 + "@example.com"}, JSON)
        for limit in vars(site.comments._guesses).values():
            assert all(len(key) < 100 for key in limit._buckets._buckets)
        gc.collect()
        assert not [one for one in _texts() if len(one) >= 30_000 and long in one]


def _texts() -> Sequence[str]:
    """The keys of all dictionaries, where a limit would keep what it counts."""
    # By their type: `isinstance` asks some objects, Django's settings among them, what they are.
    tables = [one for one in gc.get_objects() if issubclass(type(one), dict)]
    return [key for table in tables for key in list(table) if isinstance(key, str)]


async def test_a_wrong_address_costs_a_hash(
    sqlite_options: CommentsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not an address is answered as late as a wrong password."""
    async with open_site(sqlite_options) as site:
        verified: list[str | None] = []
        verify = site.comments._passwords.verify

        async def count(stored: str | None, password: str) -> bool:
            verified.append(stored)
            return await verify(stored, password)

        monkeypatch.setattr(site.comments._passwords, "verify", count)
        await site.post("/api/signin", {"email": "nothing", "password": "x"}, JSON)
        assert verified == [None]


async def test_sign_out_ends_a_copied_cookie(options: CommentsOptions) -> None:
    """The copy of a cookie is nobody's, though its signature and its age are right."""
    async with open_site(options) as site:
        await site.post("/api/signup", ANN)
        mine = await site.post("/api/signin", ANN)
        other = await from_address(site, "192.0.2.2", ANN)
        copy, elsewhere = (one.headers["Set-Cookie"].partition(";")[0] for one in (mine, other))

        async def user(cookie: str) -> object:
            thief = site.app.test_client()
            answer = await thief.get("/api/me", headers={"Cookie": cookie})
            return (await answer.json)["user"]

        assert await user(copy)
        await site.post("/api/signout")
        assert await user(copy) is None
        headers = {**JSON, "Cookie": copy}
        thief = site.app.test_client()
        answer = await thief.post("/api/new_comment", form={"text": "x"}, headers=headers)
        assert answer.status_code == 401
        assert await user(elsewhere)  # another browser of the same user stays signed in


async def test_an_account_has_so_many_sessions(options: CommentsOptions) -> None:
    """One more ends the oldest; those that expired are forgotten; others' are not touched."""
    async with open_site(options) as site:
        store = site.comments._store
        ann = await store.add_user("ann@example.com", "Ann", "hash")
        bob = await store.add_user("bob@example.com", "Bob", "hash")
        assert ann is not None
        assert bob is not None
        bobs = await store.add_session(bob.uid, 60, 3)
        expired = await store.add_session(ann.uid, 0, 3)
        assert await store.session_user(expired) is None
        keys = [await store.add_session(ann.uid, 60, 3) for _ in range(5)]
        users = [await store.session_user(key) for key in (*keys, bobs)]
        assert users == [None, None, ann, ann, ann, bob]


@pytest.mark.parametrize("letter", ["\u202e", "\u2066", "\u200f", "\u200b", "\ufeff", "\x1b"])
def test_names_without_format_characters(letter: str) -> None:
    """A name turns no text around it, and looks like no other name."""
    assert check_name(f"An{letter}n") == "Ann"
    assert check_name(letter).strip(letter)  # a name is made up


async def test_the_cache_counts_all_it_holds(autojump_clock: MockClock) -> None:
    """Small lists under many keys have the same bound as large ones; the newest are kept."""
    cache = MemoryCache(ttl=10.0)
    for number in range(100_000):
        await cache.put("0", f"50:{number}", b"[]")
    held = len(cache._pages)
    assert held * _OVERHEAD <= _MEMORY
    size = sum(sys.getsizeof(key) + sys.getsizeof(value[1]) for key, value in cache._pages.items())
    assert size + sys.getsizeof(cache._pages) <= _MEMORY
    assert await cache.get("0", "50:99999") == b"[]"
    assert await cache.get("0", "50:0") is None


async def test_the_cache_replaces(autojump_clock: MockClock) -> None:
    """A list that is stored again counts once, and expired lists go before lists that are valid."""
    cache = MemoryCache(ttl=10.0)
    large = b"x" * (_MEMORY // 3)
    for _ in range(10):
        await cache.put("0", "a", large)
        await cache.put("0", "b", large)
    assert await cache.get("0", "a") == await cache.get("0", "b") == large
    await trio.sleep(6)
    await cache.put("0", "a", large)
    await trio.sleep(6)  # `b` has expired
    await cache.put("0", "c", b"[]")
    assert list(cache._pages) == ["a", "c"]
    assert cache._size == sum(
        len(key) + len(one[1]) + _OVERHEAD for key, one in cache._pages.items()
    )


async def test_a_browser_that_hangs_up_after_the_commit(
    sqlite_options: CommentsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its comment is stored, so the pages are told of it all the same."""
    async with open_site(sqlite_options) as site:
        user = await site.comments._store.add_user("ann@example.com", "Ann", "hash")
        assert user is not None
        session = await site.comments._store.add_session(user.uid, 60, 3)
        add, woken = site.comments._store.add_comment, trio.Event()
        browser = trio.CancelScope()

        async def hang_up(uid: str, text: str) -> Comment | None:
            comment = await add(uid, text)
            browser.cancel()
            await trio.lowlevel.checkpoint()
            return comment

        monkeypatch.setattr(site.comments._store, "add_comment", hang_up)
        monkeypatch.setattr(site.comments._announcer, "wake", woken.set)
        with browser:
            await site.comments.post("peer", session, "hello")
        assert woken.is_set()
