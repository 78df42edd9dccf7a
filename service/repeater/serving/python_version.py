"""The least safe versions of Python (docs/security.md)."""

from __future__ import annotations

import sys
from typing import Final

_Version = tuple[int, int, int]

# CVE-2024-7592 (quadratic cookies), CVE-2024-6232 and CVE-2024-6923 are corrected in these.
_LEAST: Final[tuple[_Version, ...]] = ((3, 11, 10), (3, 12, 6), (3, 13, 0))


def safer_version(running: _Version = sys.version_info[:3]) -> str:
    """The least safe version in place of an older one of the same series; else empty."""
    for least in _LEAST:
        if running[:2] == least[:2] and running < least:
            return ".".join(map(str, least))
    return ""
