"""Where a server runs: with a clock that can be set, with few descriptors, behind a cable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trustme

from tests.certificates import Authority
from tests.drill.cables import Cable, island
from tests.drill.missing import Missing

_FEW = 72  # descriptors: some 15 of the server itself, 32 subscribers, and some that come and go


@dataclass(frozen=True)
class Place:
    """How a server is started in its place, and what can be done to it there."""

    host: str = "127.0.0.1"
    prefix: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    descriptors: int | None = None
    clock: Path | None = None
    cable: Cable | None = None
    authority: Authority | None = None
    """Has issued the server's certificate, if the server speaks TLS."""
    disk: Path | None = None
    """A disk for the server's data."""
    durable: bool = False
    """Whether the server's history outlives it."""

    def with_history(self, data: Path) -> Place:
        """The same place with a durable history in this folder."""
        kept = {"REPEATER_ENGINE": "sqlite", "REPEATER_DATA_DIR": str(data)}
        return replace(self, variables={**self.variables, **kept}, durable=True)

    def set_clock(self, seconds: int) -> None:
        """Set the server's clock to so many seconds off, at once."""
        assert self.clock is not None
        # A file that is written anew is empty for a moment.
        new = self.clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self.clock)


@contextmanager
def ordinary(folder: Path) -> Iterator[Place]:
    """Nothing special."""
    yield Place()


@contextmanager
def with_tls(folder: Path) -> Iterator[Place]:
    """TLS, and so HTTP/2."""
    authority = Authority(trustme.CA(), folder / "certificate.pem", folder / "key.pem")
    authority.issue()
    variables = {
        "REPEATER_TLS_CERT": str(authority.certificate),
        "REPEATER_TLS_KEY": str(authority.key),
    }
    yield Place(variables=variables, authority=authority)


@contextmanager
def with_few_descriptors(folder: Path) -> Iterator[Place]:
    """Few more descriptors than the subscribers take."""
    yield Place(descriptors=_FEW)


@contextmanager
def with_clock(folder: Path) -> Iterator[Place]:
    """The wall clock is libfaketime's; the monotonic clock goes on as ever.

    Raises:
        Missing: libfaketime is not installed.
    """
    found = sorted(Path("/usr").glob("lib*/*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise Missing("libfaketime is not installed")
    clock = folder / "clock"
    variables = {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    place = Place(variables=variables, clock=clock)
    place.set_clock(0)
    yield place


@contextmanager
def with_history(folder: Path) -> Iterator[Place]:
    """A history that outlives the server."""
    yield Place().with_history(folder / "data")


@contextmanager
def with_history_and_clock(folder: Path) -> Iterator[Place]:
    """Both: what is kept knows no other time than the wall clock's.

    Raises:
        Missing: libfaketime is not installed.
    """
    with with_clock(folder) as place:
        yield place.with_history(folder / "data")


@contextmanager
def behind_cable(folder: Path) -> Iterator[Place]:
    """A network namespace of the server's own, and one cable into it.

    Raises:
        Missing: that takes root, and `ip`.
    """
    with island() as found:
        (cable,) = found.cables
        yield Place(host=cable.far, prefix=found.inside, cable=cable)
