"""Tags filters: what is a filter, and which tags it wants."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.protocol.centrifugo import filters
from repeater.protocol.centrifugo.filters import TagsFilter, check_filter, compile_filter, matches

KEYS = st.sampled_from(["env", "region", "price"])
VALUES = st.sampled_from(["eu", "us", "u", "prod", "1", "10", "9.5", "-3", "+1.0", "1e3", "NaN"])
NUMBERS = st.sampled_from(["1", "10", "9.5", "-3", "+1.0", "0.1000000000000000001"])
TAGS = st.dictionaries(KEYS, VALUES | NUMBERS | st.just(""))

COMPARISONS = st.one_of(
    st.builds(
        TagsFilter,
        key=KEYS,
        cmp=st.sampled_from(["eq", "neq", "sw", "ew", "ct"]),
        val=VALUES,
    ),
    st.builds(
        TagsFilter,
        key=KEYS,
        cmp=st.sampled_from(["in", "nin"]),
        vals=st.lists(VALUES | st.just(""), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(TagsFilter, key=KEYS, cmp=st.sampled_from(["ex", "nex"])),
    st.builds(TagsFilter, key=KEYS, cmp=st.sampled_from(["lt", "lte", "gt", "gte"]), val=NUMBERS),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(
            TagsFilter,
            op=st.sampled_from(["and", "or"]),
            nodes=st.lists(inner, min_size=1, max_size=4).map(tuple),
        )
        | st.builds(TagsFilter, op=st.just("not"), nodes=st.tuples(inner))
    ),
    max_leaves=12,
)


def eq(key: str, val: str) -> TagsFilter:
    return TagsFilter(key=key, cmp="eq", val=val)


def negate(node: TagsFilter) -> TagsFilter:
    return TagsFilter(op="not", nodes=(node,))


def decimal(text: str) -> Decimal | None:
    """A number the way Centrifugo reads one: no exponent, no infinity, no bare point."""
    if not text.strip("+-0123456789.") and text[:1] != "." and text[-1:].isdigit():
        try:
            return Decimal(text)
        except InvalidOperation:
            return None
    return None


def wants(node: TagsFilter, tags: Mapping[str, str]) -> bool:
    """The semantics, written plainly."""
    if node.op == "and":
        return all(wants(child, tags) for child in node.nodes)
    if node.op == "or":
        return any(wants(child, tags) for child in node.nodes)
    if node.op == "not":
        return not wants(node.nodes[0], tags)
    present, tag = node.key in tags, tags.get(node.key, "")
    number, bound = decimal(tag), decimal(node.val)
    return {
        "ex": present,
        "nex": not present,
        "eq": present and tag == node.val,
        "neq": not present or tag != node.val,
        "in": tag in node.vals,
        "nin": tag not in node.vals,
        "sw": present and tag[: len(node.val)] == node.val,
        "ew": present and tag[-len(node.val) :] == node.val,
        "ct": present and tag.find(node.val) >= 0,
        "lt": number is not None and bound is not None and number < bound,
        "lte": number is not None and bound is not None and number <= bound,
        "gt": number is not None and bound is not None and number > bound,
        "gte": number is not None and bound is not None and number >= bound,
    }[node.cmp]


@given(FILTERS, TAGS)
def test_evaluation_is_the_plain_semantics(node: TagsFilter, tags: dict[str, str]) -> None:
    """A valid filter passes the check, and both ways to evaluate it agree with the reference."""
    check_filter(node)
    assert compile_filter(node)(tags) is wants(node, tags)
    assert matches(node, tags) is wants(node, tags)


@given(st.lists(FILTERS, min_size=1, max_size=3), TAGS)
def test_de_morgan(nodes: list[TagsFilter], tags: dict[str, str]) -> None:
    """Not all is some not; not any is all not."""
    negated = tuple(negate(node) for node in nodes)
    for op, dual in (("and", "or"), ("or", "and")):
        whole = negate(TagsFilter(op=op, nodes=tuple(nodes)))
        assert matches(whole, tags) is matches(TagsFilter(op=dual, nodes=negated), tags)


@pytest.mark.parametrize(
    ("cmp", "wanted"),
    [
        ("eq", False), ("neq", True), ("in", False), ("nin", True), ("ex", False),
        ("nex", True), ("sw", False), ("ew", False), ("ct", False),
        ("lt", False), ("lte", False), ("gt", False), ("gte", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tags", [None, {}, {"other": "1"}])
def test_a_missing_tag(cmp: str, wanted: bool, tags: dict[str, str] | None) -> None:
    """Only `neq`, `nin` and `nex` want a publication without the tag, or without any tags."""
    several = cmp in ("in", "nin")
    val = "" if several or cmp in ("ex", "nex") else "1"
    node = TagsFilter(key="k", cmp=cmp, val=val, vals=("1", "2") if several else ())
    check_filter(node)
    assert matches(node, tags) is wanted


def test_a_missing_tag_is_an_empty_one_to_lists() -> None:
    """`in` with an empty text among its values wants a publication without the tag, as upstream."""
    node = TagsFilter(key="k", cmp="in", vals=("", "a"))
    check_filter(node)
    assert matches(node, {})
    assert not matches(TagsFilter(key="k", cmp="nin", vals=("", "a")), {})


@pytest.mark.parametrize(
    ("cmp", "tag", "wanted"),
    [
        ("gt", "100", True), ("gt", "42", False), ("gt", "9", False), ("gte", "42.0", True),
        ("gte", "41.9999999999999999999", False), ("lt", "41.9999999999999999999", True),
        ("lt", "-100", True), ("lte", "+42", True), ("lte", "042", True), ("gt", "1e3", False),
        ("gt", "inf", False), ("lt", "NaN", False), ("lt", "", False), ("lt", " 1", False),
        ("lt", "1_0", False), ("lt", ".5", False), ("lt", "5.", False), ("lt", "1\n", False),
        ("lt", "\u0661", False), ("lt", "0.00000000000000000001", False),
        ("gt", "9" * 200, True), ("gt", "9" * 201, False),
    ],
)  # fmt: skip
def test_numbers(cmp: str, tag: str, wanted: bool) -> None:
    """Numbers are exact decimals; any other tag is neither below nor above 42."""
    node = TagsFilter(key="k", cmp=cmp, val="42")
    check_filter(node)
    assert matches(node, {"k": tag}) is wanted


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (TagsFilter(), "unknown cmp"),
        (TagsFilter(key="k", cmp="like", val="v"), "unknown cmp"),
        (TagsFilter(op="xor", nodes=(eq("k", "v"),)), "unknown op"),
        (eq("", "v"), "eq needs a key"),
        (TagsFilter(cmp="in", vals=("v",)), "in needs a key"),
        (eq("k", ""), "eq needs val and takes no vals"),
        (TagsFilter(key="k", cmp="eq", vals=("v",)), "eq needs val and takes no vals"),
        (TagsFilter(key="k", cmp="sw", val="v", vals=("v",)), "sw needs val and takes no vals"),
        (TagsFilter(key="k", cmp="in"), "in needs vals and takes no val"),
        (TagsFilter(key="k", cmp="in", val="v"), "in needs vals and takes no val"),
        (TagsFilter(key="k", cmp="nin", val="v", vals=("v",)), "nin needs vals and takes no val"),
        (TagsFilter(key="k", cmp="ex", val="v"), "ex takes neither val nor vals"),
        (TagsFilter(key="k", cmp="nex", vals=("v",)), "nex takes neither val nor vals"),
        (TagsFilter(key="k", cmp="gt", val="many"), "gt needs a number"),
        (TagsFilter(key="k", cmp="lte", val="1e3"), "lte needs a number"),
        (TagsFilter(key="k", cmp="eq", val="v", nodes=(eq("k", "v"),)), "a comparison has no"),
        (TagsFilter(op="and"), "and needs nodes"),
        (TagsFilter(op="or"), "or needs nodes"),
        (TagsFilter(op="not"), "not needs exactly one node"),
        (TagsFilter(op="not", nodes=(eq("k", "v"), eq("k", "w"))), "not needs exactly one node"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["at the top", "within"])
def test_malformed_filters(node: TagsFilter, reason: str, wrapped: bool) -> None:
    """A malformed filter is refused with the reason, at any depth."""
    whole = TagsFilter(op="or", nodes=(eq("k", "v"), negate(node))) if wrapped else node
    with pytest.raises(ValueError, match=f"^{reason}"):
        check_filter(whole)


@pytest.mark.parametrize("cmp", ["ex", "nex"])
def test_presence_of_an_empty_key(cmp: str) -> None:
    """The presence comparisons take an empty key, as upstream; a tag may be called so."""
    node = TagsFilter(cmp=cmp)
    check_filter(node)
    assert matches(node, {"": "v"}) is (cmp == "ex")


def test_depth_limit() -> None:
    """16 levels pass, 17 do not."""
    node = eq("k", "v")
    for _ in range(15):
        node = negate(node)
    check_filter(node)
    with pytest.raises(ValueError, match="deeper than 16 levels"):
        check_filter(negate(node))


def test_node_limit() -> None:
    """256 nodes pass, 257 do not."""
    check_filter(TagsFilter(op="or", nodes=(eq("k", "v"),) * 255))
    with pytest.raises(ValueError, match="more than 256 nodes"):
        check_filter(TagsFilter(op="or", nodes=(eq("k", "v"),) * 256))


def test_vals_limit() -> None:
    """A list has 64 texts and no more."""
    vals = tuple(map(str, range(65)))
    check_filter(TagsFilter(key="k", cmp="in", vals=vals[:64]))
    with pytest.raises(ValueError, match="at most 64 vals"):
        check_filter(TagsFilter(key="k", cmp="nin", vals=vals))


@pytest.mark.parametrize("big", [eq("k" * 3_000, "v" * 1_096), eq("k", "\u20ac" * 1_365)])
def test_text_limit(big: TagsFilter) -> None:
    """All keys and values together have 4 KiB, in UTF-8, and no more."""
    check_filter(big)
    with pytest.raises(ValueError, match="more than 4096 bytes"):
        check_filter(TagsFilter(op="and", nodes=(big, eq("kk", "v"))))


def test_a_number_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many filters and nodes compare a tag, it is read as a number once."""
    parsed: list[str] = []
    number = filters._number.__wrapped__

    @lru_cache
    def counted(text: str) -> Decimal | None:
        parsed.append(text)
        return number(text)

    monkeypatch.setattr(filters, "_number", counted)
    nodes = tuple(TagsFilter(key="price", cmp="lt", val=str(bound)) for bound in range(100))
    tests = [compile_filter(TagsFilter(op="or", nodes=nodes[first:])) for first in range(50)]
    assert not any(test({"price": "1" * 150}) for test in tests)
    assert parsed == ["1" * 150]
    assert not tests[0]({"price": "1" * 201})
    assert len(parsed) == 1


def test_the_json_of_an_sdk() -> None:
    """What an SDK sends is decoded, unknown fields included, and equal filters are one group."""
    sent = (
        b'{"op":"or","nodes":[{"op":"and","nodes":[{"key":"env","cmp":"eq","val":"prod"},'
        b'{"key":"region","cmp":"in","vals":["us","eu"]}]},'
        b'{"op":"not","nodes":[{"key":"debug","cmp":"ex","note":1}]}]}'
    )
    one, other = (msgspec.json.decode(sent, type=TagsFilter) for _ in range(2))
    check_filter(one)
    assert len({one, other}) == 1
    assert matches(one, {"env": "prod", "region": "eu", "debug": "1"})
    assert matches(one, {})
    assert not matches(one, {"env": "prod", "region": "asia", "debug": "1"})
