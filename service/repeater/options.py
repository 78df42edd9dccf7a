"""Every number and switch of a node, with the reason for its default.

Values only. A server fills them from its configuration; a library user passes them to `open_node`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec

_SECRET: Final = msgspec.Meta(extra={"secret": True})

SecretText = Annotated[str, _SECRET]
"""A text that is never shown: `repr` leaves it out, and the configuration prints stars."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all options: values that never change. `repr` leaves the secrets out."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = (name for name in self.__struct_fields__ if name not in secret_names(type(self)))
        return [(name, getattr(self, name)) for name in shown]


class OptionsError(ValueError):
    """Options that are wrong, or do not go together. No text holds a value."""

    def __init__(self, mistakes: Iterable[tuple[str, str]]) -> None:
        self.mistakes = tuple(mistakes)
        """Names of options with what is wrong about each."""
        super().__init__("; ".join(f"{name} {text}" for name, text in self.mistakes))


@functools.cache
def secret_names(options: type[Options]) -> frozenset[str]:
    """The fields of these options that are a `SecretText`."""
    hints = get_type_hints(options, include_extras=True)
    return frozenset(name for name, hint in hints.items() if hint == SecretText)


class ChannelOptions(Options, frozen=True, kw_only=True):
    """What holds in the channels of one namespace (protocol, section 11). Times are seconds."""

    history_size: int = 100
    """Publications kept per channel; 0 keeps none and numbers none."""

    history_ttl: float = 300.0
    """How long a channel's publications outlive the newest of them."""

    history_meta_ttl: float = 2_592_000.0
    """How long offset and epoch outlive the publications (30 days; protocol, section 1)."""

    presence: bool = False
    """Whether it is known who is subscribed."""

    join_leave: bool = False
    """Whether it is announced who comes and goes."""

    force_push_join_leave: bool = False
    """Whether every subscriber gets these announcements, asked for or not."""

    allow_positioning: bool = False
    force_positioning: bool = False
    """Whether a client may ask, or need not ask, to be told of a gap in its stream."""

    allow_recovery: bool = False
    force_recovery: bool = False
    """Whether a client may ask, or need not ask, to get what it missed."""

    force_recovery_mode: Literal["stream", "cache"] = "stream"
    """`cache`: whoever comes back gets the newest publication only (section 9.5)."""

    auto_cache_recover: bool = False
    """In cache mode: also whoever comes for the first time."""

    allowed_delta_types: frozenset[Literal["fossil"]] = frozenset()
    """The kinds of differences that a client may negotiate (section 10)."""

    delta_publish: bool = False
    """Whether every publication is sent as a difference to those who negotiated it."""

    allow_tags_filter: bool = False
    """Whether a client may ask for the publications with certain tags only."""

    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_anonymous: bool = False
    allow_publish_for_subscriber: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_anonymous: bool = False
    allow_presence_for_subscriber: bool = False
    allow_history_for_client: bool = False
    allow_history_for_anonymous: bool = False
    allow_history_for_subscriber: bool = False
    """Who may: `client` any signed-in user, `anonymous` the others too, `subscriber` whoever
    is subscribed. `anonymous` counts only together with `client`."""

    allow_user_limited_channels: bool = False
    """Whether the user ids behind `#` in a channel's name may subscribe."""

    subscribe_proxy_enabled: bool = False
    publish_proxy_enabled: bool = False
    """Whether the back end decides who may subscribe or publish, in place of the `allow_`
    settings. Channels that begin with the private prefix still need a token, and those with user
    ids are those users'."""

    sub_refresh_proxy_enabled: bool = False
    """Whether the back end is asked when a subscription expires, in place of the client."""

    channel_regex: re.Pattern[str] | None = None
    """What the whole name must match, in place of the ASCII rule."""

    publication_data_format: Literal["json", "json_object"] = "json"
    """What a publication's data must be."""


class LimitOptions(Options, frozen=True, kw_only=True):
    """How much clients may take; 0 is no limit. Calls of the server API do not count."""

    connections: int = 0
    """Subscribers' connections in all; another gets 503 before its upgrade."""

    connections_per_address: int = 0
    """From one address, an IPv6 one by its /64; another gets 429 before its upgrade."""

    connections_per_user: int = 0
    """Of one user, the anonymous one not counted; another is closed with 3504."""

    connection_rate: int = 0
    """New connections a second; one too many gets 503 before its upgrade."""

    connection_burst: int = 0
    """New connections at once; 0 for as many as a second may bring."""

    commands_per_second: int = 0
    """Of one connection, pongs and `connect` not counted; one too many gets error 111."""

    command_burst: int = 0
    """Commands at once; 0 for as many as a second may bring."""

    publishes_per_second: int = 0
    """Of one connection; they are commands too."""

    publish_burst: int = 0
    """Publishes at once; 0 for as many as a second may bring."""

    refusals_per_minute: int = 100
    """Commands of one connection that these two refuse before it is closed with 3013; 0 to
    refuse for ever."""


class NodeOptions(Options, frozen=True, kw_only=True):
    """What a node permits and how far its queues and waits go. Sizes are bytes, times seconds."""

    default_channel: str = ""
    """What a plain subscriber gets when it names no channel; empty: it gets 400."""

    insecure: bool = False
    """Development: every client may do everything, with or without credentials."""

    allow_anonymous: bool = False
    """Whether a connection without credentials may connect, as the user with the empty id."""

    public_channels: frozenset[str] = frozenset()
    """Channels that plain subscribers hear without credentials, whatever else is closed."""

    channel: ChannelOptions = ChannelOptions()
    """What holds in channels without a namespace."""

    namespaces: Mapping[str, ChannelOptions] = msgspec.field(default_factory=dict)
    """What holds in the channels `<namespace>:...`; any other namespace is unknown (102)."""

    limits: LimitOptions = LimitOptions()
    """How much clients may take."""

    denial_limit: int = 100_000
    """Blocked users and revoked tokens kept; another is refused (106) until some expire."""

    private_prefix: str = "$"
    """Channels that begin so are subscribed with a token only; empty for none."""

    user_personal_channel: bool = False
    """Whether a user's connections hear `#<user>`, in `personal_channel_namespace`."""

    personal_channel_namespace: str = ""
    """The namespace of the personal channels; empty for none."""

    channel_name_limit: int = 255
    """Longest channel name in bytes (protocol, section 1)."""

    channel_limit: int = 128
    """Subscriptions per connection (protocol, section 1)."""

    message_limit: int = 65_536
    """Longest inbound WebSocket message; longer ones close with 1009 (protocol, section 1)."""

    intake_limit: int = 8_192
    """Publications waiting for fan-out. When full, publishers wait."""

    publish_timeout: float = 5.0
    """How long a publisher waits for room in the intake before it is told to try later."""

    batch_limit: int = 65_536
    """Payload bytes taken from the intake at once, so that one batch stays far below
    `outbox_limit` and a subscriber in step is never cut by a single batch."""

    fanout_budget: float = 0.001
    """How long fan-out runs before it lets pings, accepts and REST calls have a turn."""

    outbox_limit: int = 1_048_576
    """Bytes waiting for one client; past it the client is cut as slow (protocol, section 1)."""

    write_timeout: float = 5.0
    """How long a backlog may make no progress before the client is cut. Upstream's second is
    shorter than many a phone's change of network."""

    ping_interval: float = 25.0
    """Between two pings to a client; the first comes after 0.5 to 1 of it (section 6)."""

    pong_timeout: float = 8.0
    """How long after a ping a client may stay silent (protocol, section 1)."""

    stale_timeout: float = 10.0
    """How long a Centrifugo client may take to send `connect` (protocol, section 1)."""

    close_timeout: float = 2.0
    """How long a client that is asked to leave may take to read the goodbye and hang up."""

    shutdown_group: int = 128
    """Clients asked to leave at once at shutdown, so that they do not all return together."""

    shutdown_pause: float = 0.02
    """Between two such groups; it shrinks when there are too many clients for the deadline."""

    shutdown_timeout: float = 10.0
    """From the signal to the end of the process, whatever the clients do."""

    connection_log_limit: int = 20
    """Lines a second about connections that come, and as many about those that go; the rest of
    the second is told in one line. 0 for that line only."""

    history_limit: int = 300
    """Most publications that a client's `history` gets (protocol, section 1)."""

    recovery_limit: int = 300
    """Most publications that a recovery brings; who missed more is told so (section 9.2)."""

    expired_close_delay: float = 25.0
    """After a connection's or subscription's expiry, for the client to refresh (section 1)."""

    idempotency_ttl: float = 300.0
    """How long a repeated idempotency key gets the first result (protocol, section 9.1)."""
