"""The summary of a run says how many tests of each suite have reached our server."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each suite that ran."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "suite" and report.when == "call":
                terminalreporter.write_line(str(value))
