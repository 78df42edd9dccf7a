"""Tells which user sends a request, by a signed cookie, and whether the server's own page sent it.

The cookie `identity` holds the key of a session and the time, signed. To sign out ends the session,
so that a copy of the cookie is worth nothing; a new secret key signs everybody out. The cookie
`browser` stays: it lets nobody in, it only says that its browser is no stranger who guesses.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from itsdangerous import BadData, URLSafeTimedSerializer
from quart import Response, request

from repeater.access.origins import origin_allowed
from repeater.comments.limits import KnownBrowser
from repeater.comments.options import CommentsError, CommentsOptions
from repeater.comments.problems import FOREIGN, ProblemError
from repeater.front.request import token_of_cookies

_COOKIE: Final = "identity"
_BROWSER: Final = "browser"
_BROWSER_TTL: Final = 31_536_000  # seconds, a year
_SECRET_FILE: Final = "secret-key"


class Identity:
    """Signs the cookies of responses, and reads the cookie of the current request."""

    def __init__(self, secret_key: str, ttl: float) -> None:
        self._sessions = _signer(secret_key, "repeater.comments.identity")
        self._browsers = _signer(secret_key, "repeater.comments.browser")
        self._ttl = int(ttl)

    def session(self) -> str | None:
        """The key of a session; None without a cookie, or if the cookie is forged or too old."""
        key = _value(self._sessions, _COOKIE, self._ttl)
        return key if isinstance(key, str) else None

    def browser(self) -> KnownBrowser | None:
        """The browser, if somebody signed in with it before; None if not, or if it is forged."""
        value = _value(self._browsers, _BROWSER, _BROWSER_TTL)
        return KnownBrowser(*value) if isinstance(value, list) and len(value) == 2 else None

    def remember(self, response: Response, session: str, account: str) -> None:
        """Sign the user of the session in, in the browser that gets the response."""
        self._set(response, _COOKIE, str(self._sessions.dumps(session)), self._ttl)
        known = self._browsers.dumps([account, secrets.token_urlsafe(12)])
        self._set(response, _BROWSER, str(known), _BROWSER_TTL)

    def forget(self, response: Response) -> None:
        """Sign the user out, in the browser that gets the response."""
        self._set(response, _COOKIE, "", 0)

    def _set(self, response: Response, name: str, value: str, seconds: int) -> None:
        response.set_cookie(
            name,
            value,
            max_age=seconds,
            path=f"{request.root_path}/",
            httponly=True,
            samesite="Lax",
            secure=request.scheme == "https",
        )


def _signer(secret_key: str, salt: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        secret_key,
        salt=salt,
        signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
    )


def _value(signer: URLSafeTimedSerializer, cookie: str, ttl: int) -> object:
    """What the cookie holds; None if it is missing, forged or older than `ttl` seconds."""
    try:
        # Not `request.cookies`: unquoting them takes 5 ms for 15 KB of a stranger's cookies.
        given = token_of_cookies(_cookie_headers(), cookie.encode())
        value: object = signer.loads(given, max_age=ttl)
    except BadData:
        return None
    return value


def _cookie_headers() -> Iterable[bytes]:
    return (one.encode("latin-1") for one in request.headers.getlist("Cookie"))


def check_own_page() -> None:
    """Check that a form comes from a page of this server, or from a program.

    Every browser says in a header where a form comes from. A request without this header comes
    from a program, and a page of another site cannot make a program send a user's cookie.

    Raises:
        ProblemError: a page of another site sent the form (403).
    """
    site = request.headers.get("Sec-Fetch-Site")
    own = site in ("same-origin", "none")
    if site is None:
        own = origin_allowed(request.headers.get("Origin"), request.headers.get("Host"), ())
    if not own:
        raise ProblemError(FOREIGN)


def load_secret_key(options: CommentsOptions) -> str:
    """The configured secret, or the one in the data directory, which the first start makes.

    Raises:
        CommentsError: the file cannot be read or written.
    """
    if options.secret_key:
        return options.secret_key
    path = options.data_dir / _SECRET_FILE
    try:
        return _read(path) or _make(path)
    except OSError as error:
        raise CommentsError(f"cannot keep a secret in {path}: {error.strerror}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _make(path: Path) -> str:
    """Write a new secret to a file that only this user may read, and return it."""
    # The secret is written to a draft, then linked: no process reads half a secret.
    key = secrets.token_urlsafe(32)
    draft = path.with_name(f".{_SECRET_FILE}-{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(key)
        os.link(draft, path)
    except FileExistsError:
        return _read(path)  # Another server made one meanwhile.
    finally:
        draft.unlink()
    return key
