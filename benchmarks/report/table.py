"""The tables that a run ends with, for people at a terminal of 100 columns or more.

A wide terminal has a number and its range in one line; a narrow one has the range beneath.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from benchmarks.model import Run, Verdict
from benchmarks.report.numbers import number
from benchmarks.report.summary import Cell, Row, Summary, summarise

_WIDE: Final = 140  # columns from which on the range stands beside its number
_COLOURS: Final = {"pass": "green", "miss": "red", "not measured": "yellow"}


def print_run(run: Run, console: Console) -> None:
    """Print a table for each workload, then the claims, the missing servers and the machine."""
    for name in run.workloads:
        if run.of(name):
            print_summary(summarise(run, name), console)
    if run.verdicts:
        console.print(_claims(run.verdicts))
    for title, reason in run.missing.items():
        console.print(f"[yellow]skipped[/] {escape(title)}: {escape(reason)}")
    for name, text in {**run.machine, "when": run.when, "command": run.command}.items():
        console.print(f"[dim]{name}: {escape(text)}[/]", highlight=False)


def print_summary(summary: Summary, console: Console) -> None:
    """Print one workload's table, and a line for each note."""
    console.print(f"[bold]{escape(summary.title)}[/] [dim]({summary.name})[/]")
    if summary.rows:
        console.print(_table(summary, wide=console.width >= _WIDE))
    for note in summary.notes:
        console.print(Padding(f"[red]{escape(note)}[/]", (0, 0, 0, 2)))
    console.print()


def _table(summary: Summary, *, wide: bool) -> Table:
    gap = 1 if wide else 0  # besides the one that the box brings
    table = Table(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("server", no_wrap=True)
    for number_, metric in enumerate(summary.metrics):
        table.add_column(metric.head, justify="right", min_width=6, overflow="fold")
        if number_ == 0 and summary.floor:
            table.add_column(f"x {summary.floor}", justify="right", min_width=6)
    table.add_column("load", justify="right")
    for before, row in zip((None, *summary.rows), summary.rows, strict=False):
        if before and before.group != row.group and row.group in ("repeater", "peer"):
            table.add_section()
        table.add_row(*_texts(summary, row, wide=wide), style="dim" * (row.group == "floor"))
    return table


def _texts(summary: Summary, row: Row, *, wide: bool) -> Sequence[str]:
    cells = [_cell(one, wide=wide) for one in row.cells]
    if summary.floor:
        cells.insert(1, _cell(row.ratio, wide=wide))
    name = row.server.replace("repeater-", "  ") if row.group == "variant" else row.server
    if row.group == "repeater":
        name = f"[bold cyan]{name}[/]"
    if row.failed:
        name += " [red]![/]"
    return name, *cells, f"{row.marked}{row.generator:.0%}"


def _cell(cell: Cell | None, *, wide: bool) -> str:
    if cell is None:
        return ""
    text = f"[bold]{cell.text}[/]" if cell.best else cell.text
    if not cell.range:
        return text
    return f"{text} [dim]{cell.range}[/]" if wide else f"{text}\n[dim]{cell.range}[/]"


def _claims(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("verdict", no_wrap=True)
    table.add_column("claim", ratio=1)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("must be", no_wrap=True)
    for verdict in verdicts:
        value = "" if verdict.value is None else f"{number(verdict.value)} {verdict.unit}"
        table.add_row(
            f"[{_COLOURS[verdict.outcome]}]{verdict.outcome}[/]",
            escape(verdict.claim),
            value,
            f"{verdict.side} {number(verdict.limit)} {verdict.unit}",
        )
    return table
