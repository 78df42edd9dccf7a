"""The application itself, without HTTP: sign up, sign in, comment, list.

Rule: a comment is stored, then the cached lists are forgotten, then the comment is announced. So a
page that subscribes and then reads the list has every comment: in the list, or live, or both.
PostgreSQL announces a comment as soon as it is stored; there nobody gets a cached list from before
the transaction until after it, so the same holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio
from sqlalchemy import URL

from repeater.clients.counters import Counters
from repeater.comments.announcer import Announcer
from repeater.comments.cache import Pages
from repeater.comments.identity import Identity, load_secret_key
from repeater.comments.limits import Guesses, KnownBrowser, RateLimit, account_key
from repeater.comments.options import CHANNEL, CommentsError, CommentsOptions, Rate
from repeater.comments.passwords import Passwords
from repeater.comments.problems import BUSY, SIGN_IN, TAKEN, WRONG, ProblemError
from repeater.comments.rules import (
    check_address,
    check_name,
    check_password,
    check_text,
    is_address,
    normal_address,
)
from repeater.comments.store import Comment, Store, StoreError, UnknownCommitError, User
from repeater.comments.tables import make_engine
from repeater.comments.threads import Workers
from repeater.comments.workers_cache import WorkersCache
from repeater.errors import BrokerError, ReplyError, open_service_nursery
from repeater.node import Node
from repeater.private_files import make_private_database, make_private_folder

_REQUESTS: Final = "comments_requests"
_RESUME_TIMEOUT: Final = 5.0  # seconds at the start, to announce what the last process left


class Comments:
    """The running application. Made and ended by `open_comments`."""

    def __init__(
        self,
        options: CommentsOptions,
        store: Store,
        passwords: Passwords,
        pages: Pages,
        announcer: Announcer,
        identity: Identity,
        counters: Counters,
    ) -> None:
        self.options = options
        self.identity = identity
        self._store = store
        self._passwords = passwords
        self._pages = pages
        self._announcer = announcer
        self._counters = counters
        self._sign_ups = self._limit(options.sign_up_rate)
        self._sign_ins = self._limit(options.sign_in_rate)
        self._guesses = Guesses(
            options.account_rate, options.account_total_rate, options.rate_memory
        )
        self._comment_addresses = self._limit(options.comment_address_rate)
        self._comment_accounts = self._limit(options.comment_rate)

    def _limit(self, rate: Rate) -> RateLimit:
        return RateLimit(rate, self.options.rate_memory)

    async def sign_up(self, peer: str, address: str, password: str, name: str = "") -> User:
        """Make a user.

        Args:
            peer: The address that the request comes from, for the rate limit.
            address: The user's e-mail address; never shown to anybody.
            password: Stored as an argon2 hash only.
            name: The name that others see; made up if empty.

        Raises:
            ProblemError: an argument is invalid, or the address has an account already.
            StoreError: the database failed.
        """
        self._sign_ups.take(peer)
        address = check_address(address)
        check_password(password, address)
        name = check_name(name)
        user = await self._store.add_user(address, name, await self._passwords.hash(password))
        if user is None:
            raise ProblemError(TAKEN)
        return user

    async def sign_in(
        self, peer: str, address: str, password: str, browser: KnownBrowser | None = None
    ) -> tuple[str, str]:
        """Begin a session; return its key, and the account as `KnownBrowser` names it.

        A wrong address and a wrong password get the same answer, equally late. Nothing of them is
        kept: only wrong attempts are counted, under a digest (see `Guesses`).

        Args:
            peer: The address that the request comes from.
            address: What was given as the user's e-mail address.
            password: What was given as the password.
            browser: Where somebody signed in before, if that is known.

        Raises:
            ProblemError: address or password is wrong (401), or there were too many tries (429).
            StoreError: the database failed.
        """
        address = normal_address(address)
        account = account_key(address)
        if browser is None or browser.account != account:
            self._sign_ins.take(peer)
        if not is_address(address):
            await self._passwords.verify(None, password)
            raise ProblemError(WRONG)
        with self._guesses.attempt(account, peer, browser):
            known = await self._store.credentials(address)
            right = await self._passwords.verify(known[1] if known else None, password)
            if known is None or not right:
                raise ProblemError(WRONG)
        options = self.options
        session = await self._store.add_session(
            known[0], int(options.identity_ttl), options.account_sessions
        )
        return session, account

    async def sign_out(self, session: str | None) -> None:
        """End a session; see `Store.end_session`.

        Raises:
            StoreError: the database failed.
        """
        if session is not None:
            await self._store.end_session(session)

    async def user(self, session: str | None) -> User | None:
        """The user of a session; None without a session, or if it has ended."""
        return None if session is None else await self._store.session_user(session)

    async def post(self, peer: str, session: str | None, text: str) -> Comment:
        """Store a comment, and announce it to every open page.

        Raises:
            ProblemError: the user is not signed in (401), the text is empty or too long (400), or
                there were too many comments (429).
            StoreError: the database failed.
        """
        if session is None:
            raise ProblemError(SIGN_IN)
        self._comment_addresses.take(peer)
        user = await self.user(session)
        if user is None:
            raise ProblemError(SIGN_IN)  # the cookie is valid, but its session has ended
        self._comment_accounts.take(user.uid)
        text = check_text(text, self.options.comment_limit)
        # Shielded: a browser that disconnects now must not keep the stored comment from being
        # announced. The shield does not last: the database and the cache have timeouts.
        with trio.CancelScope(shield=True):
            comment = await self._add(user.uid, text)
        if comment is None:
            raise ProblemError(SIGN_IN)  # the user does not exist any more
        return comment

    async def _add(self, uid: str, text: str) -> Comment | None:
        if self._store.publishes:
            async with self._pages.held(lasting=UnknownCommitError):
                return await self._store.add_comment(uid, text)
        comment = await self._store.add_comment(uid, text)
        if comment is not None:
            await self._pages.forget()
            self._announcer.wake()
        return comment

    def count_request(self) -> None:
        """Count a request for any page of the server."""
        self._counters.count(_REQUESTS)

    async def requests_served(self) -> int:
        """The number of such requests since the start, on all workers.

        Raises:
            ProblemError: the supervisor of the workers does not answer (503).
        """
        try:
            return await self._counters.total(_REQUESTS)
        except BrokerError:
            raise ProblemError(BUSY, retry_after=1.0) from None

    async def list_json(self, limit: int, before: int | None) -> bytes:
        """The newest comments before the id (or of all) as a JSON list, newest last; maybe cached.

        Raises:
            StoreError: the database failed.
        """
        limit = min(limit, self.options.page_limit)

        async def load() -> bytes:
            return msgspec.json.encode(await self._store.comments(limit, before))

        return await self._pages.get(f"{limit}:{before or ''}", load)


@asynccontextmanager
async def open_comments(node: Node, options: CommentsOptions) -> AsyncIterator[Comments]:
    """Run the application on a node for as long as the block lasts.

    Comments that the last process stored and did not announce are announced before the block
    begins, or, if that takes more than five seconds, while the block runs. At the end, a comment
    that is being announced is either announced or left for the next start. What a PostgreSQL
    announces, the server takes from there (setting `outbox`); this block does not.

    Raises:
        CommentsError: the data directory, the database, or the URL of the database or cache is
            unusable, or a PostgreSQL does not let its role publish.
    """
    _check_channel(node)
    async with AsyncExitStack() as stack:
        identity = Identity(_make_secret_key(options), options.identity_ttl)
        store = await _open_store(options, stack)
        passwords = await Passwords.make(Workers(options.password_threads, options.thread_queue))
        pages = await _open_pages(options, node, stack)
        announcer = Announcer(store, node)
        await pages.forget()  # The last process may have ended after it stored a comment.
        with trio.move_on_after(_RESUME_TIMEOUT):
            await announcer.announce_all()
        nursery = await stack.enter_async_context(open_service_nursery())
        nursery.start_soon(announcer.run)
        yield Comments(options, store, passwords, pages, announcer, identity, node.counters)


async def prepare(options: CommentsOptions) -> None:
    """Make what all workers share: the directory, the secret, and the tables of the database.

    Called once by their supervisor, before the first worker. Idempotent.

    Raises:
        CommentsError: as `open_comments`.
    """
    _make_secret_key(options)
    async with AsyncExitStack() as stack:
        await _open_store(options, stack)


def _make_secret_key(options: CommentsOptions) -> str:
    """The secret that signs cookies. Makes the data directory.

    Raises:
        CommentsError: the directory cannot be made, or the secret cannot be kept in it.
    """
    _make_directory(options.data_dir)
    return load_secret_key(options)


async def _open_store(options: CommentsOptions, stack: AsyncExitStack) -> Store:
    """The database with its tables. The stack closes it."""
    engine = make_engine(options)
    stack.callback(engine.dispose)
    _make_database(engine.url)
    store = Store(engine, Workers(options.database_threads, options.thread_queue))
    try:
        await store.create_tables()
    except StoreError as error:
        raise CommentsError(f"cannot use the comments' database: {error}") from None
    return store


async def _open_pages(options: CommentsOptions, node: Node, stack: AsyncExitStack) -> Pages:
    """The cache of the lists, in memory or at its URL. The stack closes it."""
    if not options.cache_url:
        return Pages(WorkersCache(options.cache_ttl, node))
    from repeater.comments.valkey import open_valkey_cache  # its client library is optional

    return Pages(await stack.enter_async_context(open_valkey_cache(options)))


def _check_channel(node: Node) -> None:
    try:
        node.channels.options(CHANNEL)
    except ReplyError as error:
        raise CommentsError(f"comments cannot be published in {CHANNEL!r}: {error}") from None


def _make_directory(path: Path) -> None:
    try:
        make_private_folder(path)
    except OSError as error:
        raise CommentsError(f"cannot make the data directory {path}: {error.strerror}") from None


def _make_database(url: URL) -> None:
    """Make the file of an SQLite database; one with a `file:` URL is its user's own."""
    if url.get_backend_name() != "sqlite" or (url.database or ":memory:").startswith(
        (":", "file:")
    ):
        return
    path = Path(url.database or "")
    try:
        make_private_database(path)
    except OSError as error:
        raise CommentsError(f"cannot use the comments' database {path}: {error.strerror}") from None
