"""Mistakes in a configuration, in words for the person who wrote it."""

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
    """A setting that contradicts another setting, or cannot be used."""

    path: tuple[str, ...]
    """The path of the setting: `("channel", "history_size")`."""

    text: str


class MistakesError(ValueError):
    """Several mistakes at once, since a pydantic validator can raise only one exception."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(f"{'.'.join(path)}: {text}" for path, text in self.mistakes))
