"""The command line: `run` measures servers; the other commands read the document of a run."""

from __future__ import annotations

import gc
import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final, NoReturn

import click
from rich.console import Console

from benchmarks import commands
from benchmarks.claims import judge
from benchmarks.machine import IN_MEMORY, disk, machine
from benchmarks.model import Run, load, save
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.peer import Peer
from benchmarks.peers.protobuf import FORMATS
from benchmarks.peers.registry import PEERS
from benchmarks.progress import watcher
from benchmarks.report.table import print_run
from benchmarks.runner import take_turns
from benchmarks.servers import cores
from benchmarks.workloads import (
    durable,
    hostile,
    protobuf,
    valkey,
    valkey_nodes,
    valkey_storm,
    workers,
)
from benchmarks.workloads.hostile_kinds import FLOODED, KINDS
from benchmarks.workloads.registry import WORKLOADS
from benchmarks.workloads.workload import Plan, Workload

# 10,000 subscribers, a publisher for each of 1,000 channels, and the other files of a process.
_DESCRIPTORS: Final = 12_000
_ALL_OF: Final = {
    "durable": [one.name for one in durable.WORKLOADS],
    "valkey": [
        one.name for one in (*valkey.WORKLOADS, *valkey_nodes.WORKLOADS, *valkey_storm.WORKLOADS)
    ],
    "workers": [one.name for one in workers.WORKLOADS],
}
"""The workloads of `just bench-engines`, by their kind."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Compare Repeater with other servers on this machine."""


@main.command("run")
@click.option("--full", is_flag=True, help="Run all workloads but the hostile ones.")
@click.option("--quick", is_flag=True, help="Measure less: a quick look, not a measurement.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(WORKLOADS)),
    help="Run this workload; may be repeated.",
)
@click.option(
    "--server",
    "names",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Measure this server; may be repeated. Without it: all servers.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
@click.option("--resume", is_flag=True, help="Continue the run in --json; its results are kept.")
def run_command(
    full: bool,
    quick: bool,
    only: Sequence[str],
    names: Sequence[str],
    json_path: Path | None,
    resume: bool,
) -> None:
    """Measure servers in turns, on one core, with the load generated on another.

    Ends with 1 if Repeater missed a claim, or failed in a turn. A claim is not measured if it needs
    a server that is not installed; that is not a miss.
    """
    kind = "full" if full else "part" if only else "core"
    plan = Plan(quick=quick, rounds=2 if kind == "core" else 3)
    _measure(
        "quick" if quick else kind,
        _chosen(kind, only),
        _peers(kind, names),
        plan,
        json_path,
        resume=resume,
    )


@main.command("hostile")
@click.option(
    "--flood",
    "floods",
    multiple=True,
    type=click.Choice([kind.name for kind in KINDS]),
    help="Only this kind of flood; may be repeated.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    default=hostile.SECONDS,
    show_default=True,
    help="How long each turn lasts without the flood, and how long under it.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--server",
    "names",
    multiple=True,
    type=click.Choice(FLOODED),
    help="Measure this server; may be repeated. Without it: all servers.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
@click.option("--resume", is_flag=True, help="Continue the run in --json; its results are kept.")
def hostile_command(
    floods: Sequence[str],
    seconds: int,
    rounds: int,
    names: Sequence[str],
    json_path: Path | None,
    resume: bool,
) -> None:
    """Flood servers, one kind of flood at a time, and see what honest subscribers notice of it.

    With --resume, the document of a full run gets these workloads too. Ends as `run` does.
    """
    whole = (seconds, rounds) == (hostile.SECONDS, 3)
    kinds = floods or [kind.name for kind in KINDS]
    _measure(
        "part" if whole else "quick",
        [WORKLOADS[f"hostile-{kind}"] for kind in kinds],
        [PEERS[name] for name in names or FLOODED],
        Plan(rounds=rounds, seconds=seconds),
        json_path,
        resume=resume,
    )


@main.command("engines")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*_ALL_OF, *chain(*_ALL_OF.values())]),
    help="Only this workload, or all of one kind; may be repeated.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Measure less: a quick look, not a measurement.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Make the servers' folders inside this one. Without it: the machine's temporary folder.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
@click.option("--resume", is_flag=True, help="Continue the run in --json; its results are kept.")
def engines_command(
    only: Sequence[str],
    rounds: int,
    quick: bool,
    folder: Path | None,
    json_path: Path | None,
    resume: bool,
) -> None:
    """Compare durable history, Valkey and workers with one process and its memory.

    Durable history needs a folder on a disk: tmpfs is refused. Ends as `run` does.
    """
    names = {name for one in only or _ALL_OF for name in _ALL_OF.get(one, [one])}
    chosen = [
        one
        for one in (
            *durable.WORKLOADS,
            *valkey.WORKLOADS,
            *valkey_nodes.WORKLOADS,
            *valkey_storm.WORKLOADS,
            *workers.WORKLOADS,
        )
        if one.name in names
    ]
    tempfile.tempdir = str(folder) if folder else tempfile.gettempdir()
    _measure(
        "quick" if quick else "engines",
        chosen,
        ENGINES,
        Plan(quick=quick, rounds=rounds),
        json_path,
        resume=resume,
    )


@main.command("protobuf")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([one.name for one in protobuf.WORKLOADS]),
    help="Only this workload; may be repeated.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Measure less: a quick look, not a measurement.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
@click.option("--resume", is_flag=True, help="Continue the run in --json; its results are kept.")
def protobuf_command(
    only: Sequence[str], rounds: int, quick: bool, json_path: Path | None, resume: bool
) -> None:
    """Compare Protobuf clients with JSON clients: deliveries, idle memory, whole commands.

    Ends as `run` does.
    """
    _measure(
        "quick" if quick else "protobuf",
        [one for one in protobuf.WORKLOADS if not only or one.name in only],
        FORMATS,
        Plan(quick=quick, rounds=rounds),
        json_path,
        resume=resume,
    )


def _measure(
    name: str,
    chosen: Sequence[Workload],
    peers: Sequence[Peer],
    plan: Plan,
    json_path: Path | None,
    *,
    resume: bool,
) -> NoReturn:
    """Take the turns, judge the claims, write and print the document, and exit."""
    if any(one in durable.WORKLOADS for one in chosen) and disk() in IN_MEMORY:
        raise click.ClickException("the temporary folder is in memory: give a --folder on a disk")
    _prepare()
    run = Run(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        plan=name,
        command=shlex.join(("python", "-m", "benchmarks", *sys.argv[1:])),
    )
    if resume and json_path is not None and json_path.exists():
        run = _begun(json_path, run)
        chosen = [workload for workload in chosen if workload.name not in run.workloads]
    try:
        take_turns(run, chosen, peers, plan, watcher(Console(stderr=True)))
    finally:
        judge(run)
        if json_path is not None:
            save(run, json_path)
    print_run(run, Console(width=None if sys.stdout.isatty() else 160))
    failed = any(one.faults for one in run.series if one.server.startswith("repeater"))
    sys.exit(1 if failed or any(verdict.outcome == "miss" for verdict in run.verdicts) else 0)


main.add_command(commands.capacity_command)
main.add_command(commands.compare_command)
main.add_command(commands.document_command)
main.add_command(commands.plots_command)


def _chosen(kind: str, only: Sequence[str]) -> list[Workload]:
    """Return the workloads of this kind of run: "core", "full" or "part"."""
    return [
        one
        for one in WORKLOADS.values()
        if (kind == "full" and not one.apart) or (one.name in only if kind == "part" else one.core)
    ]


def _peers(kind: str, names: Sequence[str]) -> list[Peer]:
    """Return the named peers, or all of them; a core run has fewer peers."""
    if names:
        return [peer for peer in PEERS.values() if peer.name in names]
    return [peer for peer in PEERS.values() if peer.core or kind != "core"]


def _begun(path: Path, run: Run) -> Run:
    """Return the run in this document, if plan and machine are the same.

    A part of the workloads may continue a full run, too. The workload at which the run was
    interrupted is measured anew.
    """
    begun = load(path)
    plans = ("full", "part") if run.plan == "part" else (run.plan,)
    if begun.machine != run.machine or begun.plan not in plans:
        raise click.ClickException(f"{path} is a run of another plan or on another machine")
    begun.drop_unfinished()
    return begun


def _prepare() -> None:
    """Pin the generator to its core, raise its limit of open files, and stop its collector."""
    os.sched_setaffinity(0, {cores()[1]})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise click.ClickException(f"the limit of open files is {hard}; {_DESCRIPTORS} are needed")
    if soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))
    gc.disable()


if __name__ == "__main__":
    main()
