"""The partitions of a cluster: their tags, their slots, and who has them."""

from __future__ import annotations

from collections import Counter

import pytest

from repeater.valkey.slots import (
    PARTITIONS,
    SLOTS,
    owners_of,
    partition_of,
    slot_of,
    tags,
    target_of,
)
from repeater.valkey.url import Address

HERE = Address("127.0.0.1", 7000)


def test_the_tags_are_those_of_all_versions() -> None:
    """Tags and hash are in the names of keys: another version must find the same ones."""
    assert (tags()[0], tags()[1], tags()[127]) == ("5n3", "d5m", "45c")
    assert [partition_of(channel) for channel in ("news", "chat:1", "ü")] == [80, 114, 85]


def test_slots_are_those_of_the_servers() -> None:
    """The example of the cluster specification: CRC16 of 123456789 is 0x31C3."""
    assert slot_of("123456789") == 0x31C3


@pytest.mark.parametrize("primaries", [1, 2, 3, 5, 6, 12])
def test_partitions_are_spread_evenly(primaries: int) -> None:
    """Each primary with an equal share of slots has an equal share of partitions, within one."""
    shares = Counter(slot_of(tag) * primaries // SLOTS for tag in tags())
    assert len(set(tags())) == PARTITIONS
    assert max(shares.values()) - min(shares.values()) <= 1


def test_owners_are_read_from_the_layout() -> None:
    """A primary without a host is the server that was asked; slots of nobody have no owner."""
    rows = [
        [0, 8191, [b"10.0.0.1", 6379, b"id", []], [b"10.0.0.9", 6379, b"replica", []]],
        [8192, 12287, [None, 7000, b"id", []]],
    ]
    owners = owners_of(rows, HERE)
    assert Counter(owners) == {Address("10.0.0.1", 6379): 64, HERE: 32, None: 32}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"OK",
        5,
        [[0]],
        [[0, 1, None]],
        [[0, 1, []]],
        [[0, 1, {}]],
        [[0, 1, [b"c", float("inf")]]],
        [["a", "b", [b"c", 1]]],
        [[16_384, 10**15, [b"c", 1]]],
    ],
)
def test_a_layout_that_cannot_be_read_names_nobody(answer: object) -> None:
    """Nothing that a server answers makes the client fail."""
    assert set(owners_of(answer, HERE)) == {None}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("MOVED 3999 10.0.0.1:6381", Address("10.0.0.1", 6381)),
        ("ASK 3999 ::1:6381", Address("::1", 6381)),
        ("MOVED 3999 :6381", Address("127.0.0.1", 6381)),
        ("MOVED 3999", None),
        ("MOVED 3999 host:port", None),
    ],
)
def test_where_a_refusal_points_to(text: str, target: Address | None) -> None:
    """An address without a host is on the host of the server that said so."""
    assert target_of(text, HERE) == target
