"""How other servers are asked: an issuer of tokens for its keys, an application for its verdicts.

Only the options decide where a request goes and which certificates it trusts. The environment of
the process (HTTP_PROXY, SSL_CERT_FILE and others) does not count.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar
from time import perf_counter
from typing import Final

import httpx
import trio

_SHOWN: Final = 200  # characters of an error of the system
_TURN: Final = 0.001  # seconds that an answer may be read without a checkpoint


class _NoCookies(CookieJar):
    """Reads no cookie and sends none. A policy that allows none comes too late: 50 ms for 64 KB."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Do nothing."""

    def add_cookie_header(self, request: object) -> None:
        """Do nothing."""


async def parts_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it came, part by part, with a checkpoint once in a millisecond.

    The library has one for each read of the socket, and 64 KiB can be 10,000 chunks.
    """
    ends = perf_counter() + _TURN
    async for part in response.aiter_raw():
        yield part
        if perf_counter() >= ends:
            # Shielded: a cancellation has to come out of the library's own waits, or its generators
            # are left to the garbage collector.
            await trio.lowlevel.cancel_shielded_checkpoint()
            ends = perf_counter() + _TURN


def failure_of(error: httpx.HTTPError) -> str:
    """Why a request got no answer. Of an error's own text only what the system said is repeated.

    The texts of other errors may hold a header or the URL of a proxy, which may be secrets.
    """
    kind = type(error).__name__
    if isinstance(error, httpx.ConnectError):
        return f"no connection ({kind}: {str(error)[:_SHOWN]})"
    return f"the connection broke ({kind})"


def make_client(
    transport: httpx.AsyncBaseTransport | None = None, *, proxy: str = "", ca_file: str = ""
) -> httpx.AsyncClient:
    """A client that proves certificates, follows no redirect and remembers no cookie.

    How many requests it has under way, and for how long, is for its users to bound.

    Args:
        transport: What carries requests in place of the network, for tests.
        proxy: The URL of the HTTP proxy that every request goes through; empty for none.
        ca_file: Certificates of the authorities to trust, PEM; empty for those of `certifi`.

    Raises:
        ValueError: the file cannot be read or holds no certificate.
    """
    trusted = trusted_certificates(ca_file)
    return httpx.AsyncClient(
        timeout=None,
        follow_redirects=False,
        cookies=_NoCookies(),
        transport=transport,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        proxy=httpx.Proxy(proxy, ssl_context=trusted) if proxy else None,
        verify=trusted or True,
        trust_env=False,
    )


def trusted_certificates(ca_file: str) -> ssl.SSLContext | None:
    """Who is trusted by this file; None without one.

    Raises:
        ValueError: the file cannot be read or holds no certificate; the text says which.
    """
    if not ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:  # one of the OSErrors, with a text that does not name the fault
        raise ValueError("the file does not hold a certificate in PEM") from None
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror}") from None
