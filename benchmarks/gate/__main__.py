"""The gate's command: measures, compares, and ends with 1 for a regression.

Ends with 2 if nothing could be compared. What a missing tool would have counted is named and left
out. What looks worse is measured a second time before it counts. Takes about a minute;
`_SECONDS` bounds each measurement, and every server is ended then too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from benchmarks.gate.costs import PROTOCOLS, Protocol, measure, total
from benchmarks.gate.counters import Counts, Instructions, SystemCalls, Tool, ToolError
from benchmarks.gate.verdicts import (
    INSTRUCTIONS,
    SYSTEM_CALLS,
    Committed,
    Row,
    Verdict,
    exit_code,
    judge,
    lesser,
)
from benchmarks.generator.wire import WireError
from benchmarks.servers import ServerError, cores

NUMBERS: Final = Path(__file__).parent / "gate.json"
_SECONDS: Final = 170  # for one measurement of everything
# strace first: it also compiles what valgrind would take long to compile.
TOOLS: Final[dict[str, Callable[[Path], Tool]]] = {
    SYSTEM_CALLS: SystemCalls,
    INSTRUCTIONS: Instructions,
}


class OutOfTimeError(Exception):
    """The measurement took longer than it may."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--update", is_flag=True, help="Write the numbers instead of comparing.")
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Take medians of so many.",
)
def main(update: bool, repeat: int) -> None:
    """Compare what a delivery costs with the committed numbers."""
    os.sched_setaffinity(0, {cores()[1]})
    signal.signal(signal.SIGALRM, _out_of_time)
    # So that the servers end with it when it is asked to end.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        run = _Run(console)
        measured = Committed.of([run.everything() for _ in range(repeat)])
        if update:
            _update(console, run, measured)
            return
        committed = Committed.read(NUMBERS)
        sys.exit(_compare(console, run, committed, measured))
    except (WireError, ServerError, OutOfTimeError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise OutOfTimeError(f"not done within {_SECONDS} s")


class _Run:
    """The measurements, with what could not be measured and the calls by name."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.missing: dict[str, str] = {}
        self.calls: dict[str, Counts] = {}

    def everything(self) -> dict[str, dict[str, float]]:
        """All costs by unit and name; a unit without its tool is left out."""
        signal.alarm(_SECONDS)
        try:
            costs = {
                unit: {
                    name: cost
                    for protocol in PROTOCOLS
                    for name, cost in self.one(unit, protocol).items()
                }
                for unit in TOOLS
            }
        finally:
            signal.alarm(0)
        return {unit: named for unit, named in costs.items() if named}

    def one(self, unit: str, protocol: Protocol) -> dict[str, float]:
        """The costs of one protocol in one unit; none if the tool does not work."""
        if unit in self.missing:
            return {}
        with self._console.status(f"{unit}, {protocol.name}"):
            try:
                costs = measure(TOOLS[unit], protocol)
            except ToolError as error:
                self.missing[unit] = str(error)
                return {}
        if unit == SYSTEM_CALLS:
            self.calls.update(costs)
        return {name: total(counts) for name, counts in costs.items()}

    def again(self, unit: str, names: set[str]) -> dict[str, float]:
        """Measure the protocols that these costs belong to once more."""
        signal.alarm(_SECONDS)
        try:
            return {
                name: cost
                for protocol in PROTOCOLS
                if names & set(protocol.costs)
                for name, cost in self.one(unit, protocol).items()
            }
        finally:
            signal.alarm(0)


def _compare(console: Console, run: _Run, committed: Committed, measured: Committed) -> int:
    comparable = {INSTRUCTIONS: not committed.foreign}
    costs = {unit: dict(named) for unit, named in measured.costs.items()}
    rows = judge(committed.costs, costs, comparable=comparable)
    for unit in TOOLS:
        worse = {r.name for r in rows if r.unit == unit and r.verdict is Verdict.WORSE}
        if worse:
            console.print(f"{unit}: measuring {', '.join(sorted(worse))} a second time")
            costs[unit] = lesser(costs[unit], run.again(unit, worse))
    rows = judge(committed.costs, costs, comparable=comparable)
    _print(console, rows)
    _explain(console, run, committed, rows)
    return exit_code(rows)


def _print(console: Console, rows: list[Row]) -> None:
    table = Table(title="The gate: counts per delivery, event and connection")
    table.add_column("cost")
    for column in ("committed", "measured", "change", "allowance"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for row in rows:
        colour = {Verdict.WORSE: "red", Verdict.SAME: "green"}.get(row.verdict, "yellow")
        table.add_row(
            f"{row.unit}: {row.name}",
            _number(row, row.committed),
            _number(row, row.measured),
            _change(row),
            f"±{_number(row, row.allowance)}",
            f"[{colour}]{row.verdict}",
        )
    console.print(table)


def _number(row: Row, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if row.unit == INSTRUCTIONS else f"{value:.2f}"


def _change(row: Row) -> str:
    if row.change is None or not row.committed:
        return ""
    return f"{row.change / row.committed:+.1%}"


def _explain(console: Console, run: _Run, committed: Committed, rows: list[Row]) -> None:
    for unit, why in run.missing.items():
        console.print(f"{unit} were not counted: {why}", style="yellow")
    if committed.foreign and INSTRUCTIONS not in run.missing:
        console.print(
            f"instruction counts were not compared: {'; '.join(committed.foreign)}", style="yellow"
        )
    if committed.differs:
        console.print(f"other versions here: {'; '.join(committed.differs)}", style="yellow")
    for row in rows:
        if row.unit == SYSTEM_CALLS and row.verdict is Verdict.WORSE:
            calls = run.calls[row.name].items()
            text = ", ".join(f"{name} {count:.2f}" for name, count in calls if round(count, 2))
            console.print(f"{row.name}: {text}")
    if any(row.verdict in {Verdict.BETTER, Verdict.NEW} for row in rows):
        console.print("renew the numbers: just bench-gate --update --repeat 6")


def _update(console: Console, run: _Run, measured: Committed) -> None:
    if run.missing:
        whys = "; ".join(f"{unit}: {why}" for unit, why in run.missing.items())
        raise click.ClickException(f"the numbers stay as they are, since some are missing: {whys}")
    measured.write(NUMBERS)
    for unit, named in measured.costs.items():
        for name, cost in named.items():
            spread = measured.spread[unit][name]
            console.print(f"{unit}: {name}: {cost:,.2f}, spread {spread:,.2f}", highlight=False)


if __name__ == "__main__":
    main()
