"""What is written to somebody's terminal: text from elsewhere, and errors inside groups."""

from __future__ import annotations

import re
from typing import Final, NoReturn

import click

# C0, DEL and C1, which control a terminal; marks that turn the direction of the text around them;
# separators of lines; and surrogates, which no terminal can be sent.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with JSON's escapes in place of its control characters; JSON keeps its meaning."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def explain(
    group: BaseExceptionGroup[BaseException],
    kind: type[Exception] | tuple[type[Exception], ...],
) -> NoReturn:
    """Exit with one line if the group has an error that the user can mend; else raise the group.

    Nurseries wrap such an error in exception groups.
    """
    found = group.subgroup(kind)
    if found is None:
        raise group
    error: BaseException = found
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise click.ClickException(visible(str(error))) from None
