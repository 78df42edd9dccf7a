"""Counters that forget what they count none of, so that they are as large as what there is now."""

from __future__ import annotations

from collections import Counter


def subtract(counter: Counter[str], key: str, count: int = 1) -> None:
    """Lower a count, and forget it at zero."""
    counter[key] -= count
    if not counter[key]:
        del counter[key]
