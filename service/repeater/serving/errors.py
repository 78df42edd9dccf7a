"""Why a server ends that was not asked to: errors with one line for the user who started it."""

from __future__ import annotations

from repeater.errors import RepeaterError


class ServeError(RepeaterError):
    """The server cannot start; the text is one line for the user who started it."""


class WorkersError(RepeaterError):
    """Workers end again and again; the text is one line for the user who started the server."""
