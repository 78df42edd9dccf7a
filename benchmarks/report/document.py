"""Writes `docs/benchmarks.md` from a run: the same document gives the same page.

All that the page says of the machine, the servers, failures and limits comes from the document. A
compact copy of the document lies beside the plots, so that the page can be made again and checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jinja2
import msgspec
from hdrh.histogram import HdrHistogram

from benchmarks.model import BOTTLENECK, MOST_US, Run, Turn, load, save
from benchmarks.report.numbers import number
from benchmarks.report.plots import PLOTS, Plot, write_plots
from benchmarks.report.summary import Cell, Summary, summarise

_DIGITS: Final = 2  # to one per cent: a plot shows no more, and a histogram has a third of the size
_PLOTTED: Final = "fanout-"
TABLES: Final = {
    "engines": "engines-measured.md.j2",
    "protobuf": "protobuf-measured.md.j2",
}
"""The plans whose runs have a page of their own, with tables and no plots."""
_LIMIT: Final = f"{BOTTLENECK:.0%}".replace("%", " %")


def write(run: Run, path: Path) -> None:
    """Write the page, and the compact document and the plots into the folder of its name."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    save(compact(run), folder / "run.json")
    kept = load(folder / "run.json")
    if run.plan in TABLES:
        path.write_text(tables_page(kept))
    else:
        path.write_text(page(kept, write_plots(kept, folder), folder.name))


def page(run: Run, plots: Sequence[Plot], folder: str = "benchmarks") -> str:
    """Return the page; `plots` are the plots in the folder."""
    summaries = _summaries(run)
    return _template("benchmarks.md.j2").render(
        run=run,
        folder=folder,
        plots=[plot for plot in PLOTS if plot.name in {one.name for one in plots}],
        groups=_groups(run, summaries),
        notes=[(one, note) for one in summaries for note in one.notes],
        rounds=sorted({one.rounds for one in summaries}),
        loads=_loads(run),
        limit=_LIMIT,
        main=_main,
    )


def tables_page(run: Run) -> str:
    """Return the page of a run of `just bench-engines` or `just bench-protobuf`."""
    groups = _groups(run, _summaries(run))
    return _template(TABLES[run.plan]).render(run=run, groups=groups, limit=_LIMIT)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, from our own document
    )
    environment.filters.update(number=number, cell=_cell, line=_line)
    return environment.get_template(name)


def _summaries(run: Run) -> Sequence[Summary]:
    return [summarise(run, name) for name in run.workloads if run.of(name)]


def _groups(run: Run, summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Return the workloads' tables by their headings, in the order of the run."""
    groups = dict[str, list[Summary]]()
    for one in summaries:
        groups.setdefault(run.workloads[one.name].group, []).append(one)
    return groups


def compact(run: Run) -> Run:
    """Return the run with only the plots' histograms, to two digits; twice equals once."""
    series = [
        msgspec.structs.replace(one, turns=[_compact(turn, one.workload) for turn in one.turns])
        for one in run.series
    ]
    return msgspec.structs.replace(run, series=series)


def _compact(turn: Turn, workload: str) -> Turn:
    if not workload.startswith(_PLOTTED):
        return msgspec.structs.replace(turn, histograms={})
    smaller = {name: _coarse(text) for name, text in turn.histograms.items()}
    return msgspec.structs.replace(turn, histograms=smaller)


def _coarse(text: str) -> str:
    fine = HdrHistogram.decode(text.encode())
    if fine.significant_figures <= _DIGITS:
        return text
    coarse = HdrHistogram(1, MOST_US, _DIGITS)
    coarse.add(fine)
    encoded: bytes = coarse.encode()
    return encoded.decode()


def _loads(run: Run) -> tuple[float, float]:
    """Return the least and the most that the load generator used of its core in a turn."""
    shares = [turn.generator for one in run.series for turn in one.turns if turn.generator]
    return (min(shares), max(shares)) if shares else (0.0, 0.0)


def _main(summary: Summary) -> str:
    """Return the metric by which the peers are ordered, in words."""
    return summary.metrics[0].title if summary.metrics else ""


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text}<br><sub>{cell.range}</sub>" if cell.range else text


def _line(text: str) -> str:
    """Return a text for a table's cell: one line without bars."""
    return " ".join(text.split()).replace("|", "\\|")
