"""A log line for each connection that comes or ends, and each refusal, up to a limit a second.

When ten thousand clients leave at once, one more line gives their number by code, and the log has
no ten thousand lines. A line says who and why, and never holds a token, a key or a header.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from repeater.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from repeater.causes import Why
    from repeater.clients.client import Client
    from repeater.errors import Disconnect

_log = get_logger("connections")
_stdlib = logging.getLogger("repeater.connections")

_WINDOW = 1.0  # seconds
_LONGEST: Final = 1_000
"""Characters of one text in a line about a refusal. Strangers name channels of 64 KiB: 20 such
lines a second, for each of a dozen causes, would fill a disk."""


class ConnectionLog:
    """Lives inside the node; the node's nursery ends its task, which then logs what is left."""

    def __init__(self, limit: int) -> None:
        """Write at most `limit` lines a second of each kind."""
        self.limit = limit
        self._lines = Counter[str]()
        self._untold_connects = 0
        self._untold_ends: Counter[int] = Counter()
        self._untold_warnings = Counter[str]()
        self._untold_refusals = Counter[str]()

    async def run(self) -> None:
        """Begin a new second every second, until cancelled."""
        try:
            while True:
                await trio.sleep(_WINDOW)
                self._end_window()
        finally:
            self._end_window()

    def connected(self, client: Client) -> None:
        """Log that a client is a subscriber from now on."""
        if not _stdlib.isEnabledFor(logging.INFO):
            return
        if self._within_limit("connects"):
            _log.info("connected", **_whose(client))
        else:
            self._untold_connects += 1

    def ended(self, client: Client, disconnect: Disconnect) -> None:
        """Log that a client has ended. Called while the transport still knows its peer."""
        if not _stdlib.isEnabledFor(logging.INFO):
            return
        if self._within_limit("ends"):
            _log.info(
                "disconnected",
                code=disconnect.code,
                reason=disconnect.reason,
                **_whose(client),
                seconds=round(client.age(), 3),
            )
        else:
            self._untold_ends[disconnect.code] += 1

    def refused(
        self,
        why: Why,
        what: str,
        client: Client | None,
        fields: Mapping[str, str | int | None],
    ) -> None:
        """Log a refusal; see `Refusals.note`. Each cause has a limit of its own."""
        if not _stdlib.isEnabledFor(logging.INFO):
            return
        if not self._within_limit(f"refused {why.cause}"):
            self._untold_refusals[why.cause.value] += 1
            return
        reason = {"cause": why.cause.value, "why": why.text, "mend": why.mend}
        said = {**reason, **fields, **({} if client is None else _whose(client))}
        _log.info("refused", what=what, **{name: _shown(one) for name, one in said.items() if one})

    def warn(self, what: str, client: Client | None, **fields: object) -> None:
        """Log what an operator should know of a client; `what` is one of few texts.

        None stands for a request that is not a client yet, whose `fields` say who it is.
        """
        if self._within_limit(what):
            _log.warning(what, **({} if client is None else _whose(client)), **fields)
        else:
            self._untold_warnings[what] += 1

    def _within_limit(self, kind: str) -> bool:
        self._lines[kind] += 1
        return self._lines[kind] <= self.limit

    def _end_window(self) -> None:
        self._lines.clear()
        if self._untold_connects:
            _log.info("and more connected", clients=self._untold_connects)
            self._untold_connects = 0
        if self._untold_ends:
            codes = {str(code): clients for code, clients in sorted(self._untold_ends.items())}
            _log.info("and more disconnected", clients=self._untold_ends.total(), codes=codes)
            self._untold_ends.clear()
        if self._untold_refusals:
            _log.info("and more refused", causes=dict(sorted(self._untold_refusals.items())))
            self._untold_refusals.clear()
        for what, times in self._untold_warnings.items():
            _log.warning(f"and more: {what}", times=times)
        self._untold_warnings.clear()


def _shown(value: str | int | None) -> str | int | None:
    return f"{value[:_LONGEST]}..." if isinstance(value, str) and len(value) > _LONGEST else value


def _whose(client: Client) -> dict[str, str]:
    """The fields that say who the client is. Unknown ones are left out."""
    known = {
        "user": client.user,
        "client": client.known_id,
        "address": client.transport.address(),
        "transport": client.transport.name,
        "protocol": client.transport.codec.name,
    }
    return {name: value for name, value in known.items() if value}
