"""The command: runs the chosen benchmarks one after the other, and reports.

Ends with 1 if a target was missed or a benchmark failed, which is itself a finding.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks.accept import accept
from benchmarks.fanout import (
    fanout_1000,
    fanout_1000_centrifugo,
    fanout_1000_presence,
    fanout_1000_recovery,
    fanout_1000_sse,
    fanout_1000_tls,
    fanout_9000,
)
from benchmarks.figures import Figure, Plan
from benchmarks.flood import flood
from benchmarks.memory import memory
from benchmarks.publishing import batch, publish, stream
from benchmarks.report import print_table, write_json
from benchmarks.servers import ServerError, cores
from benchmarks.stalled import stalled
from benchmarks.storm import reconnect_storm
from benchmarks.wire import WireError

_DESCRIPTORS: Final = 10_000  # 9,000 subscribers and what a process has open besides

SCENARIOS: Final[dict[str, Callable[[Plan], list[Figure]]]] = {
    "fanout-1000": fanout_1000,
    "fanout-9000": fanout_9000,
    "fanout-1000-tls": fanout_1000_tls,
    "fanout-1000-centrifugo": fanout_1000_centrifugo,
    "fanout-1000-recovery": fanout_1000_recovery,
    "fanout-1000-presence": fanout_1000_presence,
    "fanout-1000-sse": fanout_1000_sse,
    "flood": flood,
    "memory": memory,
    "accept": accept,
    "publish": publish,
    "batch": batch,
    "stream": stream,
    "stalled": stalled,
    "reconnect-storm": reconnect_storm,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Run this one; may be repeated. All without it.",
)
@click.option("--quick", is_flag=True, help="Less of everything: a look, not a measurement.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
def main(only: Sequence[str], quick: bool, json_path: Path | None) -> None:
    """Measure the server on one core, with the load generated on another."""
    _prepare()
    console = Console(width=None if sys.stdout.isatty() else 140)
    figures, errors = list[Figure](), dict[str, str]()
    for name in only or SCENARIOS:
        click.echo(f"{name} ...", err=True)
        try:
            figures += SCENARIOS[name](Plan(quick=quick))
        except (WireError, ServerError, OSError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
        gc.collect()
    print_table(figures, console)
    for name, text in errors.items():
        console.print(f"[red]{name} failed[/]: ", end="")
        console.print(text, markup=False, highlight=False)
    if json_path is not None:
        write_json(figures, errors, json_path)
    sys.exit(1 if errors or not all(figure.passed for figure in figures) else 0)


def _prepare() -> None:
    """The generator's own core, descriptors for it and its children, no pauses of its own."""
    os.sched_setaffinity(0, {cores()[1]})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise click.ClickException(f"the limit of open files is {hard}; {_DESCRIPTORS} are needed")
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))
    gc.disable()


if __name__ == "__main__":
    main()
