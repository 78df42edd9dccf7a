"""The gate's command: measures, compares, and ends with 1 for a regression, and for nothing else.

Ends with 2 without a verdict: too little time, a missing tool or revision, another interpreter
than that of the committed numbers. A cost that looks worse is measured a second time before it
counts. Takes about two minutes, twice as long for two revisions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks.gate import report
from benchmarks.gate.builds import BuildError, revision, work_tree
from benchmarks.gate.measurement import UNITS, Measurement, OutOfTimeError
from benchmarks.gate.verdicts import (
    INSTRUCTIONS,
    NO_VERDICT,
    RESIDENT,
    Allowance,
    Committed,
    Costs,
    Row,
    Verdict,
    allowance,
    allowance_against,
    exit_code,
    judge,
    lesser,
)
from benchmarks.generator.wire import WireError
from benchmarks.servers import ServerError, cores

NUMBERS: Final = Path(__file__).parent / "gate.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--against",
    metavar="REVISION",
    help="Measure this revision too, in turns, and compare with it instead of the numbers.",
)
@click.option("--update", is_flag=True, help="Write the numbers instead of comparing.")
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Take the medians of so many measurements.",
)
def command(against: str | None, update: bool, repeat: int) -> int:
    """Compare what a delivery costs with the committed numbers.

    Ends with 1 for a regression, and with 2 without a verdict.
    """
    if against is not None and update:
        raise click.UsageError("--update writes the work tree's numbers: leave out --against")
    os.sched_setaffinity(0, {cores()[1]})
    # SIGTERM becomes an exception, so that the servers are ended too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        if against is not None:
            return _against(console, against, repeat)
        if update:
            return _update(console, repeat)
        return _committed(console, repeat)
    except (BuildError, WireError, ServerError, OutOfTimeError, OSError) as error:
        raise click.ClickException(f"no verdict: {type(error).__name__}: {error}") from None


def _committed(console: Console, repeat: int) -> int:
    """Compare the work tree with the numbers beside this file."""
    committed = Committed.read(NUMBERS)
    build = work_tree()
    run = Measurement(console, [build])
    measured = Committed.of([run.everything()[0] for _ in range(repeat)])
    foreign = (INSTRUCTIONS, RESIDENT) if committed.foreign else ()
    rows = _judge(console, run, [committed.costs, measured.costs], allowance, foreign)
    report.table(console, rows, "committed", build.title)
    report.calls(console, rows, run.calls, build.title)
    report.missing(console, run.missing)
    report.versions(console, committed)
    if any(row.verdict in {Verdict.BETTER, Verdict.NEW} for row in rows):
        console.print("renew the numbers: just bench-gate --update --repeat 6")
    return exit_code(rows)


def _against(console: Console, name: str, repeat: int) -> int:
    """Compare the work tree with another revision, both measured now."""
    with contextlib.ExitStack() as stack:
        with console.status(f"unpacking and installing {name}"):
            old = stack.enter_context(revision(name))
        new = work_tree()
        run = Measurement(console, [old, new])
        pairs = [run.everything() for _ in range(repeat)]
        costs = [Committed.of(series).costs for series in zip(*pairs, strict=True)]
        rows = _judge(console, run, costs, allowance_against)
    report.table(console, rows, old.title, new.title)
    report.calls(console, rows, run.calls, old.title, new.title)
    report.missing(console, run.missing)
    return NO_VERDICT if run.missing and exit_code(rows) == 0 else exit_code(rows)


def _judge(
    console: Console,
    run: Measurement,
    costs: Sequence[Costs],
    allowed: Allowance,
    incomparable: Collection[str] = (),
) -> list[Row]:
    """Judge the last of `costs` against the first; measure the costs that look worse again.

    Of two measurements the lesser one counts, for either revision: a disturbance only adds.
    """
    before, after = ({unit: dict(named) for unit, named in one.items()} for one in costs)
    rows = judge(before, after, allowed=allowed, incomparable=incomparable)
    for unit in UNITS:
        worse = {row.name for row in rows if row.unit == unit and row.verdict is Verdict.WORSE}
        if not worse:
            continue
        console.print(f"{unit}: measuring {', '.join(sorted(worse))} a second time")
        *old, new = run.again(unit, worse)
        after[unit] = lesser(after[unit], new)
        for one in old:
            before[unit] = lesser(before[unit], one)
    return judge(before, after, allowed=allowed, incomparable=incomparable)


def _update(console: Console, repeat: int) -> int:
    """Write the numbers beside this file."""
    run = Measurement(console, [work_tree()])
    measured = Committed.of([run.everything()[0] for _ in range(repeat)])
    if run.missing:
        whys = "; ".join(f"{unit}: {why}" for unit, why in run.missing.items())
        raise click.ClickException(f"the numbers stay as they are, since some are missing: {whys}")
    measured.write(NUMBERS)
    report.spread(console, measured)
    return 0


def main() -> int:
    """Run the command and return its exit code."""
    try:
        code: int = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return NO_VERDICT
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception:
        # Python itself would end with 1, which would say that something got worse.
        traceback.print_exc()
        return NO_VERDICT
    return code


if __name__ == "__main__":
    sys.exit(main())
