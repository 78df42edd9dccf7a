"""The settings of the engine "valkey": what they mean, what is a mistake, and what is secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repeater.cli.main import main
from repeater.config import ConfigError, load_settings
from repeater.config import engine as engine_settings
from repeater.config.documentation import effective, reference
from repeater.config.settings import Settings

URL = "valkey://ann:s3cret@host:6380/2"


def settings_of(**more: Any) -> Settings:
    return load_settings(engine="valkey", **more)


def mistake(**more: Any) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(ConfigError) as found:
        load_settings(**more)
    (line,) = found.value.lines
    return line


def test_a_url() -> None:
    """One URL has the server, the credentials and the database."""
    (found,) = settings_of(engine_url=URL).engine_endpoints()
    assert (found.kind, found.database, found.credentials.password) == ("single", 2, "s3cret")
    assert str(found.addresses[0]) == "host:6380"


def test_shards_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their variable is JSON, because commas separate the hosts of one URL."""
    monkeypatch.setenv("REPEATER_ENGINE_SHARDS", '["valkey+sentinel://a,b/one", "valkey://c"]')
    first, second = settings_of().engine_endpoints()
    assert [str(one) for one in first.addresses] == ["a:26379", "b:26379"]
    assert (first.name, second.kind) == ("one", "single")
    monkeypatch.setenv("REPEATER_ENGINE_SHARDS", "valkey://a,valkey://b")
    with pytest.raises(ConfigError, match="REPEATER_ENGINE_SHARDS: must be a list"):
        settings_of()


def test_defaults() -> None:
    """What is left out is as documented."""
    settings = settings_of(engine_url=URL)
    assert (settings.engine_prefix, settings.engine_timeout) == ("repeater", 2)
    assert settings.engine_failover == "repair"
    assert settings.engine_in_force == "valkey"
    assert settings.kept_in is None


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "engine: needs engine_url (variable REPEATER_ENGINE_URL)"),
        ({"engine_url": "http://host"}, "engine_url: it must look like one of valkey://host"),
        ({"engine_url": "valkey+cluster://a,b/3"}, "engine_url: a cluster has no database numbers"),
        (
            {"engine_shards": ["valkey://a", "valkey://b:x"]},
            "engine_shards: shard 2: a port is not a number",
        ),
        ({"engine_shards": ["valkey://a", "redis://a"]}, "engine_shards: two of them are the same"),
        (
            {"engine_url": URL, "engine_shards": ["valkey://a"]},
            "engine_shards: not beside engine_url",
        ),
        ({"engine_url": URL, "engine_ca_file": "ca.pem"}, "engine_ca_file: needs TLS"),
        (
            {"engine_url": "valkeys://host", "engine_key": "key.pem"},
            "engine_key: needs engine_cert (variable REPEATER_ENGINE_CERT)",
        ),
        ({"engine_url": URL, "durability": "disk"}, 'durability: needs the engine "sqlite"'),
        ({"engine_url": URL, "engine_prefix": "a{b}"}, "engine_prefix: "),
        ({"engine_url": URL, "engine_timeout": 0}, "engine_timeout: must be greater than 0"),
    ],
)
def test_mistakes(more: dict[str, Any], line: str) -> None:
    """Each is found at the start, in one line that names the setting and shows no secret."""
    found = mistake(engine="valkey", **more)
    assert found.startswith(line)
    assert "s3cret" not in found


@pytest.mark.parametrize(
    "more", [{"engine_url": URL}, {"engine_shards": ["valkey://a"]}, {"engine_prefix": "mine"}]
)
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_settings_of_another_engine(more: dict[str, Any], engine: str | None) -> None:
    """A server that would not use them says so: its nodes would not be one cluster."""
    assert mistake(engine=engine, **more) == f'{next(iter(more))}: needs the engine "valkey"'
    load_settings(engine=engine, engine_prefix="repeater", engine_url="", engine_shards="")


def test_a_url_alone_means_the_engine() -> None:
    """`engine` may be left out, also with a data directory; the other settings mean nothing."""
    assert load_settings(engine_url=URL, data_dir="x").engine_in_force == "valkey"
    assert load_settings(engine_shards=["valkey://a"]).engine_in_force == "valkey"
    assert mistake(engine_prefix="mine") == 'engine_prefix: needs the engine "valkey"'


def test_places_over_all_nodes_need_an_engine_that_nodes_share() -> None:
    """`limits.scope` is refused where it could not be kept."""
    limits = {"scope": "cluster"}
    assert mistake(limits=limits).startswith('limits.scope: needs the engine "valkey"')
    assert settings_of(engine_url=URL, limits=limits).node_options().limits.scope == "cluster"


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how to install it."""
    monkeypatch.setattr(engine_settings, "is_installed", lambda: False)
    line = mistake(engine="valkey", engine_url=URL)
    assert line == "engine: \"valkey\" is not installed: pip install 'repeater-server[valkey]'"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("missing.pem", "engine_ca_file: missing.pem: No such file or directory"),
        (__file__, "engine_ca_file: [X509"),
    ],
)
def test_config_check_loads_the_files(
    file: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends a start is told before, and the line names the file that is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPEATER_ENGINE_URL", "valkeys://:s3cret@host")
    assert CliRunner().invoke(main, ["config", "check"]).exit_code == 0
    monkeypatch.setenv("REPEATER_ENGINE_CA_FILE", file)
    checked = CliRunner().invoke(main, ["config", "check"])
    assert checked.exit_code == 1
    assert checked.output.startswith(line)


def test_nothing_secret_is_shown() -> None:
    """URLs are stars in `config show`, each shard by itself, and are not in `repr`."""
    shards = ["valkey://:s3cret@a", "valkey://:s3cret@b"]
    for settings in (settings_of(engine_url=URL), settings_of(engine_shards=shards)):
        assert "s3cret" not in repr(settings)
        shown = effective(settings)
        assert "s3cret" not in shown
        assert "********" in shown
    assert shown.count("********") == 2


def test_the_documentation_says_what_they_are() -> None:
    """A list of secrets is called that."""
    page = reference(Settings)
    assert "| `engine_shards` | list of secrets |" in page
    assert '| `engine` | `"memory"` or `"sqlite"` or `"valkey"` |' in page


def test_the_documentation_is_renewed() -> None:
    """docs/configuration.md has each of them."""
    page = Path("docs/configuration.md").read_text()
    for name in engine_settings._ITS_OWN:
        assert f"| `{name}` |" in page
