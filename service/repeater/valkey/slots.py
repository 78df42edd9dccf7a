"""Partitions of a cluster: 128 of them, spread evenly over its 16,384 slots.

All keys of a partition have its tag in braces, so they are in one slot, and a script may use them
together. The tags are the same for all nodes and versions of Repeater: they are part of the names
of the keys.
"""

from __future__ import annotations

from binascii import crc_hqx
from contextlib import suppress
from functools import cache
from itertools import product
from typing import Final
from zlib import crc32

from repeater.valkey.url import Address

PARTITIONS: Final = 128
"""How many: enough for an even share of each of 12 primaries (10 or 11)."""

SLOTS: Final = 16_384
"""How many slots every cluster has."""

_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def slot_of(tag: str) -> int:
    """The slot of all keys with this tag in braces."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def partition_of(channel: str) -> int:
    """The partition of a channel."""
    return crc32(channel.encode()) % PARTITIONS


@cache
def tags() -> tuple[str, ...]:
    """The tag of each partition: the first text whose slot is in the middle of its share.

    Takes some 50 ms, once.
    """
    wanted = {(2 * number + 1) * SLOTS // (2 * PARTITIONS): number for number in range(PARTITIONS)}
    found = [""] * PARTITIONS
    for size in (1, 2, 3):
        for letters in product(_LETTERS, repeat=size):
            tag = "".join(letters)
            number = wanted.pop(slot_of(tag), None)
            if number is not None:
                found[number] = tag
    assert not wanted
    return tuple(found)


def owners_of(answer: object, asked: Address) -> list[Address | None]:
    """Read the answer to CLUSTER SLOTS: the primary of each partition, None where there is none.

    Args:
        answer: What the server said.
        asked: The server; an answer without a host means this one's.
    """
    owners: list[Address | None] = [None] * PARTITIONS
    slots = [slot_of(tag) for tag in tags()]
    for row in answer[:SLOTS] if isinstance(answer, list) else ():
        match row:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_]:
                owner = Address(host.decode(errors="replace") if host else asked.host, port)
                for number, slot in enumerate(slots):
                    if first <= slot <= last:
                        owners[number] = owner
    return owners


def target_of(text: str, asked: Address) -> Address | None:
    """Where a MOVED or an ASK points to: `MOVED <slot> <host>:<port>`; None if it says nothing."""
    with suppress(ValueError):
        _code, _slot, endpoint = text.split(" ")[:3]
        host, _, port = endpoint.rpartition(":")
        return Address(host.strip("[]") or asked.host, int(port))
    return None
