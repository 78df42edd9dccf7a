"""What `repeater.publish` costs the database and whoever calls it, beside a bare INSERT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Final

import psycopg

from benchmarks.outbox.databases import DATA, at, database, pgbench

_CLIENTS: Final = (1, 16, 64)
_WAYS: Final = {
    "insert": f"INSERT INTO bare (channel, data) VALUES ('news', '{DATA}');\n",
    "function": f"SELECT bare('news', '{DATA}');\n",
    "publish": f"SELECT repeater.publish('news', '{DATA}');\n",
}


def publishing(version: int, rounds: int, seconds: float) -> Iterator[str]:
    """CPU and commits of three ways in turns; all publish into one channel.

    `insert` is the bare statement, `function` the same in one that takes what `publish` takes.
    A session listens, as the server's does. Nobody takes the rows away meanwhile; the tables are
    emptied after each turn.
    """
    yield f"publish against an INSERT, in one channel: medians of {rounds} rounds"
    with (
        database(version) as server,
        psycopg.connect(server.url, autocommit=True) as admin,
        psycopg.connect(server.url, autocommit=True) as listener,
    ):
        listener.execute("LISTEN repeater_outgoing")
        for clients in _CLIENTS:
            turns = []
            for _ in range(rounds):
                turn = []
                for script in _WAYS.values():
                    begun = server.cpu()
                    took = pgbench(server, script, clients=clients, seconds=seconds)
                    time.sleep(0.1)
                    used = (server.cpu() - begun) / len(took) * 1e6
                    turn.append((used, len(took) / seconds, at(took, 0.5), at(took, 0.99)))
                    admin.execute("TRUNCATE bare, repeater.outgoing")
                    list(listener.notifies(timeout=0))
                turns.append(turn)
            for number, way in enumerate(_WAYS):
                used, rate, half, most = (
                    median(values) for values in zip(*(one[number] for one in turns), strict=True)
                )
                yield (
                    f"{clients:>3} clients, {way:<8}: {used:6.0f} us of the database a commit,"
                    f" {rate:7,.0f} commits/s, p50 {half:.2f}, p99 {most:.2f} ms"
                )
            for number, way in enumerate(("insert", "function")):
                cpu = sorted(one[2][0] / one[number][0] for one in turns)
                rates = sorted(one[2][1] / one[number][1] for one in turns)
                yield (
                    f"{clients:>3} clients, publish against {way:<8}: {median(cpu):.2f} x the CPU"
                    f" ({cpu[0]:.2f} to {cpu[-1]:.2f}), {median(rates):.2f} x the commits"
                    f" ({rates[0]:.2f} to {rates[-1]:.2f})"
                )
