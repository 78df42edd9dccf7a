"""The broker of several nodes: numbers and history in Valkey or Redis, events by its bus."""

from __future__ import annotations

from functools import partial
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Final

import trio

from repeater.brokers.contract import BrokerStatistics
from repeater.brokers.receipts import Receipt
from repeater.brokers.valkey.bus import Bus
from repeater.brokers.valkey.envelope import Uids, opened, received, sealed
from repeater.brokers.valkey.follower import Message, Place, Read
from repeater.brokers.valkey.holds import Holds
from repeater.brokers.valkey.keys import Keys
from repeater.brokers.valkey.lanes import Lanes, Submission
from repeater.brokers.valkey.repairs import ENTRIES, Repairs
from repeater.brokers.valkey.scripts import FORK, HISTORY
from repeater.brokers.window import Window
from repeater.errors import BrokerError
from repeater.log import get_logger
from repeater.publication import StreamPosition, weight_of
from repeater.valkey.pipe import Lost, Refused, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.brokers.contract import EventSink, Outcome, Page
    from repeater.brokers.receipts import Answer
    from repeater.options import ChannelOptions
    from repeater.publication import Announcement, Publication

_log = get_logger("engine")

_IN_FLIGHT: Final = 8_192
_BYTES: Final = 8_388_608
_UNBORN: Final = 300_000  # milliseconds for which the epoch of a channel without a stream is kept
_CHECK: Final = 10.0  # seconds between two looks at the tops of all channels
