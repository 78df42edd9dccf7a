"""The benchmarks' gate: what it reads, how it subtracts, and when it says no."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.gate.costs import minus, per, typical
from benchmarks.gate.counters import ToolError, callgrind_summary, strace_calls
from benchmarks.gate.verdicts import (
    INSTRUCTIONS,
    SYSTEM_CALLS,
    Committed,
    Verdict,
    exit_code,
    here,
    judge,
    lesser,
)

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
        comparable={INSTRUCTIONS: True},
    )
    assert [row.verdict for row in rows] == [verdict]
    assert exit_code(rows) == code


def test_one_more_system_call_a_delivery_or_a_publish_fails() -> None:
    """The allowances are far below one call, which is the least that code can add."""
    committed = {SYSTEM_CALLS: {"delivery plain": 1.0, "publish by REST": 7.0}}
    same = {SYSTEM_CALLS: {"delivery plain": 1.04, "publish by REST": 7.2}}
    assert exit_code(judge(committed, same, comparable={})) == 0
    for name in committed[SYSTEM_CALLS]:
        more = {SYSTEM_CALLS: {**same[SYSTEM_CALLS], name: committed[SYSTEM_CALLS][name] + 1}}
        assert exit_code(judge(committed, more, comparable={})) == 1


def test_other_interpreter_leaves_only_system_calls_to_compare() -> None:
    """Twice the instructions of another build are shown, and neither pass nor fail."""
    committed = {INSTRUCTIONS: {"a": 1_000.0}, SYSTEM_CALLS: {"a": 1.0}}
    measured = {INSTRUCTIONS: {"a": 2_000.0}, SYSTEM_CALLS: {"a": 1.0}}
    rows = judge(committed, measured, comparable={INSTRUCTIONS: False})
    assert [row.verdict for row in rows] == [Verdict.NOT_COMPARED, Verdict.SAME]
    assert exit_code(rows) == 0


def test_nothing_compared_is_no_pass() -> None:
    """Without any tool, or with only foreign instruction counts, the gate ends with 2."""
    committed = {INSTRUCTIONS: {"a": 1_000.0}}
    assert exit_code(judge(committed, {}, comparable={})) == 2
    assert exit_code(judge(committed, committed, comparable={INSTRUCTIONS: False})) == 2
    assert exit_code(judge({}, committed, comparable={})) == 2


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
