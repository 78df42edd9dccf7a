"""The claims about Protobuf clients, beside JSON clients and a bare loop with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.claim import Claim
from benchmarks.peers.protobuf import FLOOR_PROTOBUF, PROTOBUF

_DELIVERY: Final = (
    "the loop of a delivery does not know the format: only an event costs more, once for all"
)
_SUFFIXES: Final = ("", "-recovery", "-presence")
_COMMAND: Final = (
    "the runtime is C as JSON's decoder is, and what is read from it becomes the same values"
)


def _deliveries() -> Iterator[Claim]:
    for suffix in _SUFFIXES:
        server = PROTOBUF.name + suffix
        json = f"repeater{suffix or '-centrifugo'}"
        for against, limit in ((FLOOR_PROTOBUF.name, 1.35), (json, 1.0)):
            yield Claim(
                workload="protobuf-fanout",
                metric="cpu_us",
                limit=limit,
                side="at most",
                origin=_DELIVERY,
                server=server,
                against=against,
            )


def _commands() -> Iterator[Claim]:
    for metric in ("subscribe_us", "publish_us"):
        yield Claim(
            workload="protobuf-commands",
            metric=metric,
            limit=1.15,
            side="at most",
            origin=_COMMAND,
            server=PROTOBUF.name,
            against="repeater-centrifugo",
        )


PROTOBUF_CLAIMS: Final[Sequence[Claim]] = (
    *_deliveries(),
    Claim(
        workload="protobuf-memory",
        metric="memory_kib",
        limit=0.3,
        side="at most",
        origin="nothing of the format is kept for a client but which one it is",
        server=PROTOBUF.name,
        over=("repeater-centrifugo",),
    ),
    *_commands(),
)
