"""How a script is asked for: by its digest, and with its text where the server does not know it."""

from __future__ import annotations

from hashlib import sha1

import hiredis
import pytest

from repeater.valkey.pipe import Lost, Refused, Tell
from repeater.valkey.script import Script, packaged_script

pytestmark = pytest.mark.timeout(10)

TEXT = b"return 1"


class Server:
    """Keeps what is asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.tells: list[Tell] = []
        self.lost = False

    def ask(self, command: bytes, tell: Tell) -> None:
        if self.lost:
            raise Lost("gone")
        reader = hiredis.Reader()
        reader.feed(command)
        self.asked.append(reader.gets())
        self.tells.append(tell)


def asked() -> tuple[Server, list[object]]:
    server, answers = Server(), list[object]()
    Script(TEXT).ask(server.ask, [b"k"], ["a", 1], answers.append)
    return server, answers


def test_a_known_script_is_asked_for_by_its_digest() -> None:
    """The digest, the number of keys, keys and arguments are sent; the answer is handed on."""
    server, answers = asked()
    digest = sha1(TEXT, usedforsecurity=False).hexdigest().encode()
    assert server.asked == [[b"EVALSHA", digest, b"1", b"k", b"a", b"1"]]
    server.tells[0](5)
    assert answers == [5]


def test_an_unknown_script_is_sent_once_more() -> None:
    """On NOSCRIPT the text is sent, and whatever is answered then is the answer."""
    server, answers = asked()
    server.tells[0](Refused("NOSCRIPT No matching script."))
    assert server.asked[1] == [b"EVAL", TEXT, b"1", b"k", b"a", b"1"]
    assert answers == []
    again = Refused("NOSCRIPT No matching script.")
    server.tells[1](again)
    assert answers == [again]
    assert len(server.asked) == 2


def test_other_errors_are_answers() -> None:
    """Another refusal, and the end of the connection, are handed on at once."""
    for answer in (Refused("OOM full"), Lost("gone")):
        server, answers = asked()
        server.tells[0](answer)
        assert answers == [answer]


def test_a_server_that_is_gone_by_the_second_try() -> None:
    """If the text cannot be sent any more, the caller is told so."""
    server, answers = asked()
    server.lost = True
    server.tells[0](Refused("NOSCRIPT No matching script."))
    assert isinstance(answers[0], Lost)


def test_a_script_of_a_package() -> None:
    """The scripts of a package are its files."""
    script = packaged_script("repeater.brokers.valkey", "fork")
    assert b"redis.call" in script.text
