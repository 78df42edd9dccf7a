"""What a server says when it is ready: where it listens, and loudly what is open."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from repeater import __version__
from repeater.config import Settings
from repeater.config.endpoints import Endpoint
from repeater.log import get_logger, say
from repeater.serving.extension import EXTENSION
from repeater.serving.python_version import safer_version

_log = get_logger("server")


def greet(settings: Settings, endpoints: Sequence[Endpoint], workers: int = 1) -> None:
    """Say what is where, and loudly what is open."""
    secure = "s" if settings.tls_cert is not None else ""
    prefix = settings.path_prefix
    bases = [
        f"{endpoint}" if endpoint.path else f"http{secure}://{endpoint}{prefix}"
        for endpoint in endpoints
    ]
    reachable = [endpoint for endpoint in endpoints if not endpoint.path]
    lines = [f"Repeater {__version__} is up on {' and '.join(bases)}"]
    if workers > 1:
        lines[0] += f", with {workers} workers"
    if reachable:
        address = f"{reachable[0]}{prefix}"
        base, socket_base = f"http{secure}://{address}", f"ws{secure}://{address}"
        lines[0] += (
            f"  (REST {base}/api/publish, WebSocket {socket_base}/ws?channel=..., "
            f"Centrifugo SDKs {socket_base}/connection/websocket, health {base}/health)"
        )
        if EXTENSION.is_on(settings):
            lines.append(EXTENSION.greeting(base))
    say(*lines)
    if notice := EXTENSION.notice(settings):
        _log.info(notice)
    if safer := safer_version():
        running = platform.python_version()
        _log.warning("this Python has known faults", running=running, least=safer)
    if settings.dev:
        _log.warning(
            "DEVELOPMENT MODE: anybody on this machine may publish and subscribe, without a key"
        )
    elif settings.api_key is None:
        _log.warning("no api_key: the REST API answers 401 to everybody")
