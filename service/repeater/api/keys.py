"""The API key, which a request needs to make calls (protocol, section 18.1).

Keys are compared in constant time, as the bytes that came. A key is never logged and never part of
an answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from repeater.causes import Cause, Why

_SCHEME: Final = b"apikey"
_PARAMETER: Final = b"api_key"

_NO_KEYS: Final = Why(
    Cause.API_KEY,
    "this server has no API key, so nobody may call it",
    "set api_key, or start it in development mode",
)
_NO_KEY: Final = Why(
    Cause.API_KEY, "the request has no API key", "send the header X-API-Key: <api_key>"
)
_OTHER_SCHEME: Final = Why(
    Cause.API_KEY,
    "the header Authorization has another scheme than apikey",
    "send Authorization: apikey <api_key>, or the header X-API-Key",
)
_WRONG_KEY: Final = Why(
    Cause.API_KEY,
    "the API key is another one than the server's",
    "compare it with api_key of the configuration",
)


class ApiKey:
    """The keys of a server: one, or two while a key is being replaced.

    Without a key, no request may call, unless the server is `insecure`.
    """

    def __init__(self, keys: Sequence[bytes], *, insecure: bool) -> None:
        self._keys: tuple[bytes, ...] = ()
        self._insecure = insecure
        self.replace(keys)

    def replace(self, keys: Sequence[bytes]) -> None:
        """Accept these keys, and no others, from now on."""
        self._keys = tuple(key for key in keys if key)  # an empty key would admit every request

    def admits(self, header: bytes | None, authorization: bytes | None, query: bytes) -> bool:
        """Whether a request may call.

        Args:
            header: The value of `X-API-Key`.
            authorization: The value of `Authorization`; `apikey <key>` counts if the request has
                no `X-API-Key`.
            query: The query string; `api_key=<key>` counts if neither header is right.
        """
        if not self._keys:
            return self._insecure
        if header is None and authorization is not None:
            scheme, _, rest = authorization.partition(b" ")
            header = rest.strip() if scheme.lower() == _SCHEME else None
        return self._matches(header) or (bool(query) and self._matches(_parameter(query)))

    def why_not(self, header: bytes | None, authorization: bytes | None, query: bytes) -> Why:
        """Why `admits` refused these; says nothing of a key."""
        if not self._keys:
            return _NO_KEYS
        if header or _parameter(query):
            return _WRONG_KEY
        if header is not None or not authorization:
            return _NO_KEY
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() != _SCHEME:
            return _OTHER_SCHEME
        return _WRONG_KEY if rest.strip() else _NO_KEY

    def _matches(self, given: bytes | None) -> bool:
        # Compare every key, so that the time does not tell which key matched.
        matches = [hmac.compare_digest(given or b"", key) for key in self._keys]
        return any(matches)


def _parameter(query: bytes) -> bytes | None:
    """The first `api_key` of a query string."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == _PARAMETER:
            return unquote_to_bytes(value.replace(b"+", b" "))
    return None
