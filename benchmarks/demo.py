"""The demo: a real server, 50 subscribers, and recorded stock prices replayed as live events.

Half the subscribers are plain WebSockets, half speak the Centrifugo protocol. The demo
succeeds only if every subscriber got every event in order.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
import trio
import trio_websocket
from rich.console import Console
from rich.live import Live
from rich.table import Table

from benchmarks.ports import free_port
from repeater.subscriber import open_subscriber

_CHANNEL = "stocks"
_PATIENCE = 20.0  # seconds for a start, and for the last event to arrive


class Tally:
    """The events that arrived so far. Every subscriber's task writes it; the table reads it."""

    def __init__(self, subscribers: int) -> None:
        self.received = [0] * subscribers
        self.wrong: list[str] = []
        self.latencies: list[float] = []
        self.published = 0

    def take(self, number: int, event: dict[str, float]) -> None:
        """Count one event of one subscriber; it must be the subscriber's next event."""
        expected = self.received[number]
        if event["n"] != expected and len(self.wrong) < 5:
            self.wrong.append(f"subscriber {number} got {event['n']} instead of {expected}")
        self.received[number] += 1
        self.latencies.append((time.monotonic() - event["at"]) * 1e3)

    def table(self) -> Table:
        """Return a table of the present figures."""
        table = Table(title="Repeater demo: recorded stock prices, live")
        for heading in ("events", "deliveries", "p50 ms", "p95 ms", "p99 ms", "max ms"):
            table.add_column(heading, justify="right")
        ordered = sorted(self.latencies) or [0.0]
        marks = [ordered[int(len(ordered) * part)] for part in (0.5, 0.95, 0.99)]
        figures = [f"{value:.1f}" for value in (*marks, ordered[-1])]
        table.add_row(str(self.published), str(sum(self.received)), *figures)
        return table


def prices(limit: int) -> list[dict[str, object]]:
    """The recorded feed: symbol, date and price, oldest first."""
    from vega_datasets import data

    rows = csv.DictReader(io.StringIO(data.stocks.raw().decode()))
    feed = [{"symbol": r["symbol"], "date": r["date"], "price": float(r["price"])} for r in rows]
    return feed[:limit]


@contextmanager
def running_server() -> Iterator[int]:
    """A server process on a free port; ended at the end of the block."""
    port = free_port()
    command = [sys.executable, "-m", "repeater", "serve", "--dev", "--no-comments"]
    command += ["--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        if "is up on" not in (line := process.stderr.readline()):
            raise click.ClickException(f"the server did not start: {line}")
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=_PATIENCE)


async def hear_plainly(
    port: int, number: int, tally: Tally, total: int, task_status: trio.TaskStatus[None]
) -> None:
    """Run one subscriber without any SDK."""
    url = f"ws://127.0.0.1:{port}/ws?channel={_CHANNEL}"
    async with trio_websocket.open_websocket_url(url) as socket_:
        task_status.started()
        while tally.received[number] < total:
            tally.take(number, msgspec.json.decode(await socket_.get_message()))


async def hear_centrifuge(
    port: int, number: int, tally: Tally, total: int, task_status: trio.TaskStatus[None]
) -> None:
    """Run one subscriber with the Centrifugo protocol."""
    async with open_subscriber(f"http://127.0.0.1:{port}", [_CHANNEL]) as events:
        task_status.started()
        async for event in events:
            tally.take(number, msgspec.json.decode(event.text))
            if tally.received[number] >= total:
                return


async def replay(port: int, feed: list[dict[str, object]], rate: float, tally: Tally) -> None:
    """Publish the feed over one kept-alive REST connection, at an even rate."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        for number, price in enumerate(feed):
            event = {**price, "n": number, "at": time.monotonic()}
            body = msgspec.json.encode({"channel": _CHANNEL, "data": event})
            head = b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            await stream.send_all(head % len(body) + body)
            answer = b""
            while b'{"result"' not in answer:
                chunk = await stream.receive_some()
                if not chunk:
                    raise click.ClickException(f"publishing failed: {answer!r}")
                answer += chunk
            tally.published += 1
            await trio.sleep(1 / rate)


async def run(port: int, subscribers: int, feed: list[dict[str, object]], rate: float) -> Tally:
    """Open all subscribers, replay the feed, and wait until all events arrived."""
    tally = Tally(subscribers)
    console = Console()
    with Live(tally.table(), console=console, refresh_per_second=4) as live:
        with trio.move_on_after(_PATIENCE + len(feed) * (1 / rate + 0.01)):
            async with trio.open_nursery() as screen:
                screen.start_soon(show, live, tally)
                async with trio.open_nursery() as everybody:
                    for number in range(subscribers):
                        hear = hear_plainly if number % 2 else hear_centrifuge
                        await everybody.start(hear, port, number, tally, len(feed))
                    await replay(port, feed, rate, tally)
                screen.cancel_scope.cancel()
        live.update(tally.table())
    return tally


async def show(live: Live, tally: Tally) -> None:
    """Redraw the table until cancelled."""
    while True:
        live.update(tally.table())
        await trio.sleep(0.25)


@click.command()
@click.option("--subscribers", default=50, show_default=True, help="Half plain, half Centrifugo.")
@click.option("--events", default=560, show_default=True, help="How much of the feed to replay.")
@click.option("--rate", default=100.0, show_default=True, help="Events a second.")
def main(subscribers: int, events: int, rate: float) -> None:
    """Replay a recorded feed to many subscribers and check what each of them got."""
    feed = prices(events)
    with running_server() as port:
        tally = trio.run(run, port, subscribers, feed, rate)
    complete = sum(count == len(feed) for count in tally.received)
    click.echo(f"{complete} of {subscribers} subscribers got all {len(feed)} events", nl=False)
    click.echo(", in order" if not tally.wrong else f"; out of order: {tally.wrong}")
    if complete != subscribers or tally.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
