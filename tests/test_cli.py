"""The command line: what does nothing is refused, and each mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from repeater.cli.main import main
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
    """Bytes that are not UTF-8 (`\udce9` here), and JSON that is too deep, are one line, too."""
    assert refused("publish", "news", data).startswith("Error: that is not JSON: ")
