"""What a fault under full load can lay hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.drill.crews import Crew
from tests.drill.load import Traffic
from tests.drill.offsets import Offsets
from tests.drill.target import Target


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
    crew: Crew
    """The server's workers."""
