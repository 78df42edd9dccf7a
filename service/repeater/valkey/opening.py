"""The servers that an `engine_url` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.valkey.cluster import Cluster
from repeater.valkey.dial import SYSTEM_TRUST, Greeting, TLSFiles, tls_context
from repeater.valkey.sentinel import OneAddress, Sentinels
from repeater.valkey.single import SinglePrimary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.valkey.sentinel import Locator
    from repeater.valkey.servers import Servers
    from repeater.valkey.url import Endpoints


def open_servers(
    endpoints: Sequence[Endpoints],
    files: TLSFiles = SYSTEM_TRUST,
    *,
    prefix: str = "repeater",
    timeout: float = 2.0,
) -> Servers:
    """The servers behind one URL, or behind one for each shard; nothing is connected yet.

    Args:
        endpoints: What each URL says.
        files: The files for TLS.
        prefix: What the names of keys and channels begin with.
        timeout: Seconds after which a server that does not answer is left.

    Raises:
        OSError: a file cannot be read, or is not a certificate or key (`ssl.SSLError`).
    """
    (one,) = endpoints
    tls = tls_context(files) if one.tls else None
    greeting = Greeting(tls, one.credentials, one.database)
    if one.kind == "cluster":
        return Cluster(one.addresses, greeting, prefix=prefix, timeout=timeout)
    if one.kind == "sentinel":
        their = Greeting(tls, one.sentinel_credentials)
        locator: Locator = Sentinels(one.addresses, one.name, their)
    else:
        locator = OneAddress(one.addresses[0])
    return SinglePrimary(locator, greeting, prefix=prefix, timeout=timeout)
