"""The command: make one fault after the other, and say how to see again what broke a promise."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

import click

from tests.drill.cluster_faults import CLUSTER_FAULTS
from tests.drill.drill import Drill
from tests.drill.engine_faults import ENGINE_FAULTS
from tests.drill.faults import FAULTS
from tests.drill.ledger import BrokenPromise
from tests.drill.loaded import LOADED, LoadedDrill
from tests.drill.missing import Missing
from tests.drill.node_faults import NODE_FAULTS
from tests.drill.nodes import NodesDrill
from tests.drill.partitions import PARTITIONS
from tests.drill.power import PowerDrill
from tests.drill.transactions import TransactionDrill
from tests.drill.ways import WaysDrill
from tests.drill.worlds import ClusterWorldsDrill, PlaneWorldsDrill, WorldsDrill
from tests.processes import SERVE
from tests.valkeys import REDIS, VALKEY


@dataclass(frozen=True)
class Entry:
    """One line of the list: a fault, and how to make it."""

    name: str
    about: str
    run: Callable[[], str]
    again: str
    """The options that make the same again, beside the seed."""


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=300.0, help="How long to make light faults, all together.")
@click.option("--rounds", default=20, help="How often to make each fault under full load.")
@click.option("--deliveries", default=1_000_000, help="At least so many under each of these.")
@click.option("--losses", default=200, help="Moments at which the power goes, each durability.")
@click.option("--worlds", default=10_000, help="How many simulated worlds of nodes.")
@click.option("--seed", default=1, help="The same seed makes the same faults.")
@click.option("--fault", "names", multiple=True, help="Only this fault; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Name the faults, and make none.")
@click.option("--command", default=shlex.join(SERVE), help="Starts the server.")
@click.option("--beside", default="", help="Starts every other node, as another version does.")
@click.option("--redis", is_flag=True, help="Debian's Redis is the engine of several nodes.")
@click.option("--brief", is_flag=True, help="Only the shortest of the faults of several nodes.")
@click.option("--durable", is_flag=True, help="It must keep its events when it is ended.")
def main(
    seconds: float,
    rounds: int,
    deliveries: int,
    losses: int,
    worlds: int,
    seed: int,
    names: tuple[str, ...],
    listing: bool,
    command: str,
    beside: str,
    redis: bool,
    brief: bool,
    durable: bool,
) -> None:
    """Make faults beside a running server, and check that no event is lost in silence.

    Subscribers come back as SDKs do, and know what they must get: a few of every way in beside
    light faults, many of one way under full load; and these beside one server, or beside several
    nodes on one engine.
    """
    words = shlex.split(command)
    light = [one for one in FAULTS if not names or one.name in names]
    each = seconds / max(1, len(light))
    entries = [
        Entry(
            one.name,
            str(one.make.__doc__),
            Drill(one, each, seed, words, durable).run,
            f"--seconds {each:g}",
        )
        for one in light
    ]
    entries += [
        Entry(
            one.name,
            str(one.make.__doc__),
            LoadedDrill(one, rounds, deliveries, seed, words).run,
            f"--rounds {rounds} --deliveries {deliveries}",
        )
        for one in LOADED
    ]
    entries += [
        Entry(one.name, str(one.__doc__), one.run, f"--losses {losses}")
        for one in (PowerDrill(seed, losses, "disk"), PowerDrill(seed, losses, "process"))
    ]
    commands = [words, shlex.split(beside)] if beside else [words]
    ways = WaysDrill(each, seed, commands)
    entries.append(Entry(ways.name, str(ways.__doc__), ways.run, f"--seconds {each:g}"))
    entries += [
        Entry(
            one.name,
            str(one.make.__doc__),
            NodesDrill(one, rounds, deliveries, seed, commands, REDIS if redis else VALKEY).run,
            f"--rounds {rounds} --deliveries {deliveries}" + " --redis" * redis,
        )
        for one in (*NODE_FAULTS, *ENGINE_FAULTS, *CLUSTER_FAULTS, *PARTITIONS)
        if one.brief or not brief
    ]
    entries += [
        Entry(one.name, str(one.__doc__), one.run, f"--rounds {rounds}")
        for one in (
            TransactionDrill(seed, max(3, rounds), "sqlite", words),
            TransactionDrill(seed, max(3, rounds), "valkey", words),
        )
    ]
    entries += [
        Entry(one.name, str(one.__doc__), one.run, f"--worlds {worlds}")
        for one in (
            WorldsDrill(seed, worlds),
            PlaneWorldsDrill(seed, worlds),
            ClusterWorldsDrill(seed, worlds),
        )
    ]
    if unknown := set(names) - {one.name for one in entries}:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: see --list")
    for entry in entries:
        if names and entry.name not in names:
            continue
        if listing:
            click.echo(f"{entry.name}: {entry.about.partition(chr(10))[0]}")
        else:
            click.echo(f"{entry.name}: {_outcome(entry, seed)}")


def _outcome(entry: Entry, seed: int) -> str:
    """What was checked, in one line.

    Raises:
        click.ClickException: a promise was broken.
    """
    try:
        try:
            return entry.run()
        except* BrokenPromise as group:
            again = f"just drill --fault {entry.name} --seed {seed} {entry.again}"
            reason = f"{entry.name}: {_first(group)}\nTo see it again: {again}"
            raise click.ClickException(reason) from None
    except Missing as missing:
        return f"skipped, {missing}"


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
