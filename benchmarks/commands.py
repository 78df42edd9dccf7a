"""The commands that read the document of a run and measure nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks.capacity import Assumptions, NotMeasuredError
from benchmarks.model import Run, load
from benchmarks.report.compare import compare
from benchmarks.report.verdicts import print_comparison

# The plots' packages are imported where they are needed: the load generator must not load them.

_RUN: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("compare")
@click.argument("old", metavar="OLD.json", type=_RUN)
@click.argument("new", metavar="NEW.json", type=_RUN)
@click.option("--server", "names", multiple=True, help="Only this server; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Show noise and incomparable rows too.")
def compare_command(old: Path, new: Path, names: Sequence[str], everything: bool) -> None:
    """Separate changes between two runs from noise; benchmarks/report/compare.py has the rule.

    Ends with 1 if something is worse.
    """
    comparison = compare(*(_only(load(path), names) for path in (old, new)))
    console = Console(width=None if sys.stdout.isatty() else 140)
    print_comparison(comparison, console, everything=everything)
    sys.exit(comparison.worse)


@click.command("document")
@click.argument("run_path", metavar="RUN.json", type=_RUN)
@click.argument("page_path", metavar="PAGE.md", type=click.Path(dir_okay=False, path_type=Path))
def document_command(run_path: Path, page_path: Path) -> None:
    """Write a page; its plots and a compact RUN.json go into the folder of the page's name."""
    from benchmarks.report.document import write

    write(load(run_path), page_path)


@click.command("capacity")
@click.argument("run_path", metavar="RUN.json", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--nodes",
    "shared_path",
    metavar="RUN.json",
    type=click.Path(exists=True, path_type=Path),
    default=Path("docs/capacity/run.json"),
    show_default=True,
    help="A run of `just bench-engines --only valkey-nodes`.",
)
@click.option("--subscribers", type=click.IntRange(1), default=Assumptions().subscribers)
@click.option("--event-bytes", type=click.IntRange(1), default=Assumptions().event_bytes)
@click.option("--session-s", type=click.FloatRange(1), default=Assumptions().session_s)
@click.option("--ping-s", type=click.FloatRange(1), default=Assumptions().ping_s)
@click.option("--busy", type=click.FloatRange(0.01, 1), default=Assumptions().busy)
@click.option("--lateness-ms", type=click.FloatRange(1), default=Assumptions().lateness_ms)
@click.option("--cores", type=click.IntRange(1), default=Assumptions().cores)
@click.option("--memory-gib", type=click.FloatRange(0.1), default=Assumptions().memory_gib)
def capacity_command(run_path: Path, shared_path: Path, **given: Any) -> None:
    """Write a page that says how many machines an audience needs, from a full run.

    `docs/capacity.md` is this page without any option, and explains what each option means.
    """
    from benchmarks.report.capacity import page

    try:
        click.echo(page(load(run_path), load(shared_path), Assumptions(**given)), nl=False)
    except (NotMeasuredError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@click.command("plots")
@click.argument("run_path", metavar="RUN.json", type=_RUN)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def plots_command(run_path: Path, folder: Path) -> None:
    """Draw a run's plots into a folder, as SVG."""
    from benchmarks.report.plots import write_plots

    for plot in write_plots(load(run_path), folder):
        click.echo(folder / f"{plot.name}.svg")


def _only(run: Run, names: Sequence[str]) -> Run:
    """Keep the named servers, and the floors that divide them."""
    if names:
        run.series = [
            one for one in run.series if one.server in names or run.servers[one.server].floor
        ]
    return run
