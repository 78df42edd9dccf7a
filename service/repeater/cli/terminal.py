"""What comes from a server or its publishers, before it is written to somebody's terminal."""

from __future__ import annotations

import re
from typing import Final

# C0, DEL and C1, which control a terminal; marks that turn the direction of the text around them;
# separators of lines; and surrogates, which no terminal can be sent.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with JSON's escapes in place of its control characters; JSON keeps its meaning."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
