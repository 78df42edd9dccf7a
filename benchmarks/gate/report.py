"""The gate's output: the table, and its explanation below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.gate.counters import Counts
from benchmarks.gate.verdicts import SYSTEM_CALLS, Committed, Row, Verdict

_COLOURS = {Verdict.WORSE: "red", Verdict.SAME: "green", Verdict.BETTER: "green"}


def table(console: Console, rows: Sequence[Row], before: str, after: str) -> None:
    """Print a line for each cost: both numbers, their ratio, and the verdict."""
    grid = Table(title="The gate: counts per delivery, event, connection and idle subscriber")
    grid.add_column("cost")
    for column in (before, after, "ratio", "allowance"):
        grid.add_column(column, justify="right")
    grid.add_column("verdict")
    for row in rows:
        grid.add_row(
            f"{row.unit}: {row.name}",
            _number(row, row.before),
            _number(row, row.measured),
            "" if row.ratio is None else f"{row.ratio:.4f}",
            f"±{_number(row, row.allowance)}",
            f"[{_COLOURS.get(row.verdict, 'yellow')}]{row.verdict}",
        )
    console.print(grid)


def calls(
    console: Console,
    rows: Sequence[Row],
    counted: Mapping[tuple[str, str], Counts],
    *titles: str,
) -> None:
    """Print each server's system calls by name, for costs that have more of them now."""
    for row in rows:
        if row.unit != SYSTEM_CALLS or row.verdict is not Verdict.WORSE:
            continue
        for title in titles:
            counts = counted[title, row.name].items()
            text = ", ".join(f"{name} {count:.2f}" for name, count in counts if round(count, 2))
            console.print(f"{row.name}, {title}: {text}")


def missing(console: Console, whys: Mapping[str, str]) -> None:
    """Print the units that could not be counted here."""
    for unit, why in whys.items():
        console.print(f"{unit} were not counted: {why}", style="yellow")


def versions(console: Console, committed: Committed) -> None:
    """Print how this machine differs from the one of the committed numbers."""
    if committed.foreign:
        differences = "; ".join(committed.foreign)
        console.print(f"only system calls were compared: {differences}", style="yellow")
    if committed.differs:
        console.print(f"other versions here: {'; '.join(committed.differs)}", style="yellow")


def spread(console: Console, measured: Committed) -> None:
    """Print the numbers that were written, and how far apart their measurements were."""
    for unit, named in measured.costs.items():
        for name, cost in named.items():
            apart = measured.spread[unit][name]
            console.print(f"{unit}: {name}: {cost:,.2f}, spread {apart:,.2f}", highlight=False)


def _number(row: Row, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if row.unit == SYSTEM_CALLS else f"{value:,.0f}"
