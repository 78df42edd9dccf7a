"""The health checks: alive, ready, and why not."""

from __future__ import annotations

import trio

from repeater.brokers.memory import MemoryBroker
from repeater.config import CurrentSettings, load_settings
from repeater.serving.application import create_app
from repeater.testing import open_test_node
from tests.deadlines import LOOP_ANSWERS


async def test_states() -> None:
    """Live while it can answer; ready while it takes clients and its broker works."""
    outage = ""

    class Broker(MemoryBroker):
        def outage(self) -> str:
            return outage

    settings = CurrentSettings(load_settings(dev=True))
    async with open_test_node(broker=Broker()) as node:
        client = create_app(node, settings).test_client()

        async def ask(path: str) -> tuple[int, object]:
            with trio.fail_after(LOOP_ANSWERS):
                answer = await client.get(path)
                return answer.status_code, await answer.get_json()

        paths = ("/health", "/health/live", "/health/ready")
        for path in paths:
            assert await ask(path) == (200, {"status": "ok"})
        outage = "connection refused"
        down = {"status": "broker down", "reason": "connection refused"}
        assert [await ask(path) for path in paths] == [
            (200, {"status": "ok"}),
            (200, {"status": "ok"}),
            (503, down),
        ]
        outage = ""
        await node.shut_down()
        draining = (503, {"status": "draining"})
        assert [await ask(path) for path in paths] == [draining, (200, {"status": "ok"}), draining]
