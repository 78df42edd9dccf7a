"""Logging: structlog in front of the standard library's, so that a library user is in charge.

One line an event of a connection, never one a message. Unconfigured, only warnings show; the
command line configures the process's log.
"""

from __future__ import annotations

import logging
import sys
from typing import cast

import structlog


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module, below `repeater`."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(f"repeater.{name}"),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
                structlog.processors.format_exc_info,
                structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def configure_log(level: str) -> None:
    """Send the process's log to standard error from this level on. Called by the command line."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("repeater").setLevel(level.upper())
