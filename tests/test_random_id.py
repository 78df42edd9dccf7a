"""Random ids are UUIDs of version 4."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from repeater.random_id import random_id


def test_it_is_a_uuid_of_version_4() -> None:
    """The text is that of a UUID with the version and the variant of a random one."""
    for _ in range(100):
        text = random_id()
        parsed = UUID(text)
        assert str(parsed) == text
        assert parsed.version == 4
        assert parsed.variant == RFC_4122


def test_all_other_bits_are_random() -> None:
    """Of many ids no two are equal, and each of the other 122 bits is sometimes 0, sometimes 1."""
    ids = [UUID(random_id()).int for _ in range(200)]
    ones, zeros = 0, 0
    for one in ids:
        ones |= one
        zeros |= ~one
    fixed = 0xF << 76 | 0b11 << 62
    assert len(set(ids)) == len(ids)
    assert (ones & zeros) | fixed == 2**128 - 1
