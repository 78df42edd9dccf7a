"""The broker of several nodes, on real servers: the contract, order, and keys that are not ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from repeater.brokers.contract import Broker
from repeater.brokers.valkey.broker import ValkeyBroker
from repeater.testing.broker import check_broker
from repeater.valkey.opening import open_servers
from repeater.valkey.url import parse_url
from tests.valkeys import PROGRAMS, Program, ValkeyServer, valkey

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=PROGRAMS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program: Program = request.param
    with valkey(program) as running:
        yield running


def broker_of(server: ValkeyServer, idempotency_ttl: float = 300) -> ValkeyBroker:
    """A broker that is not running yet."""
    servers = open_servers([parse_url(server.unix_url)])
    return ValkeyBroker(servers, idempotency_ttl=idempotency_ttl)


async def test_it_keeps_the_contract(server: ValkeyServer) -> None:
    """The conformance suite, in real time."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        yield broker_of(server, idempotency_ttl=1)

    await check_broker(opened, idempotency_ttl=1)
