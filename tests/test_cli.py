"""The command line: what does nothing is refused, and each mistake is one line."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from repeater.cli.main import main
from repeater.cli.terminal import visible
from repeater.subscriber import SubscriberError
from tests.signing import pem_of, rsa_key


def refused(*arguments: str, **variables: str) -> str:
    """The line that a command ends with; its status is 1."""
    result = CliRunner().invoke(main, list(arguments), env=variables)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "127.0.0.1:0", "--port", "9999"),
        ("--listen", "127.0.0.1:0", "--host", "127.0.0.1"),
        ("--unix", "/tmp/a.sock", "--port", "0"),
    ],
)
def test_a_port_beside_an_endpoint_is_refused(arguments: tuple[str, ...]) -> None:
    """`--host` and `--port` would do nothing beside `--listen` or `--unix`."""
    assert "--host and --port do nothing beside" in refused("serve", *arguments)


def test_a_port_beside_the_setting_is_refused() -> None:
    """The same where the file says where to listen."""
    Path("repeater.toml").write_text("listen = ['127.0.0.1:0']")
    assert "--host and --port do nothing beside" in refused("serve", "--port", "0")


def test_an_empty_path_is_not_taken_for_no_option() -> None:
    """`--unix ""` does not open a TCP port instead."""
    assert "has no path" in refused("serve", "--unix", "")


def test_an_empty_host_is_a_mistake() -> None:
    """`REPEATER_HOST=` is told by its name, not by a failing look-up."""
    assert refused("config", "check", REPEATER_HOST="") == "REPEATER_HOST: must not be empty"


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("config", "check")])
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("REPEATER_TOKEN__RSA_PUBLIC_KEY", "abc", "token: rsa_public_key: not a public key"),
        ("REPEATER_TOKEN__ECDSA_PUBLIC_KEY", "abc", "token: ecdsa_public_key: not a public key"),
        ("REPEATER_TOKEN__HMAC_SECRET_KEY", pem_of(rsa_key()), "token: hmac_secret_key: an HMAC"),
        (
            "REPEATER_SUBSCRIPTION_TOKEN__EDDSA_PUBLIC_KEY",
            pem_of(rsa_key()),
            "subscription_token: eddsa_public_key: a key of another type",
        ),
        ("REPEATER_COMMENTS_CACHE_URL", "redis://h:port/0", "REPEATER_COMMENTS_CACHE_URL: needs"),
    ],
)
def test_a_key_or_url_that_cannot_be_is_one_line(
    command: tuple[str, ...], variable: str, value: str, said: str
) -> None:
    """It names the setting; what `config check` passes does not end a start with a traceback."""
    line = refused(*command, REPEATER_DEV="true", **{variable: value})
    assert line.removeprefix("Error: ").startswith(said)


@pytest.mark.parametrize("command", [("info",), ("subscribe", "news"), ("publish", "news", "1")])
@pytest.mark.parametrize("url", ["foo", "ftp://a", "http://"])
def test_an_invalid_url_is_named(command: tuple[str, ...], url: str) -> None:
    """Every command that speaks with a server says the same of it."""
    assert refused(*command, "--url", url) == f"Error: not a server's URL: {url}"


def test_a_server_that_is_not_there_is_one_plain_line() -> None:
    """With the system's reason, and without a count of exceptions."""
    line = refused("subscribe", "news", "--url", "http://127.0.0.1:1")
    assert line.startswith("Error: cannot connect to ws://127.0.0.1:1/")
    assert line.endswith(": Connection refused")


@pytest.mark.parametrize("data", ["{", '"caf\udce9"', "[" * 100_000, "NaN", ""])
def test_data_that_is_not_json(data: str) -> None:
    """What is not UTF-8 (here a lone surrogate), and JSON that is too deep, are one line, too."""
    assert refused("publish", "news", data).startswith("Error: that is not JSON: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REPEATER_API_KEY", "caf\udce9"),
        ("REPEATER_METRICS_TOKEN", "caf\udce9"),
        ("REPEATER_TOKEN__HMAC_SECRET_KEY", "caf\udce9"),
        ("REPEATER_CALLBACKS__SECRET", "caf\udce9"),
        ("REPEATER_API_KEY", "a\nb"),
        ("REPEATER_METRICS_TOKEN", "a  "),
    ],
)
def test_a_secret_that_cannot_be_sent(variable: str, value: str) -> None:
    """It is refused where it is read, by its name and without its value."""
    line = refused("config", "check", **{variable: value})
    assert line.startswith(f"{variable}: must ")
    assert value not in line


CONTROLS = '"\x9b2J\u202eevil\u2066\x7f"'


@pytest.mark.parametrize(("terminal", "written"), [(True, visible(CONTROLS)), (False, CONTROLS)])
def test_events_on_a_terminal(
    terminal: bool, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters are escaped as in JSON for a terminal; a program gets what was sent."""

    @asynccontextmanager
    async def one_event(*_: object, **__: object) -> AsyncIterator[AsyncIterator[Any]]:
        async def events() -> AsyncIterator[Any]:
            yield SimpleNamespace(channel="news", text=CONTROLS)

        yield events()

    monkeypatch.setattr("repeater.subscriber.open_subscriber", one_event)
    monkeypatch.setattr("repeater.cli.subscribe._is_terminal", lambda: terminal)
    result = CliRunner().invoke(main, ["subscribe", "news", "--with-channel"])
    assert result.stdout == f"news {written}\n"


def test_what_is_visible() -> None:
    """The escapes are JSON's, so that the value is the same; other texts stay as they are."""
    assert visible("caf\xe9 \u2764\ufe0f \u200d") == "caf\xe9 \u2764\ufe0f \u200d"
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\u2066]", visible(CONTROLS))
    assert json.loads(visible('"\x9b\u202e"')) == "\x9b\u202e"


def test_an_error_of_the_subscriber_inside_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one line without control characters, however deep the nurseries wrapped it."""

    def failing(*_: object, **__: object) -> None:
        inner = ExceptionGroup("inner", [SubscriberError("refused: \x1b[2J")])
        raise ExceptionGroup("outer", [inner])

    monkeypatch.setattr("repeater.subscriber.open_subscriber", failing)
    assert refused("subscribe", "news") == "Error: refused: \\u001b[2J"


def test_the_page_names_every_command() -> None:
    """docs/command-line.md has them all, and the exit codes that `--help` has."""
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    for name, command in main.commands.items():
        assert re.search(rf"`(repeater )?{name}\b", page), name
        assert "..." not in command.get_short_help_str(64), name
    told = CliRunner().invoke(main, ["--help"]).output
    codes = re.findall(r"^\| (\d) \|", page, re.MULTILINE)
    assert codes == re.findall(r"^ +(\d)  \S", told, re.MULTILINE) == ["0", "1", "2", "3"]


def test_what_is_wrong_usage() -> None:
    """Status 2: an unknown command, option or argument."""
    for arguments in (["nix"], ["info", "--nix"], ["publish", "a"], ["subscribe"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2
