"""Commands: what is read, and what ends the connection."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.errors import BAD_REQUEST, DisconnectError, ErrorCode
from repeater.protocol.centrifugo.commands import PONG, Command, ConnectRequest, parse_commands
from repeater.protocol.centrifugo.json_format import JSON
from repeater.protocol.centrifugo.replies import Empty, Reply, failure


def test_pipelined_commands_of_the_golden_transcript() -> None:
    """The JavaScript SDK's first frame is three commands (protocol, appendix A)."""
    message = (
        '{"connect":{"name":"js"},"id":1}\n{"subscribe":{"channel":"news","positioned":true,'
        '"recoverable":true,"join_leave":true,"flag":1},"id":2}\n'
        '{"subscribe":{"channel":"denied","flag":1},"id":3}'
    )
    first, second, third = parse_commands(message)
    assert first == Command(id=1, connect=ConnectRequest(name="js"))
    assert second.subscribe is not None
    assert second.subscribe.channel == "news"
    assert third.id == 3


def test_bare_object_is_a_pong() -> None:
    """`{}` is the pong, and one trailing newline is tolerated."""
    assert list(parse_commands("{}\n{}\n")) == [PONG, PONG]


def test_published_data_stays_verbatim() -> None:
    """The data of a publish is the text that the client sent, spaces included."""
    (command,) = parse_commands('{"publish":{"channel":"a","data":{"n": 1.50}},"id":9}')
    assert command.publish is not None
    assert bytes(command.publish.data) == b'{"n": 1.50}'


@pytest.mark.parametrize(
    "message",
    ["", "\n\n", "{}\n\n{}", "[]", "null", "1", "{", '{"id":"1"}', '{"id":1}x', "\udcff"],
)
def test_bad_line_is_a_disconnect(message: str) -> None:
    """An empty line or an invalid command ends the connection with 3501."""
    with pytest.raises(DisconnectError) as caught:
        list(parse_commands(message))
    assert caught.value.disconnect == BAD_REQUEST


def test_a_lone_surrogate_inside_data_is_a_disconnect() -> None:
    """A lone surrogate ends the connection even where the data is kept raw."""
    with pytest.raises(DisconnectError):
        list(parse_commands('{"publish":{"channel":"a","data":"\udcff"},"id":9}'))


def test_commands_before_a_bad_one_come_out() -> None:
    """Parsing is lazy: what stands before the bad line still takes effect."""
    commands = parse_commands('{"id":7}\nnonsense')
    assert next(commands).id == 7
    with pytest.raises(DisconnectError):
        next(commands)


@given(st.text(st.characters(), max_size=60))
def test_any_text_is_commands_or_a_disconnect(message: str) -> None:
    """No input raises anything but DisconnectError."""
    with suppress(DisconnectError):
        list(parse_commands(message))


@pytest.mark.parametrize("code", list(ErrorCode))
def test_failure_has_code_and_message(code: ErrorCode) -> None:
    """Every error object has both, and `temporary` only where it is true."""
    encoded = JSON.reply(Reply(3, error=failure(code)))
    assert b'"code":%d,"message":"%s"' % (code, code.message.encode()) in encoded
    assert (b'"temporary":true' in encoded) is (code in (100, 111))


def test_reply_shapes() -> None:
    """Replies are the golden transcript's bytes: empty results are there, zeros are not."""
    assert JSON.reply(Reply(9, publish=Empty())) == b'{"id":9,"publish":{}}'
    assert (
        JSON.reply(Reply(3, error=failure(ErrorCode.PERMISSION_DENIED)))
        == b'{"id":3,"error":{"code":103,"message":"permission denied"}}'
    )
