"""The application itself, without HTTP: sign up, sign in, comment, list.

Rule: a comment is stored, then the cached lists are forgotten, then the comment is announced. So a
page that subscribes and then reads the list has every comment: in the list, or live, or both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio
from sqlalchemy import URL

from repeater.comments.announcer import Announcer
from repeater.comments.cache import MemoryCache, Pages
from repeater.comments.identity import Identity, load_secret_key
from repeater.comments.limits import RateLimit
from repeater.comments.options import CHANNEL, CommentsError, CommentsOptions, Rate
from repeater.comments.passwords import Passwords
from repeater.comments.problems import SIGN_IN, TAKEN, WRONG, ProblemError
from repeater.comments.rules import (
    check_address,
    check_name,
    check_password,
    check_text,
    normal_address,
)
from repeater.comments.store import Comment, Store, StoreError, User
from repeater.comments.tables import make_engine
from repeater.comments.threads import Workers
from repeater.errors import ReplyError, open_service_nursery
from repeater.node import Node
from repeater.private_files import make_private_database, make_private_folder

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
    ) -> None:
        self.options = options
        self.identity = identity
        self.requests_served = 0
        self._store = store
        self._passwords = passwords
        self._pages = pages
        self._announcer = announcer
        self._sign_ups = self._limit(options.sign_up_rate)
        self._sign_ins = self._limit(options.sign_in_rate)
        self._accounts = self._limit(options.account_rate)
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

    async def sign_in(self, peer: str, address: str, password: str) -> str:
        """The user's id. A wrong address and a wrong password get the same answer, equally late.

        Raises:
            ProblemError: address or password is wrong (401), or there were too many tries (429).
            StoreError: the database failed.
        """
        self._sign_ins.take(peer)
        address = normal_address(address)
        self._accounts.take(address)
        known = await self._store.credentials(address)
        right = await self._passwords.verify(known[1] if known else None, password)
        if known is None or not right:
            raise ProblemError(WRONG)
        return known[0]

    async def user(self, uid: str | None) -> User | None:
        """The user with the id in a cookie; None without an id, or if the user does not exist."""
        return None if uid is None else await self._store.user(uid)

    async def post(self, peer: str, uid: str | None, text: str) -> Comment:
        """Store a comment, and announce it to every open page.

        Raises:
            ProblemError: the user is not signed in (401), the text is empty or too long (400), or
                there were too many comments (429).
            StoreError: the database failed.
        """
        if uid is None:
            raise ProblemError(SIGN_IN)
        self._comment_addresses.take(peer)
        self._comment_accounts.take(uid)
        text = check_text(text, self.options.comment_limit)
        # Shielded: a browser that disconnects now must not keep the stored comment from being
        # announced. The shield does not last: the database and the cache have timeouts.
        with trio.CancelScope(shield=True):
            comment = await self._store.add_comment(uid, text)
            if comment is not None:
                await self._pages.forget()
                self._announcer.wake()
        if comment is None:
            raise ProblemError(SIGN_IN)  # the cookie is valid, but its user does not exist any more
        return comment

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
    that is being announced is either announced or left for the next start.

    Raises:
        CommentsError: the data directory, the database, or the URL of the database or cache is
            unusable.
    """
    _check_channel(node)
    _make_directory(options.data_dir)
    identity = Identity(load_secret_key(options), options.identity_ttl)
    async with AsyncExitStack() as stack:
        engine = make_engine(options)
        stack.callback(engine.dispose)
        _make_database(engine.url)
        store = Store(engine, Workers(options.database_threads, options.thread_queue))
        try:
            await store.create_tables()
        except StoreError as error:
            raise CommentsError(f"cannot use the comments' database: {error}") from None
        passwords = await Passwords.make(Workers(options.password_threads, options.thread_queue))
        pages = await _open_pages(options, stack)
        announcer = Announcer(store, node)
        await pages.forget()  # The last process may have ended after it stored a comment.
        with trio.move_on_after(_RESUME_TIMEOUT):
            await announcer.announce_all()
        nursery = await stack.enter_async_context(open_service_nursery())
        nursery.start_soon(announcer.run)
        yield Comments(options, store, passwords, pages, announcer, identity)


async def _open_pages(options: CommentsOptions, stack: AsyncExitStack) -> Pages:
    """The cache of the lists, in memory or at its URL. The stack closes it."""
    if not options.cache_url:
        return Pages(MemoryCache(options.cache_ttl))
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
