"""The page and the plots: made of the document alone, and the same each time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.claims import judge
from benchmarks.model import Run, load
from benchmarks.report.document import compact, page, tables_page, write
from benchmarks.report.plots import PLOTS, Plot, write_plots
from tests.benchmarking import imagined_run
from tests.deadlines import PROCESS_STARTS

DOCS = Path(__file__).resolve().parent.parent / "docs"
# Plots are seconds of computation.
pytestmark = [pytest.mark.timeout(3 * PROCESS_STARTS), pytest.mark.slow]

LARGEST = 100_000  # bytes of a plot


@pytest.fixture(scope="module")
def run() -> Run:
    run = imagined_run()
    judge(run)
    return run


def test_plots(run: Run, tmp_path: Path) -> None:
    """All are drawn: small, whole, with text as text, and with the servers' names."""
    assert write_plots(run, tmp_path) == list(PLOTS)
    for plot in PLOTS:
        path = tmp_path / f"{plot.name}.svg"
        text = path.read_text()
        assert len(text) < LARGEST
        ElementTree.fromstring(text)
        assert ">repeater<" in text
        assert ">uwebsockets<" in text


def test_plots_are_the_same_each_time(run: Run, tmp_path: Path) -> None:
    """Drawing again changes no byte: a diff of docs shows what was measured."""
    for folder in ("once", "twice"):
        write_plots(run, tmp_path / folder)
    for plot in PLOTS:
        once, twice = (tmp_path / folder / f"{plot.name}.svg" for folder in ("once", "twice"))
        assert once.read_bytes() == twice.read_bytes()


def test_what_was_not_run_is_not_drawn(run: Run, tmp_path: Path) -> None:
    """A plot without its workload is left out, and an old file of it goes."""
    (tmp_path / "flood.svg").write_text("of an older run")
    part = Run(
        when=run.when,
        machine=run.machine,
        plan="core",
        servers=run.servers,
        workloads={"fanout-1000": run.workloads["fanout-1000"]},
        series=run.of("fanout-1000"),
    )
    drawn = [plot.name for plot in write_plots(part, tmp_path)]
    assert drawn == ["percentiles", "cpu"]
    assert {path.stem for path in tmp_path.iterdir()} == {*drawn}


def test_the_page_says_what_the_document_says(run: Run) -> None:
    """Machine, versions, configurations, claims, failures and missing servers."""
    text = page(run, PLOTS)
    assert not re.search(r"\{[{%]|None|Undefined", text)
    for value in run.machine.values():
        assert value in text
    for server in run.servers.values():
        assert server.configuration in text
    for verdict in run.verdicts:
        assert verdict.claim in text
    for task in run.workloads.values():
        assert f"### {task.title}\n" in text
    assert "Mercure (Go): no mercure on the PATH" in text
    # Under its table, and once more at the end.
    assert text.count("websockets: failed in 2 of 3 turns: WireError: subscriber 17") == 2


def test_tables_of_the_page_have_no_holes(run: Run) -> None:
    """Within a table every line has as many cells as its head."""
    bars = [line.count("|") for line in page(run, PLOTS).splitlines() if line.startswith("|")]
    heads = [line for line in page(run, PLOTS).splitlines() if line.startswith("|--")]
    assert len(heads) == len(run.workloads) + 4
    tables = re.findall(r"(?:^\|.*\n)+", page(run, PLOTS), re.MULTILINE)
    assert len(tables) == len(heads)
    assert sum(len(table.splitlines()) for table in tables) == len(bars)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_core_run_says_so(run: Run) -> None:
    """A quick look says that it is not a measurement; without plots their heading is left out."""
    for plan, words in (("core", "some of the workloads"), ("quick", "not a measurement")):
        other = Run(when=run.when, machine={}, plan=plan)
        assert words in page(other, [])
        assert "In pictures" not in page(other, [])


def test_compacting_twice_is_compacting_once(run: Run) -> None:
    """So that a page made of a committed document is the page that was committed with it."""
    once = compact(run)
    assert compact(once) == once
    assert not any(turn.histograms for one in once.of("flood") for turn in one.turns)
    fine, coarse = (each.one("fanout-1000", "repeater") for each in (run, once))
    assert fine is not None
    assert coarse is not None
    before, after = fine.histogram("delivery"), coarse.histogram("delivery")
    assert before is not None
    assert after is not None
    assert after.get_total_count() == before.get_total_count()
    for percent in (50, 99):
        values = [each.get_value_at_percentile(percent) for each in (before, after)]
        assert values[1] == pytest.approx(values[0], rel=0.02)


def test_written_and_read_again(run: Run, tmp_path: Path) -> None:
    """What lies beside the page gives the page, and every picture of it is there."""
    write(run, tmp_path / "benchmarks.md")
    text = (tmp_path / "benchmarks.md").read_text()
    folder = tmp_path / "benchmarks"
    assert text == page(load(folder / "run.json"), drawn(folder))
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert len(pictures) == len(PLOTS)
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_the_committed_page_is_its_documents() -> None:
    """docs/benchmarks.md is what docs/benchmarks/run.json gives, without edits."""
    folder = DOCS / "benchmarks"
    if not (folder / "run.json").exists():
        pytest.skip("no run is committed")
    run = load(folder / "run.json")
    assert (DOCS / "benchmarks.md").read_text() == page(run, drawn(folder))
    assert compact(run) == run


def test_engines_have_a_page_of_their_own(run: Run, tmp_path: Path) -> None:
    """With the verdicts, the machine and the command; without plots and without other servers."""
    ours = msgspec.structs.replace(run, plan="engines", command="just bench-engines --rounds 2")
    write(ours, tmp_path / "engines-measured.md")
    text = (tmp_path / "engines-measured.md").read_text()
    assert text == tables_page(load(tmp_path / "engines-measured" / "run.json"))
    assert "| command | `just bench-engines --rounds 2` |" in text
    assert all(one.claim in text for one in run.verdicts)
    assert [path.name for path in (tmp_path / "engines-measured").iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["engines-measured", "protobuf-measured"])
def test_a_committed_page_of_tables_is_its_documents(name: str) -> None:
    """It is what the `run.json` in the folder of its name gives, without edits."""
    run = load(DOCS / name / "run.json")
    assert (DOCS / f"{name}.md").read_text() == tables_page(run)


def drawn(folder: Path) -> Sequence[Plot]:
    return [plot for plot in PLOTS if (folder / f"{plot.name}.svg").exists()]
