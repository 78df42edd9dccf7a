"""What a server says of itself at `/metrics`."""

from __future__ import annotations

import re
import urllib.request
from typing import Final

_PATIENCE: Final = 10.0  # seconds
_SERIES: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_WORKER: Final = re.compile(r'worker="([^"]*)"')


def scrape(port: int) -> str:
    """Return the text of `/metrics`, on a connection of its own."""
    address = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(address, timeout=_PATIENCE) as answer:
        text: bytes = answer.read()
    return text.decode()


def by_worker(text: str, name: str) -> dict[str, float]:
    """Return the sum of a metric's series for each worker; a single process is the worker ""."""
    found = dict[str, float]()
    for series, labels, value in _SERIES.findall(text):
        if series == name:
            worker = _WORKER.search(labels)
            key = worker[1] if worker else ""
            found[key] = found.get(key, 0.0) + float(value)
    return found
