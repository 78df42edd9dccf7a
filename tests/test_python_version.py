"""The least safe versions of Python: stated on one page, and in one line at the start."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from repeater.serving.python_version import safer_version
from tests.processes import serving, starts_processes

PAGE = Path(__file__).parent.parent / "docs/security.md"


@pytest.mark.parametrize(
    ("running", "safer"),
    [
        ((3, 11, 0), "3.11.10"),
        ((3, 11, 9), "3.11.10"),
        ((3, 11, 10), ""),
        ((3, 12, 5), "3.12.6"),
        ((3, 12, 6), ""),
        ((3, 13, 0), ""),
        ((3, 14, 2), ""),
    ],
)
def test_the_least_safe_versions(running: tuple[int, int, int], safer: str) -> None:
    """Each series has its own, and the page names it."""
    assert safer_version(running) == safer
    if safer:
        assert f"| {safer} |" in PAGE.read_text(encoding="utf-8")


@starts_processes
async def test_the_start_says_so() -> None:
    """One line of log on an older Python, and none on a safe one."""
    async with serving("--dev", "--no-comments") as server:
        await server.line("DEVELOPMENT MODE")
    lines = [line for line in server.log.decode().splitlines() if "known faults" in line]
    assert len(lines) == bool(safer_version(sys.version_info[:3]))
    assert all(platform.python_version() in line for line in lines)
