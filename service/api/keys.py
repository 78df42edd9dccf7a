"""The API key: who may call at all (protocol, section 18.1).

Compared in constant time, as the bytes that came; never logged, never part of an answer.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import unquote_to_bytes

_SCHEME: Final = b"apikey"
_PARAMETER: Final = b"api_key"


class ApiKey:
    """The one key of a server. Without a key nobody may call, unless it is `insecure`."""

    def __init__(self, key: str | None, *, insecure: bool) -> None:
        self._key = None if key is None else key.encode()
        self._insecure = insecure

    def admits(self, header: bytes | None, authorization: bytes | None, query: bytes) -> bool:
        """Whether a request may call.

        Args:
            header: The value of `X-API-Key`.
            authorization: The value of `Authorization`; `apikey <key>` counts where there is
                no `X-API-Key`.
            query: The query string; `api_key=<key>` counts where neither header is right.
        """
        if self._key is None:
            return self._insecure
        if header is None and authorization is not None:
            scheme, _, rest = authorization.partition(b" ")
            header = rest.strip() if scheme.lower() == _SCHEME else None
        return self._matches(header) or (bool(query) and self._matches(_parameter(query)))

    def _matches(self, given: bytes | None) -> bool:
        # An empty key in the configuration is no key.
        return bool(given and self._key) and hmac.compare_digest(given or b"", self._key or b"")


def _parameter(query: bytes) -> bytes | None:
    """The first `api_key` of a query string."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name == _PARAMETER:
            return unquote_to_bytes(value.replace(b"+", b" "))
    return None
