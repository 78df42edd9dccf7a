"""`just bench-outbox`: what publishing inside a transaction costs, and how soon it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import click

from benchmarks.machine import disk, machine
from benchmarks.outbox.delivery import idle, latency, open_transaction
from benchmarks.outbox.looks import held_snapshot
from benchmarks.outbox.publishing import publishing

_PARTS: Final = ("publish", "latency", "open", "idle", "held")


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=5.0, help="How long each turn lasts.")
@click.option("--rounds", default=3, help="How often the turns are repeated.")
@click.option("--held", default=60.0, help="Seconds for which a snapshot is held.")
@click.option("--version", type=click.Choice(["18", "15"]), default="18", help="Of PostgreSQL.")
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="May be repeated.")
def main(seconds: float, rounds: int, held: float, version: str, only: tuple[str, ...]) -> None:
    """Measure what publishing inside a transaction costs, and how soon subscribers have it.

    A PostgreSQL of its own is started for each part, with its usual settings.
    """
    number = int(version)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "publish": partial(publishing, number, rounds, seconds),
        "latency": partial(latency, number, 2 * seconds),
        "open": partial(open_transaction, number, rounds),
        "idle": partial(idle, number, 4 * seconds),
        "held": partial(held_snapshot, number, held),
    }
    about = machine()
    click.echo(f"PostgreSQL {version}, {about['cpu']}, {about['python']}, disk: {disk()}")
    for name in only or _PARTS:
        for line in parts[name]():
            click.echo(line)


if __name__ == "__main__":
    main()
