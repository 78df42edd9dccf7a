"""What is wrong with a configuration, in words for whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from repeater.errors import RepeaterError


class ConfigError(RepeaterError):
    """The configuration is wrong; the text is one line for each mistake, without values."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Mistake(NamedTuple):
    """One setting that does not go with another."""

    path: tuple[str, ...]
    """Where it is: `("channel", "history_size")`."""

    text: str


class MistakesError(ValueError):
    """Several at once, from inside a pydantic validator, which may raise but once."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{'.'.join(path)}: {text}" for path, text in self.mistakes))
