"""What a fault under full load can lay hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.drill.load import Traffic
from tests.drill.offsets import Offsets
from tests.drill.target import Target
from tests.drill.workers import Workers


@dataclass
class LoadedScene:
    """One server under full load, for as long as its drill lasts."""

    rng: Random
    target: Target
    traffic: Traffic
    offsets: Offsets
    channels: Sequence[str]
    data: Path
    """The server's `data_dir`."""
    workers: Workers
    """The server's workers."""
