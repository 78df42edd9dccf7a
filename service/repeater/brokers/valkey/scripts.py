"""The scripts of streams. Each says in its text what it takes and what it answers."""

from __future__ import annotations

from typing import Final

from repeater.valkey.script import packaged_script

PUBLISH: Final = packaged_script(__package__, "publish")
HISTORY: Final = packaged_script(__package__, "history")
FORK: Final = packaged_script(__package__, "fork")
