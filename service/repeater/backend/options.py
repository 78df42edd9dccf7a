"""The options of callbacks to an application's back end. Values only.

There are two kinds. A *request* callback is a question, and a client waits for its answer. An
*event* callback tells the back end what happened, and no client waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, get_args

import msgspec

from repeater.access.tokens.options import is_http
from repeater.options import Options, OptionsError, SecretText

CallbackKind = Literal["connect", "refresh", "subscribe", "publish", "sub_refresh", "rpc"]
EventKind = Literal[
    "connected",
    "disconnected",
    "subscribed",
    "unsubscribed",
    "channel_occupied",
    "channel_vacated",
    "node_lost",
]
EVENT_KINDS: Final[frozenset[EventKind]] = frozenset(get_args(EventKind))

_HEADER: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-z]+")  # RFC 9110, in lower case
# Headers of one hop, headers of the request's own body, and the signature that Repeater adds.
_NOT_FORWARDED: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-repeater-signature",
    }
)
_STATUS: Final = re.compile(r"([1-5][0-9]{2})\s*=\s*([0-9]{3,4})")


def _lower(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names)


class CallbackOptions(Options, frozen=True, kw_only=True):
    """Callbacks to a back end (protocol, section 19). Times are seconds, sizes bytes.

    Secrets stay out of `repr`.

    Raises:
        OptionsError: an invalid URL, header or status; the text holds no secret.
    """

    connect_url: str = ""
    """Asked for the user of a connection without a token. If empty, nothing is asked."""

    refresh_url: str = ""
    """Asked whether a connection goes on after its expiry. The client does not refresh it then."""

    subscribe_url: str = ""
    """Asked whether a client may subscribe, in namespaces with `subscribe_proxy_enabled`."""

    publish_url: str = ""
    """Asked whether a client may publish, in namespaces with `publish_proxy_enabled`."""

    sub_refresh_url: str = ""
    """Asked whether a subscription goes on after its expiry, in namespaces with
    `sub_refresh_proxy_enabled`. The client does not refresh it then."""

    rpc_url: str = ""
    """Answers the clients' `rpc` commands. If empty, they get error 108."""

    timeout: float = 1.0
    """Time for one answer, including its body. After this time the client gets error 100."""

    concurrency: int = 64
    """Most questions at the same time, for each address; of one client one at a time, of one user
    or one address of anonymous clients three quarters."""

    wait_timeout: float = 1.0
    """Time that a question waits for its turn. After this time the client gets error 100. The sum
    with `timeout` should stay below the five seconds after which SDKs give up."""

    response_limit: int = 65_536
    """Longest answer. The default is as long as a client's longest message."""

    forward_headers: frozenset[str] = frozenset()
    """Headers of a client's HTTP request that the back end gets too: `cookie` for example."""

    forward_emulated_headers: frozenset[str] = frozenset()
    """Headers in the `headers` of a client's connect command that the back end gets too, for
    browsers, which cannot send real headers. A real header of the same name wins. A client can
    set a header that is listed here, even if a reverse proxy in front strips the real one."""

    status_codes: frozenset[str] = frozenset()
    """The meaning of a status other than 200 for the client: `404=104` is an error (100 to 1999),
    `403=4500` a disconnect (3000 to 4999). Any other status is error 100."""

    circuit_failures: int = 5
    """After failures (a late answer, a missing one, or 502, 503, 504) of so many users' questions
    in a row, an address counts as down, and clients get error 100 at once. Anonymous clients count
    by their address."""

    circuit_pause: float = 5.0
    """Time before one question is sent to an address that is down, to see whether it answers."""

    proxy: SecretText = ""
    """The HTTP proxy that all callbacks go through, `http://user:password@proxy:3128`; empty for
    none. Variables such as HTTPS_PROXY do not count."""

    ca_file: str = ""
    """Certificates of the authorities that the back end's certificate is proven with, PEM; empty
    for the public ones. Variables such as SSL_CERT_FILE do not count."""

    secret: SecretText = ""
    """Signs every callback: its time, kind, path and body (`X-Repeater-Signature`). Events need a
    secret."""

    event_url: str = ""
    """Gets the events. Empty for no events."""

    events: frozenset[EventKind] = frozenset()
    """The kinds of events to send. Empty for all of them."""

    event_delay: float = 0.1
    """Time from an event until its batch is sent, so that other events can join the batch."""

    event_batch: int = 500
    """Most events in one batch."""

    event_queue: int = 100_000
    """Most events that wait for delivery, of about 300 bytes each. When the queue is full, the
    oldest are dropped and counted, and the next batch tells the count."""

    event_timeout: float = 5.0
    """Time for one batch to be accepted."""

    event_retry_max: float = 30.0
    """Longest pause before a batch is sent again. A pause is random, and its longest value
    doubles with each retry up to this one."""

    def __post_init__(self) -> None:
        for name in ("forward_headers", "forward_emulated_headers"):
            # Names of headers have no case.
            msgspec.structs.force_setattr(self, name, _lower(getattr(self, name)))
        if mistakes := list(self._mistakes()):
            raise OptionsError(mistakes)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        for name in (*(f"{kind}_url" for kind in get_args(CallbackKind)), "event_url"):
            url: str = getattr(self, name)
            if url and not is_http(url):
                yield name, "must be an http or https URL"
        if self.proxy and not is_http(self.proxy):
            yield "proxy", "must be the http or https URL of a proxy"
        for name in ("proxy", "ca_file"):
            if getattr(self, name) and not (self.kinds or self.event_url):
                yield name, "needs the URL of a callback"
        if self.event_url and not self.secret:
            yield "event_url", "needs secret"
        for name in ("forward_headers", "forward_emulated_headers"):
            for header in sorted(getattr(self, name)):
                if not _HEADER.fullmatch(header):
                    yield name, "has a name that a header cannot have"
                elif header in _NOT_FORWARDED:
                    yield name, f"cannot have {header}, which is never forwarded"
        for event in sorted(self.events - EVENT_KINDS):
            yield "events", f"has {event}, which is not an event"
        try:
            _ = self.meanings
        except ValueError as error:
            yield "status_codes", str(error)

    def url(self, kind: CallbackKind) -> str:
        """The address of one kind of request callback, or empty without one."""
        address: str = getattr(self, f"{kind}_url")
        return address

    @property
    def kinds(self) -> frozenset[CallbackKind]:
        """The request callbacks that have an address."""
        kinds: tuple[CallbackKind, ...] = get_args(CallbackKind)
        return frozenset(kind for kind in kinds if self.url(kind))

    @property
    def meanings(self) -> Mapping[int, int]:
        """The `status_codes` as numbers: the codes by status."""
        found: dict[int, int] = {}
        for text in self.status_codes:
            match = _STATUS.fullmatch(text.strip())
            if match is None:
                raise ValueError("must be like 404=104")
            status, code = int(match[1]), int(match[2])
            if status == 200 or not (100 <= code <= 1_999 or 3_000 <= code <= 4_999):
                raise ValueError(f"{text} is not a status with the code of an error or disconnect")
            if found.setdefault(status, code) != code:
                raise ValueError(f"has {status} twice")
        return found
