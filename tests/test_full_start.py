"""A server starts on a disk that is full: its readers need it all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from repeater.brokers.sqlite.lock import hold_folder
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.options import ChannelOptions
from tests.drill.disks import fill, small_memory_disk
from tests.drill.missing import Missing
from tests.histories import dump, killed

OPTIONS = ChannelOptions(history_size=100, history_ttl=1e9)


async def test_a_durable_broker_starts_on_a_full_disk(tmp_path: Path) -> None:
    """The room that was held for this lets the start be noted; what a kill left is there."""
    try:
        with small_memory_disk(tmp_path) as place:
            assert place.disk is not None
            folder = place.disk / "data"
            folder.mkdir(mode=0o700)
            with hold_folder(folder):  # as the server that was killed
                path = killed(folder)
            with (place.disk / "ballast").open("wb", buffering=0) as file:
                fill(file)
            async with open_sqlite_broker(folder) as broker:
                assert len(broker.history("c3", OPTIONS)[0]) == 5
            assert ("clean", "1") in dump(path)["meta"]
    except Missing as why:
        pytest.skip(str(why))
