"""Which server the command line talks to, with which key: configuration, variables, options."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from click.testing import CliRunner, Result

from repeater.cli.main import main
from repeater.cli.server import Address, url_of
from repeater.cli.server import Server as Asked
from repeater.config import Settings
from repeater.serving.server import Server, open_server
from tests.deadlines import LOOP_ANSWERS

KEY = "the-key-of-the-file-0123456789abcdef"


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str, **variables: str) -> Result:
    result = CliRunner().invoke(main, list(arguments), env=variables)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert KEY not in result.output
    return result


async def run(*arguments: str, **variables: str) -> Result:
    """One command, in a thread, since the server needs this one."""
    return await trio.to_thread.run_sync(partial(invoke, *arguments, **variables))


def error(*arguments: str, **variables: str) -> str:
    """The one line of a command that fails with status 1."""
    result = invoke(*arguments, **variables)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Server]:
    with trio.fail_after(LOOP_ANSWERS):
        chosen = Settings(**{"port": 0, "api_key": KEY, **settings})  # type: ignore[arg-type]
        async with open_server(chosen) as server:
            yield server


def write(*lines: str, name: str = "repeater.toml") -> None:
    Path(name).write_text("\n".join(lines))


async def test_the_file_of_the_directory_says_all() -> None:
    """Port and key; no option is needed."""
    async with running() as server:
        write(f"port = {server.port}", f'api_key = "{KEY}"')
        result = await run("info", "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout)["nodes"][0]["uid"] == server.node.id
        published = await run("publish", "news", "1")
        assert json.loads(published.stdout)["offset"] == 1


@pytest.mark.parametrize("by", ["option", "variable"])
async def test_another_file(by: str) -> None:
    """Named by `--config` or by REPEATER_CONFIG, it is read in place of the directory's."""
    async with running() as server:
        write(f"port = {server.port}", f'api_key = "{KEY}"', name="other.toml")
        write("port = 1")
        result = (
            await run("channels", "--config", "other.toml")
            if by == "option"
            else await run("channels", REPEATER_CONFIG="other.toml")
        )
        assert (result.exit_code, result.stderr) == (0, "")


async def test_variables_win_over_the_file_and_options_over_both() -> None:
    """As for the server itself."""
    async with running() as server:
        write("port = 1", 'api_key = "wrong"')
        variables = {"REPEATER_PORT": str(server.port), "REPEATER_API_KEY": KEY}
        assert (await run("info", **variables)).exit_code == 0
        assert "401" in (await run("info", "--api-key", "bad", **variables)).stderr
        url = ("--url", f"http://127.0.0.1:{server.port}")
        assert (await run("info", *url, "--api-key", KEY)).exit_code == 0


async def test_the_key_of_the_file_is_not_sent_to_another_url() -> None:
    """Unless the file was named beside the URL, both on the command line."""
    async with running() as server:
        write("port = 1", f'api_key = "{KEY}"')
        url = f"http://127.0.0.1:{server.port}"
        said = " (give --api-key, REPEATER_API_KEY or --config)\n"
        assert (await run("info", "--url", url)).stderr.endswith(said)
        assert (await run("info", REPEATER_URL=url)).stderr.endswith(said)
        config = ("--config", "repeater.toml")
        assert (await run("info", *config, REPEATER_URL=url)).stderr.endswith(said)
        assert (await run("info", "--url", url, *config)).exit_code == 0


async def test_with_a_url_the_file_may_be_wrong() -> None:
    """It is not read."""
    write("prot = 1")
    async with running() as server:
        url = f"http://127.0.0.1:{server.port}"
        assert (await run("info", "--url", url, "--api-key", KEY)).exit_code == 0


def test_a_mistake_in_the_file_is_one_line() -> None:
    """With what to do; the first of several, and how many there are."""
    write("prot = 1", 'api_key = "a\\nb"')
    line = error("info")
    assert line.startswith("repeater.toml: prot: unknown setting; did you mean port? (and 1 more)")
    assert line.endswith("; see repeater config check; or give --url and --api-key")
    assert error("info", "--config", "none.toml").startswith("none.toml: No such file")
    assert error("token", "connection", "--user", "a").endswith("; or give --hmac-secret-key")


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Of a server that listens on nothing else; also for a name that it must be asked by."""
    path = tmp_path / "r.sock"
    listen = f"unix:{path}"
    for more in ({}, {"allowed_hosts": ("*.example.com",)}):
        async with running(listen=(listen,), **more):
            hosts = json.dumps(more.get("allowed_hosts", ()))
            write(f"listen = ['{listen}']", f"allowed_hosts = {hosts}", f'api_key = "{KEY}"')
            assert (await run("info")).exit_code == 0


async def test_its_own_certificate_and_no_other(tmp_path: Path) -> None:
    """On this machine the server shows the configured certificate, whatever name that has."""
    its, other = (_certificate(tmp_path / name) for name in ("its", "other"))
    async with running(**its) as server:
        for files, code in ((its, 0), (other, 1)):
            lines = [f'{name} = "{file}"' for name, file in files.items()]
            write(f"port = {server.port}", f'api_key = "{KEY}"', *lines)
            result = await run("info")
            assert result.exit_code == code
        assert "certificate verify failed" in result.stderr


def test_another_address_has_a_certificate_of_its_own(tmp_path: Path) -> None:
    """A proxy in front of the server, say: the authorities of the system prove its name."""
    settings = Settings(**_certificate(tmp_path / "its"))  # type: ignore[arg-type]
    assert Asked(Address(url_of(settings)), None, settings).certificates() is not None
    assert Asked(Address("https://rt.example.com"), None, settings).certificates() is None


def _certificate(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    issued = trustme.CA().issue_cert("rt.example.com")
    key, certificate = folder / "its.key", folder / "its.crt"
    issued.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    return {"tls_cert": certificate, "tls_key": key}


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 80}, "http://127.0.0.1:80"),
        ({"host": "::", "path_prefix": "/realtime"}, "http://[::1]:8000/realtime"),
        ({"listen": ("unix:/a", "10.0.0.1:81")}, "http://10.0.0.1:81"),
        ({"listen": ("unix:/a",), "path_prefix": "/r"}, "http://localhost/r"),
    ],
)
def test_the_url_of_settings(settings: dict[str, object], url: str) -> None:
    """The first TCP address, with a loopback one in place of any address."""
    assert url_of(Settings(**settings)) == url  # type: ignore[arg-type]


def test_a_port_that_nobody_knows() -> None:
    """The kernel chose it when the server started."""
    assert error("info", REPEATER_PORT="0") == (
        "the configuration has port 0, a free one: give --url"
    )


async def test_no_proxy_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured server is on this machine: variables of proxies do not count."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with running(path_prefix="/r", allowed_hosts=("a.example.com",)) as server:
        write(
            f"port = {server.port}",
            f'api_key = "{KEY}"',
            'path_prefix = "/r"',
            'allowed_hosts = ["a.example.com"]',
        )
        result = await run("info")
        assert (result.exit_code, result.stderr) == (0, "")
    assert re.match(
        r"Error: cannot reach http://127\.0\.0\.1:\d+/r/api", (await run("info")).stderr
    )


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "keys.example.com"])
@pytest.mark.parametrize("command", [("info",), ("subscribe", "news", "--user", "ann")])
def test_a_file_that_lies_there_sends_no_key_away(host: str, command: tuple[str, ...]) -> None:
    """The directory may be somebody else's, and the key in a variable: the file has to be named."""
    write(f'host = "{host}"', "port = 9")
    told = error(*command, REPEATER_API_KEY=KEY, REPEATER_TOKEN__HMAC_SECRET_KEY="s" * 32)
    assert told == (
        f"repeater.toml of this directory says {host}, which is not this machine: "
        "give --config repeater.toml if you trust it, or --url"
    )


async def test_a_file_that_lies_there_may_name_this_machine() -> None:
    """Each of its addresses is one that a server here can listen on."""
    async with running() as server:
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            write(f'host = "{host}"', f"port = {server.port}")
            assert (await run("info", REPEATER_API_KEY=KEY)).exit_code == 0
