"""Several subscriptions that open one after the other, while others publish."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trio.testing import wait_all_tasks_blocked

from service.brokers.memory import MemoryBroker
from service.node import Node
from service.options import ChannelOptions
from service.protocol.codecs import CENTRIFUGE_UNI_ASGI
from service.publication import Publication, StreamPosition
from service.testing import MemoryTransport, connect, open_test_node
from service.unidirectional import UnidirectionalSession


class Interrupted(MemoryBroker):
    """Before anybody learns of the history of `b`, something happens in `a`."""

    node: Node | None = None

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        *,
        since: StreamPosition | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[Sequence[Publication], StreamPosition]:
        if channel == "b" and self.node is not None:
            await self.node.publish(Publication("a", b'"meanwhile"'))
            await wait_all_tasks_blocked()
        return await super().history(channel, options, since=since, limit=limit, reverse=reverse)


async def test_what_happens_before_the_last_one_is_open_is_not_lost() -> None:
    """It counts as before the subscription's position, or is recovered; the next one is heard."""
    broker = Interrupted()
    async with open_test_node(broker=broker) as node:
        await node.publish(Publication("a", b'"first"'))
        _, top = await broker.history("a", ChannelOptions(), limit=0)
        broker.node = node
        since = {"recover": True, "offset": 1, "epoch": top.epoch}
        for position, missed in (({}, []), (since, ["meanwhile", "meanwhile"])):
            transport = MemoryTransport(CENTRIFUGE_UNI_ASGI)
            async with connect(node, transport, ready=False) as client:
                request = {"subs": {"a": position, "b": {}}}
                await UnidirectionalSession(client).receive(json.dumps(request).encode())
                await node.publish(Publication("a", b'"next"'))
                await wait_all_tasks_blocked()
                assert client.end is None
            connected, *pushes = [json.loads(chunk) for chunk in transport.sent]
            told = connected["connect"]["subs"]["a"].get("publications", [])
            heard = [one["pub"]["data"] for one in pushes]
            assert heard == ["next"]
            if missed:
                assert [one["data"] for one in told] == ["meanwhile", "next", "meanwhile"]
