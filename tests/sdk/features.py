"""What the server cannot do yet, in one place.

A scenario marked `@pytest.mark.needs("history")` is left out while its feature is named here. A
name leaves the set in the commit that makes it work.
"""

from __future__ import annotations

from typing import Final

PENDING: Final[frozenset[str]] = frozenset()
