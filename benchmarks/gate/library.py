"""A program that publishes as a library's user does; the gate counts what one publish costs.

It listens on the port of its first argument. Each decimal number in a line asks for so many
publishes in a row; the answer, one byte for each publish, comes after the last of them.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from benchmarks.generator.wire import event
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication


async def _serve(node: Node, stream: trio.SocketStream) -> None:
    """Publish for one client until it hangs up. It is the gate's, so no deadline is needed."""
    publication = Publication("news", event(0))
    async for line in stream:
        count = int(line)
        for _ in range(count):
            await node.publish(publication)
        await stream.send_all(b"." * count)


async def _main(port: int) -> None:
    options = NodeOptions(channel=ChannelOptions(history_size=100, history_ttl=3_600))
    async with open_node(options) as node:
        await trio.serve_tcp(partial(_serve, node), port, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]))
