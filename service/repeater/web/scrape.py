"""What `/metrics` shows: this process's metrics, or with workers those of all of them.

A worker that is scraped asks the supervisor, which asks every worker, adds what only it knows, and
keeps the counters of workers that have ended (`supervision/metrics.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CollectorRegistry

from repeater.clients.questions import encoded
from repeater.web.samples import Family, families_of, registry_of

if TYPE_CHECKING:
    from repeater.brokers.control import Member
    from repeater.node import Node


async def scrape(node: Node, own: CollectorRegistry) -> CollectorRegistry:
    """Return the metrics of the node's server; a checkpoint only if that has workers.

    Args:
        node: The node that is scraped.
        own: Its own metrics.

    Raises:
        BrokerError: the supervisor does not answer.
    """
    if not node.siblings.has_supervisor:
        return own
    answer = await node.siblings.ask_server("metrics")
    return registry_of(msgspec.msgpack.decode(answer, type=list[Family]))


def register(node: Node, own: Callable[[], CollectorRegistry]) -> None:
    """Have a node give its metrics to its supervisor."""

    async def metrics(_asker: Member, _body: bytes) -> bytes:
        return encoded(families_of(own()))

    node.siblings.register("metrics", metrics)
    node.siblings.at_end("metrics", lambda: encoded(families_of(own())))
