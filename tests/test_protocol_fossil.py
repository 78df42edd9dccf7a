"""Fossil deltas: what we make, the SDK's own applier turns back into the target."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from centrifuge.fossil import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from repeater.protocol.centrifugo import fossil
from repeater.protocol.centrifugo.fossil import delta_or_full, make_delta

BASE = b'{"title":"hello world","count":1}'
TARGET = b'{"title":"hello world","count":2}'

TEXTS = st.text() | st.text("ab\u00e9\u20ac\U0001f600", max_size=300)
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=40)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=60,
)


def apply(base: bytes, delta: bytes) -> bytes:
    """The target, as the Python SDK gets it out of the delta's text."""
    return bytes(apply_delta(base, delta.decode().encode()))


def say(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def quotes(first: int, count: int) -> list[dict[str, object]]:
    return [
        {"symbol": f"SYM{n}", "price": n * 37 % 501 / 4, "time": n * 7919 % 100_003}
        for n in range(first, first + count)
    ]


def test_the_golden_vector_is_understood() -> None:
    """The applier that judges these tests reads appendix A's delta."""
    assert apply(BASE, b"X\nV@0,1:21@W,36GFxz;") == TARGET


def test_the_golden_pair() -> None:
    """For appendix A's pair our delta is shorter still: one byte is not worth a copy."""
    assert make_delta(BASE, TARGET) == b"X\nV@0,2:2}36GFxz;"
    assert apply(BASE, make_delta(BASE, TARGET)) == TARGET


@given(TEXTS, TEXTS)
def test_any_text_comes_back(base: str, target: str) -> None:
    """For any pair of texts the delta is text and gives the target."""
    old, new = base.encode(), target.encode()
    assert apply(old, make_delta(old, new)) == new


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_come_back(one: bytes, two: bytes, three: bytes) -> None:
    """Data that is no text: whatever bytes are common, at any place."""
    for base, target in ((one, two), (one + two + three, three + two + one), (one * 3, one + two)):
        assert bytes(apply_delta(base, make_delta(base, target, text=False))) == target


def test_bytes_are_cut_anywhere() -> None:
    """A run of bytes that would be the inside of a character in text costs no time and no size."""
    base = bytes([0x80]) * 60_000 + b"1" + bytes([0x80]) * 60_000
    target = base.replace(b"1", b"2")
    delta, is_delta = delta_or_full(base, target, text=False)
    assert is_delta
    assert len(delta) < 40
    assert bytes(apply_delta(base, delta)) == target


@given(TEXTS, TEXTS, TEXTS, st.data())
def test_rearranged_text_comes_back(one: str, two: str, three: str, data: st.DataObject) -> None:
    """Pieces of the base in another order and number: copies from anywhere, cut anywhere."""
    base = "".join((one, two, three))
    cuts = st.integers(0, len(base))
    ranges = data.draw(st.lists(st.tuples(cuts, cuts), max_size=6))
    target = "-".join(base[min(pair) : max(pair)] * 2 for pair in ranges)
    old, new = base.encode(), target.encode()
    assert apply(old, make_delta(old, new)) == new


@given(DOCUMENTS, SCALARS, st.data())
def test_an_edited_document_comes_back(document: Any, value: Any, data: st.DataObject) -> None:
    """One value of a JSON document is replaced, wherever it is."""
    old = say(document)
    place: Any = document
    while isinstance(place, list | dict) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not place[key] or not isinstance(place[key], list | dict):
            place[key] = value
            break
        place = place[key]
    new = say(document)
    assert apply(old, make_delta(old, new)) == new


@pytest.mark.parametrize(
    ("base", "target", "delta"),
    [
        (b"", b"", b"0\n0;"),
        (TARGET, b"", b"0\n0;"),
        (b"", b"abc", b"3\n3:abc1XObC0;"),
        (TARGET, TARGET, b"X\nX@0,36GFxz;"),
    ],
    ids=["both empty", "empty target", "empty base", "identical"],
)
def test_edges(base: bytes, target: bytes, delta: bytes) -> None:
    """Without a base: one insert; without a target: no segment; without a change: one copy."""
    assert make_delta(base, target) == delta
    assert apply(base, delta) == target


@pytest.mark.parametrize("filler", ["", "0123456789" * 4], ids=["at the rim", "inside"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\u00e9", "\u00e8"),  # the first byte is common
        ("\u00e9", "\u0169"),  # the last byte is common
        ("\u20ac", "\u20ad"),  # the first two are
        ("\U0001f600", "\U0001f640"),  # the first two and the last are
        ("\u00e9", ""),
        ("", "\u20ac"),
    ],
)
def test_no_character_is_cut(old: str, new: str, filler: str) -> None:
    """Characters that share bytes are inserted whole, though the bytes around them match."""
    base = f"{filler}{old}{filler[::-1]}{old}{filler}".encode()
    target = f"{filler}{new}{filler[::-1]}{new}{filler}".encode()
    delta = make_delta(base, target)
    assert apply(base, delta) == target
    if filler and new:
        assert f":{new}" in delta.decode()


def test_one_value_of_many_costs_a_few_bytes() -> None:
    """16 KiB with one changed value are said in 40 bytes."""
    document = quotes(0, 300)
    old = say(document)
    document[150]["price"] = -1
    new = say(document)
    assert len(make_delta(old, new)) < 40
    assert apply(old, make_delta(old, new)) == new


def test_every_record_changed() -> None:
    """A changed value in each of many like records: a third of the text or less."""
    document = quotes(0, 100)
    old = say(document)
    for number, record in enumerate(document):
        record["price"] = number * 91 % 733 / 8
    new = say(document)
    assert len(make_delta(old, new)) < len(new) / 3
    assert apply(old, make_delta(old, new)) == new


def test_a_moved_window_is_copied() -> None:
    """Records that moved are found where they were: only the new ones are inserted."""
    old, new = say(quotes(0, 200)), say(quotes(5, 200))
    assert len(make_delta(old, new)) < len(say(quotes(200, 5)))
    assert apply(old, make_delta(old, new)) == new


def test_like_records_are_matched_in_step() -> None:
    """Where records differ in a few bytes, each match continues where the last one ended.

    Without that the delta is two to four times as large: every record is a copy of another.
    """
    chance = random.Random(3)
    records = [
        b'{"kind":"instrument-update","venue":"XNAS","id":%06d}' % chance.randrange(10**6)
        for _ in range(200)
    ]
    moved = records[40:140]
    moved[::7] = [record.replace(b"XNAS", b"ARCX") for record in moved[::7]]
    old = b"[%b]" % b",".join(records)
    new = b"[%b]" % b",".join([b"1", *moved, *records[150:], b"2"])
    assert len(make_delta(old, new)) < 500 < len(new) / 16
    assert apply(old, make_delta(old, new)) == new


def test_delta_or_full_takes_the_smaller() -> None:
    """The delta and True when it is smaller than the target, else the target and False."""
    assert delta_or_full(BASE, TARGET) == (make_delta(BASE, TARGET), True)
    assert delta_or_full(BASE, b"7") == (b"7", False)
    assert delta_or_full(b"", TARGET) == (TARGET, False)
    assert delta_or_full(b"x", b"") == (b"", False)


@given(TEXTS, TEXTS)
def test_delta_or_full_is_never_larger_than_full(base: str, target: str) -> None:
    """What is sent is at most as large as the target, and means the target."""
    old, new = base.encode(), target.encode()
    sent, is_delta = delta_or_full(old, new)
    assert len(sent) <= len(new)
    assert (apply(old, sent) if is_delta else sent) == new


@pytest.mark.parametrize(
    ("base", "target"),
    [
        (b"a" * 65_536, b"b" + b"a" * 65_534 + b"b"),
        (b"ab" * 32_768, b"aabababab" * 7_281),
        (b"a" * 65_536, b"aaaaaaaaaaaaaaaaab" * 3_640),
        ("\u20ac\u20ad".encode() * 10_000, "\u20ad\u20ac!".encode() * 9_000),
    ],
    ids=["shifted", "out of step", "short matches", "half characters"],
)
def test_repetitive_text_is_bounded_work(
    monkeypatch: pytest.MonkeyPatch, base: bytes, target: bytes
) -> None:
    """Where every block is in the base thousands of times, few of the places are tried."""
    tries = 0
    grow = fossil._grow

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        return grow(*args, **options)

    monkeypatch.setattr(fossil, "_grow", counted)
    assert apply(base, make_delta(base, target)) == target
    assert tries <= fossil._TRIES + fossil._NEAREST


def test_exhausted_tries_leave_an_insert(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tries run out, the rest is inserted and the delta is right all the same."""
    monkeypatch.setattr(fossil, "_TRIES", 1)
    blocks = [f"<block {number:09}>".encode() for number in range(8)]
    base, target = b"".join(blocks), b"".join(reversed(blocks))
    delta = make_delta(base, target)
    assert b"block" in delta
    assert apply(base, delta) == target


def test_unlike_text_is_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of a long text's blocks are indexed and looked up; the rest is inserted."""
    chance = random.Random(5)
    base, target = (bytes(chance.choices(b"abcdefgh", k=131_072)) for _ in range(2))
    sizes: list[int] = []
    index = fossil._index

    def counted(text: bytes, start: int) -> dict[bytes, list[int]]:
        sizes.append(len(found := index(text, start)))
        return found

    monkeypatch.setattr(fossil, "_index", counted)
    assert apply(base, make_delta(base, target)) == target
    assert sizes == [2_048]
    monkeypatch.setattr(fossil, "_LOOKUPS", 10)
    moved = b"#" * 16 + base[64:]
    assert apply(base, make_delta(base, moved)) == moved


@pytest.mark.parametrize("grown", ["base", "target"])
def test_long_texts_are_sent_whole(grown: str) -> None:
    """Up to 128 KiB a changed value costs a few bytes; above, the text is sent whole."""
    long = b'"%b"' % (b"x" * 131_070)
    changed = long.replace(b"xxx", b"abc", 1)
    assert delta_or_full(long, changed)[1]
    longer = b" " + long
    base, target = (longer, long) if grown == "base" else (long, longer)
    assert delta_or_full(base, target) == (target, False)
