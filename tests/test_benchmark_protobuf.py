"""The benchmark of Protobuf clients: its bytes are the server's, and each turn measures."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.generator import protobuf
from benchmarks.generator.wire import CHANNEL, event
from benchmarks.peers.floors import FLOOR
from benchmarks.peers.peer import Peer
from benchmarks.peers.protobuf import FLOOR_JSON, FLOOR_PROTOBUF, FORMATS, PROTOBUF
from benchmarks.protobuf_claims import PROTOBUF_CLAIMS
from benchmarks.workloads.fanout import fan_out
from benchmarks.workloads.protobuf import COMMAND_FORMATS, WORKLOADS, commands
from benchmarks.workloads.workload import Plan
from repeater.protocol.centrifugo.codecs import CENTRIFUGE_JSON, Codec
from repeater.protocol.centrifugo.commands import Command
from repeater.protocol.centrifugo.protobuf_codecs import CENTRIFUGE_PROTOBUF
from repeater.protocol.centrifugo.replies import Empty, Failure, Reply, SubscribeResult
from repeater.publication import Publication
from tests.processes import starts_processes

CODECS = {"repeater-centrifugo": CENTRIFUGE_JSON, PROTOBUF.name: CENTRIFUGE_PROTOBUF}


@pytest.mark.parametrize(
    ("floor", "codec"), [(FLOOR_JSON, CENTRIFUGE_JSON), (FLOOR_PROTOBUF, CENTRIFUGE_PROTOBUF)]
)
def test_a_floor_sends_what_the_server_sends(floor: Peer, codec: Codec) -> None:
    """Frames of the same bytes, also when an offset takes more of them."""
    assert floor.floor
    encode = floor.entry([CHANNEL]).encode
    for before in (1, 9, 126, 127, 999):
        ours = [Publication(CHANNEL, event(n), offset=before + n, epoch="e") for n in (1, 2)]
        (chunk,) = codec.publications(ours)
        assert encode([event(1), event(2)], before) == chunk


@pytest.mark.parametrize("name", COMMAND_FORMATS)
def test_commands_are_what_they_are_called(name: str) -> None:
    """The server reads them as one command each, the same in both formats."""
    form, reads = COMMAND_FORMATS[name], CODECS[name].format.commands
    makers: dict[str, Callable[[int, str], bytes]] = {
        "subscribe": form.subscribe,
        "unsubscribe": form.unsubscribe,
        "publish": form.publish,
    }
    for method, make in makers.items():
        message = form.between.join((make(7, "c1"), make(300, "c2")))
        for command, number, channel in zip(
            reads(message if form.opcode == 2 else message.decode()), (7, 300), ("c1", "c2"),
            strict=True,
        ):  # fmt: skip
            assert command.id == number
            request = getattr(command, method)
            assert request.channel == channel
            assert command == Command(number, **{method: request})
        if method == "publish":
            assert bytes(request.data) == event(0)


@pytest.mark.parametrize("name", COMMAND_FORMATS)
def test_an_answer_is_known_by_its_bytes(name: str) -> None:
    """A refusal, and the answer to another command, do not have them."""
    answers, codec = COMMAND_FORMATS[name].answers, CODECS[name]
    for number in (2, 127, 128, 20_000):
        results = {
            "subscribe": Reply(number, subscribe=SubscribeResult(epoch="abcd", offset=3)),
            "unsubscribe": Reply(number, unsubscribe=Empty()),
            "publish": Reply(number, publish=Empty()),
        }
        for method, reply in results.items():
            assert answers(number, method) in codec.reply(reply)
            other = msgspec.structs.replace(reply, id=number + 1)
            assert answers(number, method) not in codec.reply(other)
            refused = Reply(number, error=Failure(103, "permission denied"))
            assert answers(number, method) not in codec.reply(refused)


@given(st.integers(0, 2**32))
def test_a_varint_has_seven_bits_a_byte(number: int) -> None:
    """The lowest first; all but the last byte are marked."""
    encoded = protobuf.varint(number)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == number
    assert all(byte & 0x80 for byte in encoded[:-1])
    assert encoded[-1] < 0x80


def test_every_claim_has_its_workload_and_servers() -> None:
    """All of them are measured by `just bench-protobuf`."""
    ours = {one.name: one for one in WORKLOADS}
    assert {claim.workload for claim in PROTOBUF_CLAIMS} == set(ours)
    for claim in PROTOBUF_CLAIMS:
        takers = {peer.name for peer in FORMATS if ours[claim.workload].skips(peer) is None}
        assert {claim.server, *claim.over} | ({claim.against} - {""}) <= takers


@pytest.mark.slow
@starts_processes
@pytest.mark.parametrize("peer", [one for one in FORMATS if not one.floor], ids=lambda p: p.name)
def test_a_fan_out(peer: Peer) -> None:
    """Each way to subscribe gets every event, once and in order."""
    assert fan_out(peer, subscribers=5, rate=50, seconds=0.1).values["cpu_us"] > 0


@pytest.mark.slow
@starts_processes
@pytest.mark.parametrize("peer", [FLOOR_JSON, FLOOR_PROTOBUF], ids=lambda p: p.name)
def test_a_fan_out_of_the_floor(peer: Peer) -> None:
    """The load generator reads the pushes of a floor, as a server's."""
    if FLOOR.missing():
        pytest.skip("no C compiler")
    assert fan_out(peer, subscribers=5, rate=50, seconds=0.1).values["cpu_us"] > 0


@pytest.mark.slow
@starts_processes
@pytest.mark.parametrize(
    "peer", [one for one in FORMATS if one.name in COMMAND_FORMATS], ids=lambda p: p.name
)
def test_whole_commands(peer: Peer) -> None:
    """Every command is answered, and costs the less the more are in a message."""
    values = commands(peer, Plan(quick=True)).values
    assert all(value > 0 for value in values.values())
