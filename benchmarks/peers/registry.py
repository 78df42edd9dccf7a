"""All peers, in the order in which they are measured and shown."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.centrifugo import CENTRIFUGO
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.floors import BARE_TRIO, FLOOR, FLOOR_PYTHON
from benchmarks.peers.mercure import MERCURE
from benchmarks.peers.nats import NATS
from benchmarks.peers.nchan import NCHAN, NCHAN_SSE, NCHAN_TLS
from benchmarks.peers.peer import Peer
from benchmarks.peers.protobuf import FORMATS
from benchmarks.peers.python_peers import PYTHON_PEERS
from benchmarks.peers.repeater import REPEATER, VARIANTS

PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        FLOOR,
        FLOOR_PYTHON,
        BARE_TRIO,
        REPEATER,
        *VARIANTS,
        *FORMATS,
        *ENGINES,
        NCHAN,
        NCHAN_SSE,
        NCHAN_TLS,
        NATS,
        CENTRIFUGO,
        MERCURE,
        *PYTHON_PEERS,
    )
}
