"""Tells which user sends a request, by a signed cookie, and whether the server's own page sent it.

The cookie holds the opaque user id and the time, signed. The server stores nothing for a cookie: to
sign out means to delete the cookie in that browser, and a new secret key signs everybody out.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from itsdangerous import BadData, URLSafeTimedSerializer
from quart import Response, request

from repeater.access.origins import origin_allowed
from repeater.comments.options import CommentsError, CommentsOptions
from repeater.comments.problems import FOREIGN, ProblemError

_COOKIE: Final = "identity"
_SECRET_FILE: Final = "secret-key"


class Identity:
    """Signs the cookies of responses, and reads the cookie of the current request."""

    def __init__(self, secret_key: str, ttl: float) -> None:
        self._signer = URLSafeTimedSerializer(
            secret_key,
            salt="repeater.comments.identity",
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )
        self._ttl = int(ttl)

    def uid(self) -> str | None:
        """The user's id; None without a cookie, or if the cookie is forged or too old."""
        try:
            uid = self._signer.loads(request.cookies.get(_COOKIE, ""), max_age=self._ttl)
        except BadData:
            return None
        return uid if isinstance(uid, str) else None

    def remember(self, response: Response, uid: str) -> None:
        """Sign the user in, in the browser that gets the response."""
        self._set(response, str(self._signer.dumps(uid)), self._ttl)

    def forget(self, response: Response) -> None:
        """Sign the user out, in the browser that gets the response."""
        self._set(response, "", 0)

    def _set(self, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            _COOKIE,
            value,
            max_age=seconds,
            httponly=True,
            samesite="Lax",
            secure=request.scheme == "https",
        )


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
