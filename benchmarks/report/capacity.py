"""Writes `docs/capacity.md` from a run, so that all its numbers come from that run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jinja2
import msgspec

from benchmarks.capacity import (
    MEASURED_CONNECTIONS,
    PACKET,
    Assumptions,
    Costs,
    Estimate,
    estimate,
)
from benchmarks.model import Run
from benchmarks.report.numbers import number

RATES: Final = (0.01, 0.1, 1.0, 10.0)
_SIZES: Final = (1_000, 5_000, 9_000)


def page(run: Run, shared: Run, given: Assumptions) -> str:
    """Return the page of a full run, and of a run of the workload `valkey-nodes`.

    Raises:
        NotMeasuredError: a run lacks a workload that the model needs.
    """
    costs = Costs.of(run, shared)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, of our own numbers
    )
    environment.filters["digits"] = environment.globals["digits"] = number
    return environment.get_template("capacity.md.j2").render(
        run=run,
        shared=shared,
        costs=costs,
        given=given,
        estimates=_estimates(costs, given),
        measured=MEASURED_CONNECTIONS,
        packet=PACKET,
        by_size=_by_size(run),
        tls=_median(run, "fanout-1000", "repeater-tls"),
    )


def _estimates(costs: Costs, given: Assumptions) -> Sequence[tuple[float, Estimate]]:
    return [(rate, estimate(costs, msgspec.structs.replace(given, rate=rate))) for rate in RATES]


def _by_size(run: Run) -> Sequence[tuple[int, float]]:
    found = ((size, _median(run, f"fanout-{size}", "repeater")) for size in _SIZES)
    return [(size, value) for size, value in found if value is not None]


def _median(run: Run, workload: str, server: str) -> float | None:
    series = run.one(workload, server)
    return series.median("cpu_us") if series else None
