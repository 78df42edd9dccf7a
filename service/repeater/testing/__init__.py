"""For the tests of programs that build on Repeater; supported API, like the rest.

`open_test_node` runs a node that everybody may use; `connect` puts a client with a fake transport
on it. With `trio.testing.MockClock` nothing of this needs real time. `check_broker` and its like
check your own implementation of a contract, as `trio.testing.check_two_way_stream` does a stream.
None needs a test framework.
"""

from repeater.testing.broker import check_broker
from repeater.testing.broker_bench import OpenBroker
from repeater.testing.control import check_control
from repeater.testing.control_bench import OpenControls
from repeater.testing.controls import ControlGroup
from repeater.testing.denials import OpenDenials, check_denials
from repeater.testing.fakes import MemoryTransport, StallingTransport
from repeater.testing.nodes import UnixClock, connect, open_test_node
from repeater.testing.presence import OpenPresenceStore, check_presence_store
from repeater.testing.transport import OpenTransport, Peer, check_transport

__all__ = [
    "ControlGroup",
    "MemoryTransport",
    "OpenBroker",
    "OpenControls",
    "OpenDenials",
    "OpenPresenceStore",
    "OpenTransport",
    "Peer",
    "StallingTransport",
    "UnixClock",
    "check_broker",
    "check_control",
    "check_denials",
    "check_presence_store",
    "check_transport",
    "connect",
    "open_test_node",
]
