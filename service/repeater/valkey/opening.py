"""The servers that an `engine_url` means, or a list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repeater.valkey.cluster import Cluster
from repeater.valkey.dial import SYSTEM_TRUST, Greeting, TLSFiles, tls_context
from repeater.valkey.sentinel import OneAddress, Sentinels
from repeater.valkey.shards import Shards
from repeater.valkey.single import SinglePrimary
from repeater.valkey.slots import PARTITIONS

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
    part: str = "",
    partitions: int = PARTITIONS,
) -> Servers:
    """The servers behind one URL, or behind one for each shard; nothing is connected yet.

    If one of several shards is a cluster, all of them use sharded channels, which need Redis 7.0.

    Args:
        endpoints: What each URL says.
        files: The files for TLS.
        prefix: What the names of keys and channels begin with.
        timeout: Seconds after which a server that does not answer is left.
        part: What the connections are for: the log of a process with several of them says so.
        partitions: How many of a cluster's partitions are needed: no server is connected that has
            none of them.

    Raises:
        OSError: a file cannot be read, or is not a certificate or key (`ssl.SSLError`).
    """
    tls = tls_context(files) if any(one.tls for one in endpoints) else None
    sharded = any(one.kind == "cluster" for one in endpoints)
    opened: list[Servers] = []
    for one in endpoints:
        its = tls if one.tls else None
        greeting = Greeting(its, one.credentials, one.database, part)
        if one.kind == "cluster":
            opened.append(
                Cluster(
                    one.addresses, greeting, prefix=prefix, timeout=timeout, partitions=partitions
                )
            )
            continue
        if one.kind == "sentinel":
            their = Greeting(its, one.sentinel_credentials)
            locator: Locator = Sentinels(one.addresses, one.name, their)
        else:
            locator = OneAddress(one.addresses[0])
        single = SinglePrimary(locator, greeting, prefix=prefix, timeout=timeout, sharded=sharded)
        opened.append(single)
    return opened[0] if len(opened) == 1 else Shards(opened)
