"""The table that a run ends with, for people at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.model import METRICS, Metric, Run, Series


def print_run(run: Run, console: Console) -> None:
    """A table for each workload, then what was claimed and what was missing."""
    for name, task in run.workloads.items():
        series = [one for one in run.series if one.workload == name]
        if series:
            console.print(_table(run, task.title, task.metrics, series))
    for verdict in run.verdicts:
        value = "not measured" if verdict.value is None else number(verdict.value)
        console.print(
            f"{'[green]pass' if verdict.passed else '[red]miss'}[/] {verdict.claim}: "
            f"{value} {verdict.unit} ({verdict.side} {number(verdict.limit)})"
        )
    for title, reason in run.missing.items():
        console.print(f"[yellow]skipped[/] {title}: {reason}")


def _table(run: Run, title: str, own: dict[str, Metric], series: list[Series]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("server")
    known = {**METRICS, **own}
    metrics = [name for name in known if any(one.values(name) for one in series)]
    for name in metrics:
        table.add_column(f"{known[name].title}, {known[name].unit}", justify="right")
    table.add_column("generator", justify="right")
    for one in series:
        if one.turns:
            medians = (one.median(name) for name in metrics)
            table.add_row(
                run.servers[one.server].title,
                *("" if value is None else number(value) for value in medians),
                f"{max(turn.generator for turn in one.turns):.0%}",
            )
        for text in dict.fromkeys([*one.faults, one.skipped]):
            if text:
                table.add_row(run.servers[one.server].title, f"[red]{text[:200]}")
    return table


def number(value: float) -> str:
    """Three significant digits, or whole thousands."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
