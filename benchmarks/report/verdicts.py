"""A comparison at a terminal: the changes, and the smallest change that it could find."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.report.compare import LEAST, ONE_IN, Comparison, Finding, Row
from benchmarks.report.numbers import change, number

_COLOURS: Final[dict[Finding, str]] = {
    "worse": "red",
    "better": "green",
    "noise": "dim",
    "not comparable": "yellow",
}


def print_comparison(comparison: Comparison, console: Console, *, everything: bool) -> None:
    """Print the rows that are more than noise, or all; then the number of each finding."""
    for line in comparison.differences:
        console.print(f"[yellow]differs[/] {escape(line)}")
    rows = [row for row in comparison.rows if everything or row.finding in ("worse", "better")]
    if rows:
        console.print(_table(rows))
    for finding, colour in _COLOURS.items():
        count = sum(row.finding == finding for row in comparison.rows)
        if count:
            console.print(f"[{colour}]{count:4d} {finding}[/]{_reasons(comparison.rows, finding)}")
    seen = [row.allowance for row in comparison.rows if row.allowance and not row.reason]
    if seen:
        console.print(
            f"A change is real if rounds do not overlap and the medians differ by more than the "
            f"noise allows: here {change(min(seen))} to {change(max(seen))}, for half of the rows "
            f"{change(statistics.median(seen))}, and never below {LEAST:.0%}. Of {ONE_IN} "
            "comparisons of a program with itself, one at most finds something worse."
        )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for head in ("", "workload", "server", "what"):
        table.add_column(head, no_wrap=head != "what")
    for head in ("old", "new", "change", "seen from"):
        table.add_column(head, justify="right")
    for row in rows:
        what = f"{row.title}, x {row.floor}" if row.floor else row.title
        if row.reason:
            what += f" ({row.reason})"
        table.add_row(
            f"[{_COLOURS[row.finding]}]{row.finding}[/]",
            row.workload,
            row.server,
            escape(what),
            "" if row.old is None else number(row.old),
            "" if row.new is None else number(row.new),
            "" if row.change is None else change(row.change),
            "" if row.allowance is None else change(row.allowance),
        )
    return table


def _reasons(rows: Sequence[Row], finding: Finding) -> str:
    if finding != "not comparable":
        return ""
    return ": " + "; ".join(dict.fromkeys(row.reason for row in rows if row.finding == finding))
