"""Logging: structlog in front of the standard library's, so that a library user is in charge.

Events of a connection have one line each; messages have none. Without configuration only warnings
are shown, as text. The command line configures the process's log, with other libraries' lines.
Tracebacks are text without the variables' values, since these values may be secrets.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, cast

import structlog
from structlog.typing import Processor, WrappedLogger

from repeater import log_output

LogFormat = Literal["console", "json"]

_LINE: Final = 4_096
"""Bytes that one write to a pipe takes as a whole (PIPE_BUF of Linux): lines of several processes
that are not longer do not mix."""


class _Shared:
    """Whether other processes write to the same log, and which of them this process is."""

    is_shared = False
    worker: int | None = None


_shared: Final = _Shared()


def share_log(worker: int | None) -> None:
    """Have each entry of the log in one write of at most 4 KiB, as other processes write to it too.

    For the command line, before `configure_log`. Long texts of an entry are cut.

    Args:
        worker: Is named in each entry; None for the supervisor.
    """
    _shared.is_shared = True
    _shared.worker = worker


def _renderer(step: Processor) -> Processor:
    return _within_a_write(step) if _shared.is_shared else step


def _within_a_write(render: Processor) -> Processor:
    """The renderer, and its entry rendered again with shorter texts as long as it is too long."""

    def rendered(logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> str:
        if _shared.worker is not None:
            event["worker"] = _shared.worker
        line, longest = str(render(logger, method, dict(event))), _LINE
        while len(line.encode(errors="backslashreplace")) >= _LINE and longest:
            longest //= 2
            shorter = {name: _shortened(name, one, longest) for name, one in event.items()}
            line = str(render(logger, method, shorter))
        return line

    return rendered


def _shortened(name: str, value: Any, longest: int) -> Any:
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= longest:
        return value
    # The end of a traceback says most.
    return f"...{text[-longest:]}" if name == "exception" else f"{text[:longest]}..."


def _printable(
    _logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape texts that would end the line or control the terminal: users choose their own ids."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable() and name != "exception":
            event[name] = repr(value)
    return event


def _console() -> tuple[Processor, ...]:
    return (
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.processors.format_exc_info,
        _printable,
        _renderer(
            structlog.dev.ConsoleRenderer(colors=_is_terminal(), pad_event_to=0, sort_keys=False)
        ),
    )


def _is_terminal() -> bool:
    """Whether standard error is a terminal; it may be missing or closed."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):
        return False


def _json() -> tuple[Processor, ...]:
    return (
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        _renderer(structlog.processors.JSONRenderer()),
    )


class _LastStep:
    """The last processor of every logger here; `configure_log` exchanges its steps as a whole."""

    def __init__(self) -> None:
        self.processors = _console()

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, Any]) -> Any:
        made: Any = event
        for processor in self.processors:
            made = processor(logger, method, made)
        return made


_last_step: Final = _LastStep()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module, below `repeater`."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(f"repeater.{name}"),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.add_log_level,
                _last_step,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def configure_log(level: str, form: LogFormat = "console") -> None:
    """Write the process's log to standard error, from this level on and in this form.

    The command line calls it at the start, and again when it reads the configuration again.
    """
    _last_step.processors = (structlog.stdlib.ProcessorFormatter.wrap_for_formatter,)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[
            *((structlog.stdlib.add_logger_name,) if form == "json" else ()),
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_json() if form == "json" else _console()),
        ],
        foreign_pre_chain=[structlog.stdlib.add_log_level],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("repeater").setLevel(level.upper())


def open_log_output() -> None:
    """Have a thread write the process's log; for the command line, before `configure_log`.

    Afterwards nothing that is written to standard error waits, fails or stops the process; see
    `repeater/log_output.py`.
    """
    log_output.open_log_output(_tell_lost)


def _tell_lost(lines: int) -> None:
    reason = "standard error could not be written, or not as fast"
    _log.error("lines of the log were lost", lines=lines, reason=reason)


def say(*lines: str) -> None:
    """Write lines to standard error, outside the log. Lost if standard error fails."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(*lines, sep="\n", file=sys.stderr, flush=True)


_log: Final = get_logger("log")
