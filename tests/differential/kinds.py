"""All kinds of deliberate differences, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.differential.calls import CALLS
from tests.differential.kind import Kind
from tests.differential.order import ORDER
from tests.differential.requests import REQUESTS
from tests.differential.streams import STREAMS
from tests.differential.subscriptions import SUBSCRIPTIONS

KINDS: Final[Sequence[Kind]] = (*ORDER, *STREAMS, *SUBSCRIPTIONS, *CALLS, *REQUESTS)
