"""The settings of the engine: where history is, and how its servers are reached.

They stand in the outermost table of the file. `Settings` inherits them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings

from repeater.config.errors import Mistake
from repeater.config.fields import Integer, Seconds, Secret, encodable, unless_empty
from repeater.valkey.url import Endpoints, parse_url

Engine = Literal["memory", "sqlite", "valkey"]

INSTALL: Final = "pip install 'repeater-server[valkey]'"
_ITS_OWN: Final = (
    "engine_url",
    "engine_shards",
    "engine_ca_file",
    "engine_cert",
    "engine_key",
    "engine_prefix",
    "engine_timeout",
    "engine_failover",
)
"""The settings of the engine "valkey"."""


class EngineFiles(NamedTuple):
    """The files for TLS to the engine, as `repeater.valkey.dial.TLSFiles`."""

    ca_file: Path | None
    cert: Path | None
    key: Path | None


def _secrets(value: object) -> object:
    """The list in the text of a variable, which is JSON: commas separate the hosts of one URL."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value) if value else []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError('must be a list; in a variable JSON: ["valkey://a", "valkey://b"]')
    return found


_File = Annotated[Path | None, BeforeValidator(unless_empty)]
_Shard = Annotated[SecretStr, AfterValidator(encodable)]


class EngineSettings(BaseSettings):
    """Lives inside `Settings`."""

    title: ClassVar[str] = "Engine"

    data_dir: str = Field(default=".repeater", min_length=1)
    """The directory for what is kept across restarts. If `data_dir` is set, the server keeps there
    blocked users, revoked tokens and, unless `engine` says otherwise, the history of channels. With
    `valkey` these are in the engine, and `data_dir` is for `repeater workers restart` and
    `--take-over`, which ask the server there. The comments application keeps its SQLite file there,
    and its secret in development mode."""

    engine: Annotated[Engine | None, BeforeValidator(unless_empty)] = None
    """Where the history of channels is: in `memory`, which a restart forgets; in a file of `sqlite`
    in `data_dir`, which it does not; or in `valkey`, also Redis, which is shared by any number of
    servers (docs/engines.md). Left out, it is `valkey` if `engine_url` or `engine_shards` is set,
    else `sqlite` if `data_dir` is set."""

    durability: Annotated[Literal["disk", "process"] | None, BeforeValidator(unless_empty)] = None
    """What history survives with `sqlite`: with `disk`, the default, a loss of power, because each
    commit waits for the disk; with `process` the end of the process, however it ends. After a loss
    of power clients are then told that they may have missed something."""

    history_disk_limit: Integer = Field(default=10_737_418_240, ge=1_048_576)
    """Bytes of the file of `sqlite`, beside its log of some 16 MiB. When full, publications go as
    for `history_bytes`, which holds for that file too, because all of it is also in memory."""

    engine_url: Secret = None
    """Where the server of `valkey` is: `valkey://user:password@host:6379/0`, with TLS `valkeys://`,
    `unix:///path`; `valkey+sentinel://host1,host2,host3/name` for a primary that Sentinels know,
    `valkey+cluster://host1,host2` for a cluster. `redis` and `rediss` mean the same."""

    engine_shards: Annotated[tuple[_Shard, ...], BeforeValidator(_secrets)] = ()
    """In place of `engine_url`: the URLs of several that know nothing of each other, among which
    the channels are divided. All servers need the same list in the same order. Its variable is
    JSON."""

    engine_ca_file: _File = None
    """Certificates that prove the servers of `valkey`, PEM. By default those that the system
    trusts."""

    engine_cert: _File = None
    """The certificate with which this server proves itself to them, PEM."""

    engine_key: _File = None
    """Its key, PEM, without a password. It may be in the certificate's file."""

    engine_prefix: str = Field(default="repeater", pattern="^[A-Za-z0-9_.:-]{1,64}$")
    """What the names of all keys and channels in `valkey` begin with. Servers with the same prefix
    are one; different applications on one engine need different ones."""

    engine_timeout: Seconds = Field(default=2.0, gt=0)
    """How long `valkey` may owe an answer before its connection counts as dead. A server that was
    paused or cut off is noticed after this time."""

    engine_failover: Literal["repair", "strict"] = "repair"
    """What follows when `valkey` has another primary. With `repair`, the channels are found whose
    last publications it lacks, and only their clients are told. With `strict` every channel begins
    anew, and all clients that come back are told."""

    @property
    def engine_in_force(self) -> Engine:
        """Where the history of channels is."""
        if self.engine is not None:
            return self.engine
        if self.engine_url is not None or self.engine_shards:
            return "valkey"
        return "sqlite" if "data_dir" in self.model_fields_set else "memory"

    @property
    def kept_in(self) -> Path | None:
        """The directory for what the server keeps across restarts; None if it keeps nothing."""
        kept = "data_dir" in self.model_fields_set or self.engine_in_force == "sqlite"
        return Path(self.data_dir) if kept else None

    def engine_endpoints(self) -> tuple[Endpoints, ...]:
        """What the URLs of `valkey` say; one for each shard.

        Raises:
            ValueError: as `parse_url`.
        """
        urls = (self.engine_url,) if self.engine_url is not None else self.engine_shards
        return tuple(parse_url(url.get_secret_value()) for url in urls)

    def engine_files(self) -> EngineFiles:
        """The files for TLS to `valkey`."""
        return EngineFiles(self.engine_ca_file, self.engine_cert, self.engine_key)

    def engine_mistakes(self) -> Iterator[Mistake]:
        """Settings of an engine that is not the one in force, and what `valkey` cannot do with."""
        engine = self.engine_in_force
        if self.durability and engine != "sqlite":
            yield Mistake(("durability",), 'needs the engine "sqlite"')
        if engine == "valkey":
            yield from self._valkey_mistakes()
            return
        for name in _ITS_OWN:
            if getattr(self, name) != type(self).model_fields[name].default:
                yield Mistake((name,), 'needs the engine "valkey"')

    def _valkey_mistakes(self) -> Iterator[Mistake]:
        if not is_installed():
            yield Mistake(("engine",), f'"valkey" is not installed: {INSTALL}')
        if self.engine_url is None and not self.engine_shards:
            yield Mistake(("engine",), "needs engine_url")
        if self.engine_url is not None and self.engine_shards:
            yield Mistake(("engine_shards",), "not beside engine_url: write all URLs here")
        found = []
        if self.engine_url is not None:
            found.append(_read(("engine_url",), self.engine_url))
        for number, shard in enumerate(self.engine_shards, 1):
            found.append(_read(("engine_shards",), shard, f"shard {number}: "))
        yield from (one for one in found if isinstance(one, Mistake))
        endpoints = [one for one in found if isinstance(one, Endpoints)]
        places = [(one.kind, one.addresses, one.database, one.name) for one in endpoints]
        if len(set(places)) < len(places):
            yield Mistake(("engine_shards",), "two of them are the same")
        if self.engine_key and not self.engine_cert:
            yield Mistake(("engine_key",), "needs engine_cert")
        if endpoints and not any(one.tls for one in endpoints):
            for name in ("engine_ca_file", "engine_cert", "engine_key"):
                if getattr(self, name):
                    yield Mistake((name,), "needs TLS: a URL that begins with valkeys")


def _read(path: tuple[str, ...], url: SecretStr, which: str = "") -> Endpoints | Mistake:
    """What a URL says, or why it says nothing; the text has no part of it that is secret."""
    try:
        return parse_url(url.get_secret_value())
    except ValueError as error:
        return Mistake(path, f"{which}{error}")


@cache
def is_installed() -> bool:
    """Whether the library of the extra `valkey` can be imported."""
    try:
        return find_spec("hiredis") is not None
    except ImportError:
        return False
