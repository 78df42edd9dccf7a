"""What a worker makes of the settings of all workers."""

from __future__ import annotations

import pytest

from repeater.config import load_settings
from repeater.serving.worker import _share

LIMITS = {"connections": 10, "connection_rate": 5, "connections_per_address": 7}


@pytest.mark.parametrize("engine", ["memory", "valkey"])
def test_limits_of_workers(engine: str) -> None:
    """Over a supervisor they hold for all; nodes of a shared engine divide what is counted."""
    url = "valkey://host" if engine == "valkey" else ""
    settings = load_settings(engine=engine, engine_url=url, node_name="web", limits=LIMITS)
    shares = [_share(settings, number, 4) for number in (1, 2)]
    names = [one.node for one in shares]
    limits = [one.node_options().limits for one in shares]
    found = {(one.connections, one.connection_rate) for one in limits}
    if engine == "valkey":
        assert names == ["web-1", "web-2"]
        assert found == {(3, 2)}
    else:
        assert names == ["web", "web"]
        assert found == {(10, 5)}
    assert {one.connections_per_address for one in limits} == {7}
    assert {one.connection_burst for one in limits} == {0}


def test_the_log_is_divided() -> None:
    """Whichever the engine is: they write into one."""
    settings = load_settings(connection_log_limit=10)
    lines = [
        _share(settings, number, 3).node_options().connection_log_limit for number in (1, 2, 3)
    ]
    assert lines == [4, 3, 3]
