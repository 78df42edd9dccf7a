"""Sockets that were open when the process began: systemd's socket activation (sd_listen_fds)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

_FIRST: Final = 3  # as sd_listen_fds(3) has it


def inherited_descriptors() -> Sequence[int]:
    """The descriptors of the listening sockets that were passed to this process; maybe empty."""
    count, process = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return ()
    return range(_FIRST, _FIRST + int(count))
