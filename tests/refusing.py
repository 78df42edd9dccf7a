"""What the tests of refusals share: the lines of the log about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from repeater.errors import Disconnect


class RefusedLines:
    """The lines `refused` of a test's log, without time and level."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log

    def all(self) -> list[str]:
        """Every line so far, in its order."""
        lines = (one.getMessage() for one in self._log.records if "connections" in one.name)
        told = (re.sub(r"^[0-9:]+ \[info *\] ", "", line) for line in lines)
        return [line for line in told if line.startswith(("refused", "and more refused"))]

    def one(self) -> str:
        """The only line; a refusal leaves exactly one."""
        (line,) = self.all()
        return line


def usual(end: Disconnect | None) -> Disconnect | None:
    """An end as it is in production, without the reason that development mode adds."""
    if end is None:
        return None
    return Disconnect(end.code, end.reason.partition(": ")[0])


def usual_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """An error of a reply as it is in production."""
    return {**error, "message": error["message"].partition(": ")[0]}
