"""What is asked of and told to an application's back end, and where. Values only.

Two kinds: a *request* callback is a question whose answer a client waits for; an *event* callback
is news that nobody waits for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

import msgspec

from repeater.access.tokens.options import is_http
from repeater.options import Options, SecretText

CallbackKind = Literal["connect", "refresh", "subscribe", "publish", "sub_refresh", "rpc"]
EventKind = Literal[
    "connected",
    "disconnected",
    "subscribed",
    "unsubscribed",
    "channel_occupied",
    "channel_vacated",
]
EVENT_KINDS: Final[frozenset[EventKind]] = frozenset(get_args(EventKind))

_HEADER: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-z]+")  # RFC 9110, in lower case
# Those that belong to one hop or to the request's own body, and ours.
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
        ValueError: an address, a header or a status that is none; the text holds no secret.
    """

    connect_url: str = ""
    """Asked who a connection without a token is; empty for no such callback."""

    refresh_url: str = ""
    """Asked whether a connection that expires goes on, in place of the client's refreshing."""

    subscribe_url: str = ""
    """Asked whether a client may subscribe, in namespaces with `subscribe_proxy_enabled`."""

    publish_url: str = ""
    """Asked whether a client may publish, in namespaces with `publish_proxy_enabled`."""

    sub_refresh_url: str = ""
    """Asked whether a subscription that expires goes on, in namespaces with
    `sub_refresh_proxy_enabled`, in place of the client's refreshing."""

    rpc_url: str = ""
    """Answers the clients' `rpc` commands; empty for error 108."""

    timeout: float = 1.0
    """For one answer, its body included; then the client gets error 100."""

    concurrency: int = 64
    """Questions under way at once, for each address."""

    wait_timeout: float = 1.0
    """How long one more question waits for its turn; then the client gets error 100. Together
    with `timeout` below the five seconds after which SDKs give up."""

    response_limit: int = 65_536
    """Longest answer; as long as a client's longest message."""

    forward_headers: frozenset[str] = frozenset()
    """Headers of a client's HTTP request that the back end gets too: `cookie` for example."""

    forward_emulated_headers: frozenset[str] = frozenset()
    """The same for those in the `headers` of its connect command, where a browser can't send
    real ones; real ones win. Whoever lists a header here lets clients set it, whatever a reverse
    proxy in front strips."""

    status_codes: frozenset[str] = frozenset()
    """What a status other than 200 means to the client: `404=104` an error (100 to 1999),
    `403=4500` a disconnect (3000 to 4999). Any other is error 100."""

    circuit_failures: int = 5
    """After so many failures in a row (no answer in time, none at all, or 502, 503, 504) an
    address is taken for down, and clients get error 100 at once."""

    circuit_pause: float = 5.0
    """How long, before one question is let through to see whether it is back."""

    secret: SecretText = ""
    """Signs every callback's body (`X-Repeater-Signature`); events need it."""

    event_url: str = ""
    """Told of events; empty for none."""

    events: frozenset[EventKind] = frozenset()
    """Which events; empty for all of them."""

    event_delay: float = 0.1
    """How long after an event its batch is sent, so that others can join it."""

    event_batch: int = 500
    """Most events in one batch."""

    event_queue: int = 100_000
    """Events waiting to be delivered; at some 300 bytes each. When full, the oldest are dropped,
    counted and told of."""

    event_timeout: float = 5.0
    """For one batch to be accepted."""

    event_retry_max: float = 30.0
    """Longest pause before a batch is sent again; each is random up to twice that before."""

    def __post_init__(self) -> None:
        for name in ("forward_headers", "forward_emulated_headers"):
            # Names of headers have no case.
            msgspec.structs.force_setattr(self, name, _lower(getattr(self, name)))
        names = ("connect", "refresh", "subscribe", "publish", "sub_refresh", "rpc", "event")
        for name in names:
            url: str = getattr(self, f"{name}_url")
            if url and not is_http(url):
                raise ValueError(f"{name}_url must be an http or https address")
        if self.event_url and not self.secret:
            raise ValueError("event_url needs a secret")
        for header in self.forward_headers | self.forward_emulated_headers:
            if not _HEADER.fullmatch(header):
                raise ValueError("a header to be forwarded has no header's name")
            if header in _NOT_FORWARDED:
                raise ValueError(f"the header {header} is never forwarded")
        if unknown := self.events - EVENT_KINDS:
            raise ValueError(f"events: {min(unknown)} is no event")
        _ = self.meanings  # raises for what can't be read

    def url(self, kind: CallbackKind) -> str:
        """The address of one kind of request callback, empty for none."""
        address: str = getattr(self, f"{kind}_url")
        return address

    @property
    def kinds(self) -> frozenset[CallbackKind]:
        """The request callbacks that have an address."""
        kinds: tuple[CallbackKind, ...] = get_args(CallbackKind)
        return frozenset(kind for kind in kinds if self.url(kind))

    @property
    def meanings(self) -> Mapping[int, int]:
        """`status_codes` as numbers."""
        found: dict[int, int] = {}
        for text in self.status_codes:
            match = _STATUS.fullmatch(text.strip())
            if match is None:
                raise ValueError("status_codes must be like 404=104")
            status, code = int(match[1]), int(match[2])
            if status == 200 or not (100 <= code <= 1_999 or 3_000 <= code <= 4_999):
                raise ValueError(f"status_codes: {text} is no status with an error or disconnect")
            if found.setdefault(status, code) != code:
                raise ValueError(f"status_codes: {status} twice")
        return found
