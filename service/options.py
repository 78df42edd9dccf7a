"""Every number and switch of a node, with the reason for its default.

Values only. A server fills them from its configuration; a library user passes them to `open_node`.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class NodeOptions:
    """What a node permits and how far its queues and waits go. Sizes are bytes, times seconds."""

    default_channel: str = "comments"
    """What a plain subscriber gets when it names no channel."""

    allow_anonymous_subscribe: bool = False
    """Whether a connection without credentials may connect and subscribe."""

    allow_anonymous_publish: bool = False
    """Whether such a connection may publish."""

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

    history_size: int = 100
    """Publications kept per channel; 0 keeps none and numbers none."""

    history_ttl: float = 300.0
    """How long a channel's publications outlive the newest of them."""

    history_meta_ttl: float = 2_592_000.0
    """How long offset and epoch outlive the publications (30 days; protocol, section 1)."""

    idempotency_ttl: float = 300.0
    """How long a repeated idempotency key gets the first result (protocol, section 9.1)."""
