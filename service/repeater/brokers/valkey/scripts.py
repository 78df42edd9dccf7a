"""The scripts that the engine runs, each with the digest by which the engine knows it.

A server forgets all scripts when it restarts, and a new primary may know none: then the text is
sent once more. They are no functions of the engine, which need a right of their own and cannot
differ between two versions of Repeater that run side by side.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from repeater.valkey.pipe import packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from repeater.valkey.pipe import Part


class Script:
    """One script. Values, made when the module is imported."""

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath("scripts", f"{name}.lua").read_bytes()
        # The name that the engine gives it; nothing is secured by it.
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def command(self, keys: Sequence[bytes], arguments: Sequence[Part]) -> bytes:
        """The command that runs it, packed."""
        return packed(b"EVALSHA", self.digest, len(keys), *keys, *arguments)

    def whole_command(self, keys: Sequence[bytes], arguments: Sequence[Part]) -> bytes:
        """The same with the text, for a server that does not know the script."""
        return packed(b"EVAL", self.text, len(keys), *keys, *arguments)


PUBLISH: Final = Script("publish")
HISTORY: Final = Script("history")
FORK: Final = Script("fork")
