"""The reconnect storm's judge: a benchmark that cannot fail proves nothing."""

from __future__ import annotations

import pytest

from benchmarks.generator.wire import WireError, event, push, server_frame
from benchmarks.workloads.storm_judge import judge

_DUE = list(range(5, 35))  # the 20 that were missed, and the 10 published from then on


def received(in_reply: list[int], live: list[int], *, recovered: bool = True) -> bytes:
    publications = b",".join(b'{"data":%s,"offset":%d}' % (event(n), n + 1) for n in in_reply)
    reply = b'{"id":2,"subscribe":{"epoch":"e","publications":[%s],"recovered":%s}}' % (
        publications,
        b"true" if recovered else b"false",
    )
    pushes = [server_frame(push(event(number), number + 1)) for number in live]
    return b"".join([server_frame(b'{"id":1,"connect":{}}\n' + reply), *pushes])


@pytest.mark.parametrize("recovered", [20, 23, 30])
def test_every_event_once_is_no_fault(recovered: int) -> None:
    """Wherever the border between the reply and the live events is."""
    assert judge(received(_DUE[:recovered], _DUE[recovered:])) == (0, 0, 0)


def test_faults_are_counted() -> None:
    """A lost, a doubled and two exchanged events are told apart."""
    assert judge(received(_DUE[:20], _DUE[21:])) == (1, 0, 0)
    assert judge(received(_DUE[:20], _DUE[19:])) == (0, 1, 0)
    assert judge(received(_DUE[:20], [*_DUE[20:28], 34, 33])) == (0, 0, 2)


def test_unrecovered_client_fails_the_run() -> None:
    """A client that was not recovered, or only in part, is an error and not counted."""
    with pytest.raises(WireError):
        judge(received(_DUE[:20], _DUE[20:], recovered=False))
    with pytest.raises(WireError):
        judge(received(_DUE[:19], _DUE[19:]))
