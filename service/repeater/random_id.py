"""Random UUIDs: the ids of connections and sessions."""

from __future__ import annotations

from os import urandom
from typing import Final

_BYTES: Final = 16
# RFC 9562, section 5.4: the version is 4, and the variant's two bits are 10.
_VARIANT: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def random_id() -> str:
    """Return the text of a new random UUID: `str(uuid4())` at a quarter of its cost.

    A connection makes one or two, and the object that `uuid4` makes is of no use. The bits are the
    operating system's, so nobody can guess the id.
    """
    digits = urandom(_BYTES).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}"
        f"-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"
    )
