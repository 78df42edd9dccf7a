"""Numbers for people, with no more digits than a measurement on a shared machine has."""

from __future__ import annotations

import math
from typing import Final

_DIGITS: Final = 3  # significant ones
_DECIMALS: Final = 3  # at most; in our units a third decimal is beyond what can be repeated


def number(value: float) -> str:
    """Write three significant digits, thousands with a comma: 0.012, 4.10, 56.0, 123,000."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    decimals = _DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # Rounding may have carried into the next power of ten: 9.999 is 10.0, not 10.00.
    decimals = _DIGITS - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{min(max(0, decimals), _DECIMALS)}f}"


def spread(low: float, high: float) -> str:
    """Write the least and the most of the rounds; empty if both look the same."""
    texts = number(low), number(high)
    return "" if texts[0] == texts[1] else "–".join(texts)  # noqa: RUF001 (a range)


def change(factor: float) -> str:
    """Write a factor as a change: +12.3 %, or 2.50 x from the double on."""
    if factor >= 2:
        return f"{number(factor)} x"
    return f"{factor - 1:+.1%}".replace("%", " %")
