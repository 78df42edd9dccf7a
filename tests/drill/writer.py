"""A program that writes orders and publishes them: `python -m tests.drill.writer`.

It goes on for ever, through failures of the database, and is killed. What it has written it does
not know; the table `orders` does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import Any, Final

import psycopg

TABLE: Final = "CREATE TABLE orders (writer int, n int, channel text, PRIMARY KEY (writer, n))"

_Connection = psycopg.Connection[tuple[Any, ...]]
Order = tuple[int, int]
"""A writer, and its number."""

_PAUSE: Final = 0.05  # seconds after a failure


class Writer:
    """Numbers its orders from `first` on. A number whose fate is unknown is not used again."""

    def __init__(self, url: str, number: int, first: int, channels: int) -> None:
        self._url = url
        self._number = number
        self._numbers = count(first)
        self._channels = channels
        self._rng = Random(f"{number} {first}")

    def run(self) -> None:
        """Write until killed."""
        while True:
            try:
                with psycopg.connect(self._url, connect_timeout=2) as connection:
                    while True:
                        self._write(connection)
            # A rollback that the database does not live to see comes out as what asked for it.
            except (psycopg.OperationalError, psycopg.Rollback):
                time.sleep(_PAUSE)

    def _write(self, connection: _Connection) -> None:
        way = self._rng.choice(_WAYS)
        with connection.transaction():
            way(self, connection)
        time.sleep(self._rng.uniform(0, 0.01))

    def one(self, connection: _Connection) -> None:
        """One order."""
        number, channel = self._order(connection)
        asked = "SELECT repeater.publish(%s, %s::jsonb)"
        connection.execute(asked, (channel, self._data(number)))

    def several(self, connection: _Connection) -> None:
        """Some orders, in one statement of the second kind."""
        orders = [self._order(connection) for _ in range(5)]
        asked = "SELECT repeater.publish_many(%s::text[], %s::jsonb[])"
        channels = [channel for _number, channel in orders]
        connection.execute(asked, (channels, [self._data(number) for number, _channel in orders]))

    def late(self, connection: _Connection) -> None:
        """An order whose transaction stays open, while others commit."""
        self.one(connection)
        time.sleep(self._rng.uniform(0, 0.1))

    def taken_back(self, connection: _Connection) -> None:
        """A transaction that is rolled back."""
        self.one(connection)
        raise psycopg.Rollback

    def partly(self, connection: _Connection) -> None:
        """A savepoint that is rolled back, between two orders that are not."""
        self.one(connection)
        with connection.transaction():
            self.taken_back(connection)
        self.one(connection)

    def _order(self, connection: _Connection) -> tuple[int, str]:
        number = next(self._numbers)
        channel = f"orders{self._rng.randrange(self._channels)}"
        connection.execute(
            "INSERT INTO orders VALUES (%s, %s, %s)", (self._number, number, channel)
        )
        return number, channel

    def _data(self, number: int) -> str:
        return json.dumps({"w": self._number, "n": number})


_WAYS: Final[tuple[Callable[[Writer, _Connection], None], ...]] = (
    *(Writer.one, Writer.one, Writer.one, Writer.several),
    *(Writer.late, Writer.taken_back, Writer.partly),
)


def order_in(data: Any) -> Order:
    """The order that an event is about."""
    return data["w"], data["n"]


def orders(url: str) -> Iterator[tuple[int, int, str]]:
    """All orders that are in the table: writer, number and channel."""
    with psycopg.connect(url) as connection:
        yield from connection.execute("SELECT writer, n, channel FROM orders")


if __name__ == "__main__":
    url, *given = sys.argv[1:]
    Writer(url, *map(int, given)).run()
