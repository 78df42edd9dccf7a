"""The text of the schema `repeater`, and its version."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

VERSION: Final = 1
"""What this server works with; `repeater.settings` has the one that is there."""


def schema_text() -> str:
    """The statements that make the schema, for an empty database."""
    return files("repeater.postgres").joinpath("schema.sql").read_text(encoding="utf-8")
