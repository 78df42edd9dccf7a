"""A plugin of pytest for a suite: runs a part of its tests, and counts which reach our server.

The server's own counters say so, before and after each test. A test that reaches nothing has a fake
server of its suite, or none. The environment says which part, and where the counts go.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

METRICS = "http://127.0.0.1:8000/metrics"
_COUNTERS = re.compile(
    r"^(?:repeater_connections_opened_total|repeater_api_requests_total) (\d+)", re.MULTILINE
)

_tests: dict[str, int] = {}
"""By test: the clients and API requests that came meanwhile."""


def count() -> int:
    """The clients and API requests that have come to the server so far."""
    with urllib.request.urlopen(METRICS, timeout=20) as answer:
        counts = _COUNTERS.findall(answer.read().decode())
    assert len(counts) == 2, "the server has other metrics"
    return sum(map(int, counts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep every n-th test, from the one on that the part's number says."""
    number, parts = map(int, os.environ["SUITE_PART"].split("/"))
    items[:] = items[number::parts]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Set-up and tear-down belong to the test."""
    before = count()
    result = yield
    _tests[item.nodeid] = count() - before
    return result


def pytest_sessionfinish() -> None:
    """Say what was counted."""
    Path(os.environ["SUITE_COUNTS"]).write_text(json.dumps(_tests))
