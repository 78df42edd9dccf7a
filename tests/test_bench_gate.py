"""The benchmarks' gate: what it reads, how it subtracts, and when it says no."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.gate.__main__ import main
from benchmarks.gate.builds import build_of, work_tree
from benchmarks.gate.bulk import BULKS, measure
from benchmarks.gate.costs import minus, per, typical
from benchmarks.gate.counters import Counts, ToolError, callgrind_summary, strace_calls
from benchmarks.gate.measurement import Measurement, OutOfTimeError
from benchmarks.gate.verdicts import (
    INSTRUCTIONS,
    RESIDENT,
    SYSTEM_CALLS,
    Committed,
    Verdict,
    allowance_against,
    exit_code,
    here,
    judge,
    lesser,
)
from benchmarks.servers import Child
from tests.processes import starts_processes

_LOG = b"""\
[{events=EPOLLIN, data={u32=14}}], 8, 980) = 1
25272 recvfrom(14, ""..., 65536, 0, NULL, NULL) = 262
25272 sendto(10, ""..., 140, 0, NULL, 0 <unfinished ...>
25275 futex(0x7f36a6e845d8, FUTEX_WAIT, 0, NULL <unfinished ...>
25272 <... sendto resumed>) = 140
25272 sendto(9, ""..., 140, 0, NULL, 0) = 140
25272 +++ exited with 0 +++
25272 epoll_wait(3, """


def test_strace_log_is_counted_by_the_calls_that_begin_in_it() -> None:
    """A part that starts and ends inside a wait has that wait once; resumed calls are not two."""
    assert strace_calls(_LOG) == {"recvfrom": 1, "sendto": 2, "futex": 1, "epoll_wait": 1}
    assert strace_calls(b"") == {}


def test_callgrind_dump_has_one_summary() -> None:
    """Its first event is the instructions; a dump without one is the tool's fault."""
    text = "version: 1\nevents: Ir\nfn=(1) x\n5 77\nsummary: 2349812\n\ntotals: 2378870\n"
    assert callgrind_summary(text) == 2_349_812
    with pytest.raises(ToolError):
        callgrind_summary("version: 1\n")


def test_slope_leaves_out_what_both_windows_have() -> None:
    """Ten more deliveries at one send each; the three polls of both windows cancel."""
    few, more = {"sendto": 12, "epoll_wait": 3}, {"sendto": 22, "epoll_wait": 3, "brk": 1}
    assert per(minus(more, few), 10) == {"sendto": 1, "epoll_wait": 0, "brk": 0.1}


def test_disturbed_windows_do_not_count() -> None:
    """The one at the lower quartile does: neither a sweep's nor a lucky one."""
    usual = {"sendto": 8, "poll": 2}
    windows = [{"sendto": 9_000}, usual, {"sendto": 8, "futex": 90}, {"sendto": 8}]
    assert typical([*windows, usual, {**usual, "brk": 1}, usual]) == usual


@pytest.mark.parametrize(
    ("measured", "verdict", "code"),
    [
        (1_019, Verdict.SAME, 0),
        (981, Verdict.SAME, 0),
        (1_021, Verdict.WORSE, 1),
        (979, Verdict.BETTER, 0),
    ],
)
def test_instructions_may_change_by_two_per_cent(
    measured: float, verdict: Verdict, code: int
) -> None:
    """More is a regression and ends with 1; less passes, and asks for new numbers."""
    rows = judge(
        {INSTRUCTIONS: {"delivery plain": 1_000}},
        {INSTRUCTIONS: {"delivery plain": measured}},
    )
    assert [row.verdict for row in rows] == [verdict]
    assert exit_code(rows) == code


def test_one_more_system_call_a_delivery_or_a_publish_fails() -> None:
    """The allowances are far below one call, which is the least that code can add."""
    committed = {SYSTEM_CALLS: {"delivery plain": 1.0, "publish by REST": 7.0}}
    same = {SYSTEM_CALLS: {"delivery plain": 1.04, "publish by REST": 7.2}}
    assert exit_code(judge(committed, same)) == 0
    for name in committed[SYSTEM_CALLS]:
        more = {SYSTEM_CALLS: {**same[SYSTEM_CALLS], name: committed[SYSTEM_CALLS][name] + 1}}
        assert exit_code(judge(committed, more)) == 1


def test_other_interpreter_leaves_no_verdict() -> None:
    """Twice the instructions of another build are shown, and neither pass nor fail."""
    committed = {INSTRUCTIONS: {"a": 1_000.0}, SYSTEM_CALLS: {"a": 1.0}}
    measured = {INSTRUCTIONS: {"a": 2_000.0}, SYSTEM_CALLS: {"a": 1.0}}
    rows = judge(committed, measured, incomparable={INSTRUCTIONS})
    assert [row.verdict for row in rows] == [Verdict.NOT_COMPARED, Verdict.SAME]
    assert exit_code(rows) == 2


def test_regression_is_one_even_where_something_else_has_no_verdict() -> None:
    """One system call more a delivery ends with 1, whatever the interpreter."""
    committed = {INSTRUCTIONS: {"delivery": 1_000.0}, SYSTEM_CALLS: {"delivery": 1.0}}
    measured = {INSTRUCTIONS: {"delivery": 1_000.0}, SYSTEM_CALLS: {"delivery": 2.0}}
    assert exit_code(judge(committed, measured, incomparable={INSTRUCTIONS})) == 1


def test_nothing_compared_is_no_pass() -> None:
    """Without a tool, or with only foreign instruction counts, the gate ends with 2."""
    committed = {INSTRUCTIONS: {"a": 1_000.0}}
    both = {**committed, SYSTEM_CALLS: {"a": 1.0}}
    assert exit_code(judge(committed, {})) == 2
    assert exit_code(judge(both, committed)) == 2
    assert exit_code(judge(committed, committed, incomparable={INSTRUCTIONS})) == 2
    assert exit_code(judge({}, committed)) == 2
    assert exit_code(judge(committed, both)) == 0


@pytest.mark.parametrize(
    ("unit", "measured", "verdict"),
    [
        (INSTRUCTIONS, 1_009, Verdict.SAME),
        (INSTRUCTIONS, 1_011, Verdict.WORSE),
        (INSTRUCTIONS, 989, Verdict.BETTER),
        (SYSTEM_CALLS, 1_011, Verdict.WORSE),
        (RESIDENT, 1_049, Verdict.SAME),
        (RESIDENT, 1_051, Verdict.WORSE),
    ],
)
def test_another_revision_is_compared_by_ratio(
    unit: str, measured: float, verdict: Verdict
) -> None:
    """One per cent of the number before; five for resident bytes."""
    before, after = {unit: {"delivery": 1_000.0}}, {unit: {"delivery": measured}}
    (row,) = judge(before, after, allowed=allowance_against)
    assert (row.verdict, row.ratio) == (verdict, measured / 1_000)


@pytest.mark.parametrize(
    ("main", "source", "package"),
    [
        ("service/repeater/__main__.py", "service", "repeater"),
        ("service/__main__.py", ".", "service"),
    ],
)
def test_revisions_of_either_layout_can_be_started(
    tmp_path: Path, main: str, source: str, package: str
) -> None:
    """The package is `service/repeater`; earlier revisions have it in `service` itself."""
    (tmp_path / main).parent.mkdir(parents=True)
    (tmp_path / main).touch()
    build = build_of(tmp_path, title="old", python="python3")
    assert build.command()[:4] == ("python3", "-m", package, "serve")
    assert build.settings() == {"PYTHONPATH": str((tmp_path / source).resolve())}


def test_work_tree_is_a_build_of_its_own_interpreter() -> None:
    """The server that the gate measures is the one around it."""
    build = work_tree()
    assert (build.python, build.package) == (sys.executable, "repeater")
    build.check()


class CountsNothing:
    """A tool that lets the server run at full speed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prefix(self) -> tuple[str, ...]:
        return ()

    def begin(self, child: Child) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""

    def read(self) -> Counts:
        return {"instructions": 1}


@starts_processes
def test_library_publishes_on_a_revision_with_benchmarks_of_its_own(tmp_path: Path) -> None:
    """The program that publishes is the work tree's; a revision may not have it yet."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    build = msgspec.structs.replace(work_tree(), root=tmp_path)
    library = next(one for one in BULKS if one.name == "publish by a library")
    assert measure(CountsNothing, library, build) == {library.name: {"instructions": 0}}


@pytest.mark.parametrize("arguments", [["--against", "no-such-revision"], ["--nonsense"]])
def test_gate_without_a_verdict_ends_with_two(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 is only for a regression, and a mistake on the command line is not one."""
    monkeypatch.setattr(sys, "argv", ["gate", *arguments])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main() == 2
    assert "no-such-revision" in (said := capsys.readouterr().err) or "--nonsense" in said


@pytest.mark.parametrize("trouble", [OutOfTimeError("600 s"), OSError(24, "files"), KeyError("x")])
def test_trouble_while_measuring_ends_with_two(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither too little time nor a mistake in the gate itself is a regression."""

    def fail(_: Measurement) -> None:
        raise trouble

    monkeypatch.setattr(sys, "argv", ["gate"])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Measurement, "everything", fail)
    assert main() == 2
    assert type(trouble).__name__ in capsys.readouterr().err


def test_second_measurement_can_only_acquit() -> None:
    """Of two the lesser counts; what was not measured again stays."""
    assert lesser({"a": 5, "b": 2, "c": 1}, {"a": 4, "b": 3}) == {"a": 4, "b": 2, "c": 1}


def test_committed_numbers_are_medians_with_their_spread(tmp_path: Path) -> None:
    """They come back from the file as they were written, and belong to this interpreter."""
    runs = [{SYSTEM_CALLS: {"a": value}} for value in (1.0, 1.25, 1.0)]
    committed = Committed.of(runs)
    committed.write(tmp_path / "gate.json")
    again = Committed.read(tmp_path / "gate.json")
    assert again == committed
    assert again.costs == {SYSTEM_CALLS: {"a": 1.0}}
    assert again.spread == {SYSTEM_CALLS: {"a": 0.25}}
    assert (again.foreign, again.differs) == ([], [])


def test_what_differs_from_the_committed_machine_is_named() -> None:
    """A Python of another minor version is foreign; another Trio is a reason worth saying."""
    other = Committed({**here(), "python": "CPython 3.9", "trio": "0.1"}, {}, {})
    assert [text.split()[0] for text in other.foreign] == ["python"]
    assert [text.split()[0] for text in other.differs] == ["trio"]
    assert msgspec.structs.replace(other, made_on=here()).foreign == []
