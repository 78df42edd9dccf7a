"""The scripts of streams. Each says in its text what it takes and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_urlsafe
from typing import Final

from repeater.valkey.script import packaged_script

NewEpoch = Callable[[], str]
"""Makes the epoch of streams that begin now, as scripts take it."""


def new_epoch() -> str:
    """An epoch that no stream has had: 48 random bits."""
    return token_urlsafe(6)


def new_epoch_of_primary() -> str:
    """One for this primary alone: under another one, streams begin anew (`strict`)."""
    return f"!{new_epoch()}"


PUBLISH: Final = packaged_script(__package__, "publish")
HISTORY: Final = packaged_script(__package__, "history")
FORK: Final = packaged_script(__package__, "fork")
RENEW: Final = packaged_script(__package__, "renew")
