"""Why a drill cannot be made on this machine."""

from __future__ import annotations


class Missing(Exception):  # noqa: N818  # the fault is skipped
    """This machine lacks what the place needs."""
