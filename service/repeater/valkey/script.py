"""A script that the engine runs, with the digest by which the engine knows it.

A server forgets all scripts when it restarts, and a new primary may know none: then the text is
sent once more. They are not functions of the engine, which need a right of their own and cannot
differ between two versions of Repeater that run side by side.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING

from repeater.valkey.pipe import Lost, Refused, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from repeater.valkey.pipe import Part, Tell


class Script:
    """One script. Values, made when a module is imported."""

    def __init__(self, text: bytes) -> None:
        """Take the Lua text."""
        self.text = text
        # The name that the engine gives it; nothing is secured by it.
        self.digest = sha1(text, usedforsecurity=False).hexdigest().encode()

    def command(self, keys: Sequence[bytes], arguments: Sequence[Part]) -> bytes:
        """The command that runs it, packed."""
        return packed(b"EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole_command(self, keys: Sequence[bytes], arguments: Sequence[Part]) -> bytes:
        """The same with the text, for a server that does not know the script."""
        return packed(b"EVAL", self.text, len(keys), *keys, *arguments)

    def ask(
        self,
        ask: Callable[[bytes, Tell], None],
        keys: Sequence[bytes],
        arguments: Sequence[Part],
        tell: Tell,
    ) -> None:
        """Have it run, and run once more with its text if the server does not know it.

        `ask` sends a command, as `Pipe.ask` does. What is asked behind the first try may be carried
        out before the second one: who needs an order asks one thing at a time.

        Raises:
            Lost: the server is not there, and nothing was sent.
        """
        ask(self.command(keys, arguments), partial(self._answered, ask, keys, arguments, tell))

    def _answered(
        self,
        ask: Callable[[bytes, Tell], None],
        keys: Sequence[bytes],
        arguments: Sequence[Part],
        tell: Tell,
        answer: object,
    ) -> None:
        if not (type(answer) is Refused and answer.code == "NOSCRIPT"):
            tell(answer)
            return
        try:
            ask(self.whole_command(keys, arguments), tell)
        except Lost as error:
            tell(error)


def packaged_script(package: str, name: str) -> Script:
    """The script `scripts/<name>.lua` of a package."""
    return Script(files(package).joinpath("scripts", f"{name}.lua").read_bytes())
