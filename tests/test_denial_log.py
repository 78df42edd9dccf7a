"""What a node makes of numbered changes of denials, and of the whole table: pure decisions."""

from __future__ import annotations

import pytest

from repeater.access.grants import Denial
from repeater.cluster.denial_log import Change, DenialLog, Table, denial_of, name_of, value_of

ANN, BOB = Denial(user="ann"), Denial(user="bob")
LIFTED = Denial(user="ann", lifted=True)


# Names and values.


@pytest.mark.parametrize(
    "denial",
    [
        *(ANN, Denial(user=""), Denial(user="a b", expire_at=9), Denial(token_id="x y")),
        *(Denial(user="\ud800", issued_before=5, expire_at=7), LIFTED),
        *(Denial(token_id="x", lifted=True), Denial(user="u", issued_before=1, lifted=True)),
    ],
)
def test_a_denial_is_read_as_it_was_written(denial: Denial) -> None:
    """Each kind, with any name."""
    assert denial_of(name_of(denial), value_of(denial)) == denial


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((b"", b"0 0"), (b"user", b"0 0"), (b"other x", b"0 0"), (b"token ", b"0 0")),
        *((b"user x", b"1 0"), (b"tokens x", b"0 0"), (b"user x", b"-1 0"), (b"user x", b"a")),
        *((b"user x", b"0 " + b"9" * 19), (b"user \xff", b"0 0"), (b"user x", b"0")),
    ],
)
def test_what_no_node_has_written_is_no_denial(name: bytes, value: bytes) -> None:
    """Whoever can write into the engine can write anything."""
    with pytest.raises(ValueError):  # noqa: PT011  # any reason will do
        denial_of(name, value)


# The log of changes.


def change(number: int, denial: Denial, *, mark: str = "", before: str = "") -> Change:
    mark, before = mark or f"mark {number}", before or f"mark {number - 1}"
    return Change(number, mark, before, name_of(denial), value_of(denial))


def table(number: int, *denials: Denial, mark: str = "", is_later: bool = True) -> Table:
    rows = {name_of(one): value_of(one) for one in denials}
    return Table(number, mark or f"mark {number}", is_later, rows)


def a_log(*denials: Denial) -> DenialLog:
    log = DenialLog()
    log.read(table(5, *denials))
    return log


def test_changes_are_applied_in_their_order_and_once() -> None:
    """One that comes too early waits for the missing one; an old one is dropped."""
    log = a_log()
    assert (log.take(change(7, LIFTED)), log.behind) == ([], True)
    both = [change(6, ANN), change(7, LIFTED)]
    assert (log.take(change(6, ANN)), log.behind) == (both, False)
    assert (log.take(change(6, ANN)), log.behind) == ([], False)
    assert (log.take(change(3, ANN)), log.behind) == ([], False)


def test_a_table_that_was_read_says_what_differs() -> None:
    """What is new or other is applied, what is missing is lifted, foreign rows are left out."""
    log = a_log(ANN, BOB)
    later, new = Denial(user="bob", expire_at=9), Denial(token_id="t")
    found = table(9, later, new)
    rows = {**found.rows, b"x": b"y"}
    assert log.read(Table(9, "mark 9", is_later=True, rows=rows)) == [later, new, LIFTED]
    assert not log.unwritten
    assert log.read(table(9, later, new)) == []


def test_changes_that_came_before_the_table_are_not_undone() -> None:
    """Those behind the table are applied behind it, those before it are in it."""
    log = a_log()
    log.take(change(9, BOB))
    log.take(change(8, Denial(token_id="t")))
    assert log.read(table(8, ANN)) == [ANN, BOB]
    assert (log.number, log.behind) == (9, False)


def test_the_first_change_of_all_needs_no_table() -> None:
    """Before it there is nothing."""
    log = DenialLog()
    log.read(Table(0, "", is_later=True, rows={}))
    first = Change(1, "mark 1", "", name_of(ANN), value_of(ANN))
    assert log.take(first) == [first]
    assert log.take(change(2, BOB)) == [change(2, BOB)]


def test_a_number_that_no_node_can_have_does_not_hold_others_up() -> None:
    """A foreign message has the table read once, and no more."""
    log = a_log()
    assert (log.take(change(5_000_000, BOB)), log.behind) == ([], True)
    assert (log.read(table(5)), log.behind) == ([], False)
    assert log.take(change(6, ANN)) == [change(6, ANN)]


def test_an_engine_that_has_lost_its_data_lifts_nothing() -> None:
    """What it lost is to be written anew, until it is there again."""
    log = a_log(ANN, BOB)
    assert log.read(table(1, BOB, mark="other", is_later=False)) == []
    assert log.unwritten == {name_of(ANN): value_of(ANN)}
    assert log.read(table(2, BOB, mark="other 2")) == []
    assert log.unwritten == {name_of(ANN): value_of(ANN)}
    assert log.read(table(3, BOB, ANN, mark="other 3")) == []
    assert not log.unwritten


def test_a_row_without_a_value_is_foreign() -> None:
    """The table has no rows of what is lifted: nothing of such a row is kept, or expires."""
    log = a_log(BOB)
    rows = {**table(6, BOB).rows, name_of(ANN): b""}
    assert log.read(Table(6, "mark 6", is_later=True, rows=rows)) == []
    assert log.foreign == 1
    assert log.expired(9_999_999_999) == []


@pytest.mark.parametrize("value", [b"", b"x", b"0 x", b"0", b"0 " + b"9" * 5_000])
def test_what_no_node_has_written_is_not_wider(value: bytes) -> None:
    """An engine that has a foreign value in place of a denial has lost the denial."""
    log = a_log(ANN)
    found = Table(1, "other", is_later=False, rows={name_of(ANN): value})
    assert log.read(found) == []
    assert log.unwritten == {name_of(ANN): value_of(ANN)}


def test_the_marks_of_changes_are_bounded() -> None:
    """Also if the node reads the table each time, and so leaves numbers out."""
    log = a_log()
    for number in range(10, 30_000, 7):
        log.read(table(number))
    assert len(log._marks) == 1_000
    assert log.has(change(log.number, ANN))
    assert not log.has(change(log.number, ANN, mark="other"))


def test_a_failover_that_lost_the_last_changes_lifts_nothing() -> None:
    """What is older is right as the engine has it: it was lifted before."""
    log = a_log(ANN)
    log.take(change(6, Denial(token_id="t")))
    log.take(change(7, BOB))
    assert log.read(table(6, Denial(token_id="t"), is_later=False)) == [LIFTED]
    assert log.unwritten == {name_of(BOB): value_of(BOB)}
    anew = change(7, BOB, mark="mark 7 again", before="mark 6")
    assert log.take(anew) == [anew]
    assert not log.unwritten


def test_what_waits_when_the_engine_loses_its_data_is_not_forgotten() -> None:
    """A change behind one that is missing is applied and written anew, if it is wider."""
    log, longer = a_log(Denial(user="ann", expire_at=20)), Denial(user="bob", expire_at=30)
    assert log.take(change(7, longer)) == []
    assert log.take(change(8, Denial(user="ann", expire_at=10))) == []
    assert log.read(table(3, mark="other", is_later=False)) == [longer]
    assert set(log.unwritten) == {name_of(ANN), name_of(BOB)}
    assert log.value(name_of(BOB)) == value_of(longer)
    assert log.value(name_of(ANN)) == b"0 20"


def test_what_waits_and_is_lost_is_put_in_force_and_written_anew() -> None:
    """The engine names the waiting changes that it has lost; what they lift is not lifted."""
    log = a_log(ANN)
    log.take(change(7, BOB))
    log.take(change(8, LIFTED))
    lost = log.withdraw({"mark 7", "mark 8", "mark 9"})
    assert [one.mark for one in lost] == ["mark 7", "mark 8"]
    assert not log.behind
    assert log.lose(lost) == [BOB]
    assert log.unwritten == {name_of(BOB): value_of(BOB)}
    assert log.value(name_of(ANN)) == value_of(ANN)


def test_a_number_that_was_given_twice_takes_nothing_from_what_waits() -> None:
    """A change of the engine's new history comes before the table is read."""
    log, longer = a_log(ANN), Denial(user="bob", expire_at=30)
    assert log.take(change(7, longer)) == []
    assert log.take(change(5, Denial(user="cho"), mark="other", before="mark 4")) == []
    assert longer in log.read(table(3, mark="third", is_later=False))
    assert name_of(BOB) in log.unwritten


def test_a_number_that_was_given_twice_is_found() -> None:
    """After a failover another change may have the number of one that was lost."""
    log = a_log()
    log.take(change(6, ANN))
    assert (log.take(change(6, BOB, mark="other")), log.behind) == ([], True)
    log = a_log()
    log.take(change(6, ANN))
    assert (log.take(change(7, BOB, before="other")), log.behind) == ([], True)
    assert log.read(table(7, BOB, is_later=False)) == [BOB]
    assert log.unwritten == {name_of(ANN): value_of(ANN)}
