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

LARGEST_COMPRESSED: Final = 65_536
"""Bytes of the longest message that is compressed: one that is hard to compress (base64) takes
1.2 ms, and meanwhile nobody else has a turn. Ordinary JSON takes 0.4 ms."""


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
    """The options of the channels of one namespace (protocol, section 11). Times are seconds."""

    history_size: int = 100
    """Publications kept per channel; with 0 a channel keeps none and gives them no offsets."""

    history_ttl: float = 300.0
    """How long a channel's publications are kept after the newest of them."""

    history_meta_ttl: float = 2_592_000.0
    """How long a channel's offset and epoch are kept after its newest publication (30 days;
    protocol, section 1)."""

    presence: bool = False
    """Whether the server keeps a list of the channel's subscribers."""

    join_leave: bool = False
    """Whether the channel announces each client that joins or leaves."""

    force_push_join_leave: bool = False
    """Whether every subscriber gets these announcements, even without asking for them."""

    allow_positioning: bool = False
    force_positioning: bool = False
    """Whether a client is told of a gap in its stream: if it asks (`allow_`), or always
    (`force_`)."""

    allow_recovery: bool = False
    force_recovery: bool = False
    """Whether a client gets the publications that it missed: if it asks (`allow_`), or always
    (`force_`). Who may recover can get all of the kept history, also without `allow_history_`."""

    force_recovery_mode: Literal["stream", "cache"] = "stream"
    """With `cache`, a client that comes back gets the newest publication only (section 9.5)."""

    auto_cache_recover: bool = False
    """In cache mode: whether a client that comes for the first time gets the newest one, too."""

    allowed_delta_types: frozenset[Literal["fossil"]] = frozenset()
    """The kinds of deltas that a client may negotiate (section 10). A delta is the difference to
    the publication before."""

    delta_publish: bool = False
    """Whether every publication is sent as a delta to the subscribers that negotiated deltas."""

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
    """Who may do this. `client`: every signed-in user. `subscriber`: every signed-in user who is
    subscribed. `anonymous`: clients without a user id, too; it has an effect only together with
    one of these."""

    allow_user_limited_channels: bool = False
    """Whether a channel's name may list the only users that may subscribe, as in `chat#7,42`."""

    subscribe_proxy_enabled: bool = False
    publish_proxy_enabled: bool = False
    """Whether the back end decides who may subscribe or publish, in place of the `allow_`
    settings. Channels that begin with the private prefix still need a token, and channels with
    user ids in their names are still open to these users only."""

    sub_refresh_proxy_enabled: bool = False
    """Whether the back end is asked when a subscription expires, in place of the client."""

    channel_regex: re.Pattern[str] | None = None
    """The pattern that a channel's whole name must match, in place of printable ASCII."""

    publication_data_format: Literal["json", "json_object", "binary"] = "json"
    """What a publication's data must be: JSON, a JSON object, or any bytes, which only Protobuf
    clients and plain WebSockets get."""

    compression: bool = True
    """Whether the channel's publications are compressed for WebSockets that negotiated it, if the
    server's `compression` is on. If not, the answers that carry its publications are not
    compressed either. Settled when a client subscribes."""

    compression_min_size: int = 0
    """Length of the shortest message with a publication that is compressed; 0 for the server's
    `compression_min_size`."""


class LimitOptions(Options, frozen=True, kw_only=True):
    """Limits for clients; 0 means no limit. Calls of the server API do not count."""

    connections: int = 0
    """Subscribers' connections in all; one more gets 503 before its upgrade."""

    open_connections: int = 0
    """Connections of any kind, counted when they are accepted. One more takes the place of a
    connection without a subscriber; if there is none, it is closed at once. 0 means four fifths of
    the descriptors that the process may have (`ulimit -n`)."""

    pending_connections: int = 4_000
    """Connections that have not become anybody yet: no whole request, no `connect`, no call with
    the API key. One more takes the place of the oldest, if that is older than a second. They take
    some 8 KiB each, 32 MiB in all."""

    pending_per_address: int = 500
    """Such connections from one address (IPv6: from one /64). With few of them, an attacker who
    holds many would only be made to connect again and again, which costs more than they do."""

    connections_per_address: int = 0
    """Connections from one address (IPv6: from one /64), counted when they are accepted, or when a
    trusted proxy's header names the address; one more gets 429. Calls with the API key are served
    nevertheless, and their connections do not count."""

    connections_per_user: int = 0
    """Connections of one user, except the anonymous user; one more is closed with 3504."""

    scope: Literal["node", "cluster"] = "node"
    """Whether `connections_per_user` counts the connections of each node, or those of all nodes
    together, which costs a round trip to the engine for each. While the engine is not there, each
    node counts alone. Only an engine that nodes share can count over all."""

    connection_rate: int = 0
    """New connections per second; one more gets 503 before its upgrade."""

    connection_burst: int = 0
    """New connections at once; 0 means as many as `connection_rate`."""

    commands_per_second: int = 200
    """Commands of one connection, without `connect`; one more gets error 111. Pings, small
    fragments, and pongs and messages that nobody asked for count, too. A cursor that is published
    60 times a second is far below."""

    command_burst: int = 512
    """Commands at once; 0 means as many as `commands_per_second`. An SDK that comes back sends
    one for each of its channels, of which there are 128 at most by default."""

    publishes_per_second: int = 0
    """Publishes of one connection; each counts as a command, too."""

    publish_burst: int = 0
    """Publishes at once; 0 means as many as `publishes_per_second`."""

    refusals_per_minute: int = 100
    """Commands of one connection that `commands_per_second` and `publishes_per_second` refuse
    before the connection is closed with 3013; 0 never closes it."""


class NodeOptions(Options, frozen=True, kw_only=True):
    """The permissions, bounds and deadlines of a node. Sizes are bytes, times seconds."""

    default_channel: str = ""
    """The channel of a plain subscriber that names none. If empty, such a subscriber gets 400."""

    insecure: bool = False
    """Development: every client may do everything, with or without credentials."""

    allow_anonymous: bool = False
    """Whether a connection without credentials may connect, as the user with the empty id."""

    allow_guest_tokens: bool = False
    """Whether a token without a user's id may connect, as the user with the empty id. Connections
    without a token stay refused."""

    public_channels: frozenset[str] = frozenset()
    """Channels that plain subscribers hear without credentials, whatever other settings say."""

    channel: ChannelOptions = ChannelOptions()
    """The options of channels without a namespace."""

    namespaces: Mapping[str, ChannelOptions] = msgspec.field(default_factory=dict)
    """The options of the channels `<namespace>:...`; any other namespace is unknown (102)."""

    limits: LimitOptions = LimitOptions()
    """The limits for clients."""

    denial_limit: int = 100_000
    """Blocked users and revoked tokens kept; one more is refused (106) until some expire."""

    private_prefix: str = "$"
    """A channel that begins with this prefix needs a subscription token; empty for no prefix."""

    user_personal_channel: bool = False
    """Whether each user's connections hear `#<user>`, in `personal_channel_namespace`. Only this
    user can subscribe to it and read its history and presence, whatever the other settings and
    other users' tokens say; the server API may subscribe others."""

    personal_channel_namespace: str = ""
    """The namespace of the personal channels; empty for none."""

    channel_name_limit: int = 255
    """Longest channel name in bytes (protocol, section 1)."""

    channel_limit: int = 128
    """Subscriptions per connection (protocol, section 1)."""

    message_limit: int = 65_536
    """Longest inbound WebSocket message; longer ones close with 1009 (protocol, section 1)."""

    intake_limit: int = 8_192
    """Events waiting for fan-out. When full, publishers wait."""

    intake_bytes: int = 67_108_864
    """Bytes of the events waiting for fan-out: data, tags, infos and 256 for each event. When full,
    publishers wait. One event may be above, so that every event fits some time."""

    publish_timeout: float = 5.0
    """How long a publisher waits for room in the intake before the node says "try later", and then
    for the broker's answer. Other answers of a broker or presence store have as long."""

    batch_limit: int = 262_144
    """Bytes of events, counted as for `intake_bytes`, taken from the intake at once. One batch must
    stay far below `outbox_limit`: then a single batch never cuts a subscriber that keeps up. (As
    the text of a delta, data can have twice its bytes.)"""

    fanout_budget: float = 0.001
    """How long fan-out runs before pings, accepts and REST calls get a turn."""

    outbox_limit: int = 1_048_576
    """Bytes that may wait for one client; a client with more is cut as slow (protocol,
    section 1)."""

    write_timeout: float = 5.0
    """How long a backlog may make no progress before the client is cut. Centrifugo's limit of one
    second is shorter than a phone often needs to change networks."""

    ping_interval: float = 25.0
    """Time between two pings to a client; the first comes after 0.5 to 1 times that (section 6)."""

    pong_timeout: float = 8.0
    """How long after a ping a client may stay silent (protocol, section 1)."""

    stale_timeout: float = 10.0
    """How long a Centrifugo client may take to send `connect` (protocol, section 1)."""

    close_timeout: float = 2.0
    """How long a client that is asked to leave may take to read the goodbye and to disconnect."""

    shutdown_group: int = 128
    """Clients asked to leave at once at shutdown, so that they do not all return together."""

    shutdown_pause: float = 0.02
    """Pause between two such groups; shorter when there are too many clients for the deadline."""

    shutdown_timeout: float = 10.0
    """Longest time from the signal to the end of the process, whatever the clients do."""

    connection_log_limit: int = 20
    """Log lines per second about connections that open, and as many about those that close; one
    line sums up the rest of the second. With 0 there is only that line."""

    history_limit: int = 300
    """Most publications that a client's `history` command gets (protocol, section 1)."""

    recovery_limit: int = 300
    """Most publications of one recovery; a client that missed more is told so (section 9.2)."""

    expired_close_delay: float = 25.0
    """How long after the expiry of a connection or subscription its client may still refresh it
    (section 1). Plain subscribers cannot refresh, and end at their expiry."""

    expiry_grace: float = 600.0
    """How long after an expiry the back end is asked again about a connection or subscription that
    it renews, while its answer fails; then the connection or subscription ends."""

    idempotency_ttl: float = 300.0
    """How long a repeated idempotency key gets the first result again (protocol, section 9.1)."""

    idempotency_bytes: int = 67_108_864
    """Bytes of such results in memory, about 600 for each. When full, the oldest are forgotten."""

    history_bytes: int = 268_435_456
    """Bytes of all channels' publications in memory, counted as for `intake_bytes`. When full, the
    channel that was published to least recently loses its publications, oldest first: clients that
    come back for them are told `recovered: false`."""

    history_channels: int = 250_000
    """Channels whose offset and epoch are in memory, about 500 bytes each. When full, the channel
    that was published to least recently is forgotten; its next publication has another epoch."""
