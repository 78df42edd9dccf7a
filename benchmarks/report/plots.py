"""Plots of a run, as SVG files that read in black and white and to the colour-blind.

Same document, same matplotlib, same bytes: no date, and identifiers from a fixed salt. A plot
whose workloads were not run is not drawn. Names are the servers' short ones, as in the tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.model import Run, Series
from benchmarks.report.numbers import number
from benchmarks.report.summary import REPEATER, Cell, cell, group

_OURS: Final = "#c2410c"
_FLOOR: Final = "#8a8a8a"
# Paul Tol's "muted" without its reds, which would be near our own, and two of his "bright".
_PEERS: Final = (
    "#332288",
    "#44aa99",
    "#999933",
    "#88ccee",
    "#117733",
    "#aa4499",
    "#4477aa",
    "#ccbb44",
    "#222222",
    "#7fb77e",
)
_MARKERS: Final = "osD^vPX<>h"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "repeater",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
_THICK: Final = 0.72  # of a bar, in rows
_LONGEST: Final = 6  # times the median bar
_ENOUGH: Final = 10  # observations above a percentile; with fewer it is not drawn
_PERCENTS: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)


class Plot(msgspec.Struct, frozen=True):
    """One file: what it shows, and how it is drawn."""

    name: str
    """Of the file, without `.svg`."""
    caption: str
    draw: Callable[[Run], Figure | None]
    """Draws the plot; None if the run lacks its data."""


def write_plots(run: Run, folder: Path) -> list[Plot]:
    """Write the plots that can be drawn into the folder; return them.

    An older file of a plot that cannot be drawn any more is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in PLOTS:
        path = folder / f"{plot.name}.svg"
        with mpl.rc_context(_STYLE):
            figure = plot.draw(run)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        written.append(plot)
    return written


def _latency(run: Run) -> Figure | None:
    """Four panels: median and 99th percentile of each delivery and of the last of all."""
    sizes = sorted(int(name[7:]) for name in run.workloads if re.fullmatch(r"fanout-\d+", name))
    panels = (
        ("delivery", 50, "each delivery, median"),
        ("delivery", 99, "each delivery, 99th percentile"),
        ("last", 50, "last of all subscribers, median"),
        ("last", 99, "last of all subscribers, 99th percentile"),
    )
    servers = _shown(run, [f"fanout-{size}" for size in sizes])
    if len(sizes) < 2 or not servers:
        return None
    figure = Figure(figsize=(9.6, 6.8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for place, (kind, percent, title) in zip(axes.flat, panels, strict=True):
        place.set_title(title)
        place.set(xscale="log", yscale="log")
        for server in servers:
            points = [
                (size, histogram.get_value_at_percentile(percent) / 1e3)
                for size in sizes
                if (one := run.one(f"fanout-{size}", server)) is not None
                and (histogram := one.histogram(kind)) is not None
            ]
            if points:
                place.plot(*zip(*points, strict=True), **_line(run, server), label=server)
        place.xaxis.set_major_locator(FixedLocator(sizes))
        place.xaxis.set_minor_locator(NullLocator())
        place.xaxis.set_major_formatter(FuncFormatter(_thousands))
        _scale_latency(place, steps=(1,))
    for place in axes[1]:
        place.set_xlabel("subscribers")
    _legend(figure, axes.flat[0])
    return figure


def _percentiles(run: Run) -> Figure | None:
    """The whole distribution at two sizes, as HdrHistogram's own plots show it."""
    names = [name for name in ("fanout-1000", "fanout-9000") if _shown(run, [name])]
    if not names:
        return None
    figure = Figure(figsize=(4.8 * len(names) + 1.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for place, name in zip(axes.flat, names, strict=True):
        place.set_title(f"{run.workloads[name].title}: each delivery")
        place.set(xscale="log", yscale="log", xlabel="percentile")
        for server in _shown(run, names):
            one = run.one(name, server)
            histogram = one.histogram("delivery") if one else None
            if histogram is None:
                continue
            points = [
                (100 / (100 - percent), histogram.get_value_at_percentile(percent) / 1e3)
                for percent in _PERCENTS
                if histogram.get_total_count() * (100 - percent) / 100 >= _ENOUGH
            ]
            place.plot(*zip(*points, strict=True), **_line(run, server), label=server)
        place.xaxis.set_major_locator(FixedLocator([2, 10, 100, 1_000, 10_000]))
        place.xaxis.set_minor_locator(NullLocator())
        place.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{100 - 100 / x:.6g} %" if x else "")
        )
        _scale_latency(place, steps=(1, 2, 5))
    _legend(figure, axes.flat[0])
    return figure


def _flood(run: Run) -> Figure | None:
    return _bars(run, ["flood"], "rate", "deliveries a second; more is better")


def _memory(run: Run) -> Figure | None:
    return _bars(run, ["memory"], "memory_kib", "KiB a connection, resident; less is better")


def _cpu(run: Run) -> Figure | None:
    """Ratios to the floor of the same round."""
    names = [name for name in ("fanout-1000", "fanout-9000") if run.floor(name)]
    return _bars(run, names, "cpu_us", "server CPU a delivery, times the floor", relative=True)


def _bars(
    run: Run, workloads: Sequence[str], metric: str, label: str, *, relative: bool = False
) -> Figure | None:
    """One panel a workload, the best at the top; whiskers from the least to the most."""
    panels = [
        (name, bars) for name in workloads if (bars := _measured(run, name, metric, relative))
    ]
    if not panels:
        return None
    most = max(len(bars) for _, bars in panels)
    figure = Figure(figsize=(4.8 * len(panels) + 1.2, 0.27 * most + 1.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    higher = run.workloads[panels[0][0]].metric(metric).better == "higher"
    for place, (name, bars) in zip(axes.flat, panels, strict=True):
        bars.sort(key=lambda bar: bar[1].median, reverse=higher)
        place.set_title(run.workloads[name].title)
        place.set_xlabel(label)
        place.grid(visible=False, axis="y")
        _draw_bars(place, run, bars)
        place.set_ylim(most - 0.5, -0.5)
        if relative:
            place.axvline(1, color="black", linewidth=1)
    return figure


def _draw_bars(place: Axes, run: Run, bars: Sequence[tuple[str, Cell]]) -> None:
    # A very long bar is cut off; a logarithmic axis would hide the ratios of the others.
    end = _end([each for _, each in bars])
    for row, (server, each) in enumerate(bars):
        if each.median > end:
            _draw_cut(place, row, each, end)
            continue
        place.barh(
            row,
            each.median,
            xerr=[[each.median - each.low], [min(each.high, end) - each.median]],
            color=_colour(run, server, bars=True),
            height=_THICK,
            error_kw={"elinewidth": 1, "capsize": 2.5, "ecolor": "#222222"},
        )
        place.annotate(
            number(each.median),
            (min(each.high, end), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    place.set_yticks(range(len(bars)), [server for server, _ in bars])
    for label, (server, _) in zip(place.get_yticklabels(), bars, strict=True):
        if server == REPEATER:
            label.set(weight="bold", color=_OURS)
    place.set_xlim(0, end * 1.14)
    place.tick_params(axis="y", length=0)
    place.xaxis.set_major_formatter(FuncFormatter(_plain))


def _draw_cut(place: Axes, row: int, each: Cell, end: float) -> None:
    """A bar that goes on beyond the axis, with its number in it."""
    place.barh(row, end, color="#c9d5e5", hatch="//", edgecolor="white", height=_THICK, linewidth=0)
    place.annotate(
        f"{number(each.median)} (cut off)",
        (end, row),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _end(cells: Sequence[Cell]) -> float:
    """Where the axis ends: with the longest bar, unless half of the others would be slivers."""
    ordered = sorted(cells, key=lambda each: each.median)
    return min(max(each.high for each in cells), _LONGEST * ordered[len(ordered) // 2].median)


def _measured(run: Run, workload: str, metric: str, relative: bool) -> list[tuple[str, Cell]]:
    floor = run.floor(workload)
    bars = []
    for one in run.of(workload):
        if relative and (floor is None or one is floor):
            continue
        values = one.ratios(floor, metric) if relative and floor else one.values(metric)
        if each := cell(values):
            bars.append((one.server, each))
    return bars


def _shown(run: Run, workloads: Sequence[str]) -> list[str]:
    """Return the servers without variants, whose lines would lie on Repeater's own."""

    def has(series: Series | None) -> bool:
        return series is not None and any("delivery" in turn.histograms for turn in series.turns)

    return [
        server
        for server in run.servers
        if group(run, server) != "variant" and any(has(run.one(name, server)) for name in workloads)
    ]


def _line(run: Run, server: str) -> dict[str, Any]:
    colour = _colour(run, server)
    if server == REPEATER:
        return {"color": colour, "linewidth": 2.8, "marker": "o", "markersize": 5, "zorder": 5}
    if run.servers[server].floor:
        first = server == next(iter(run.servers))
        return {"color": colour, "linewidth": 1.3, "linestyle": "--" if first else ":"}
    marker = _MARKERS[_place(run, server) % len(_MARKERS)]
    return {"color": colour, "linewidth": 1.2, "marker": marker, "markersize": 4}


def _colour(run: Run, server: str, *, bars: bool = False) -> str:
    """A server's colour, the same in every plot; bars have names and need only three colours."""
    kind = group(run, server)
    if kind == "floor":
        return _FLOOR
    if kind == "repeater":
        return _OURS
    if kind == "variant":
        return "#f0b79a"
    return "#7f9bbf" if bars else _PEERS[_place(run, server) % len(_PEERS)]


def _place(run: Run, server: str) -> int:
    return [name for name in run.servers if group(run, name) == "peer"].index(server)


def _scale_latency(place: Axes, steps: Sequence[int]) -> None:
    place.yaxis.set_major_locator(LogLocator(subs=steps))
    place.yaxis.set_minor_locator(NullLocator())
    place.yaxis.set_major_formatter(FuncFormatter(_milliseconds))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper")
    for text in legend.get_texts():
        if text.get_text() == REPEATER:
            text.set(weight="bold", color=_OURS)


def _milliseconds(value: float, _: object = None) -> str:
    return (
        f"{value * 1e3:g} us"
        if value < 1
        else f"{value:g} ms"
        if value < 1e3
        else f"{value / 1e3:g} s"
    )


def _thousands(value: float, _: object = None) -> str:
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.10g}"


PLOTS: Final = (
    Plot(
        "latency",
        "Latency by number of subscribers: each delivery, and the last of all. Both axes are "
        "logarithmic; no server can go below the dashed and dotted grey lines.",
        _latency,
    ),
    Plot(
        "percentiles",
        "The whole distribution of the latency of each delivery, all rounds together. "
        "Logarithmic axes: each step to the right is ten times rarer.",
        _percentiles,
    ),
    Plot(
        "cpu",
        "Server CPU for one delivery, divided by the floor's in the same round. The line is the "
        "floor; whiskers go from the least round to the most.",
        _cpu,
    ),
    Plot(
        "flood",
        "Deliveries a second when as much is published as the server takes. Whiskers go from the "
        "least round to the most.",
        _flood,
    ),
    Plot("memory", "Resident memory that one idle connection takes.", _memory),
)
