"""deploy/cluster: its files make two nodes, Valkey and nginx that are one server.

Docker is not needed: the programs run as processes of this machine, with the files as they are but
for ports, paths and addresses.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio
import yaml  # type: ignore[import-untyped]  # comes with schemathesis
from sqlalchemy import create_engine, text
from trio_websocket import open_websocket_url

from benchmarks.ports import free_port
from repeater import open_subscriber
from repeater.config.settings import Settings
from repeater.valkey.pipe import Part
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.nginx import NGINX, nginx
from tests.processes import ServerProcess, serving
from tests.serving import Peer
from tests.valkeys import VALKEY, ValkeyServer, calls, require, short_folder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "cluster"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: Mapping[str, Any] = COMPOSE["services"]
NODES = ("node1", "node2")
SECRET = "a secret of this test"
ANN = {"email": "ann@example.com", "password": "hunter2hunter", "name": "Ann"}

pytestmark = pytest.mark.timeout(3 * PROCESS_STARTS)


class Engine(ValkeyServer):
    """Valkey with the folder's two files, and a user more by whom the test looks in."""

    def _own(self, port: int) -> tuple[str, ...]:
        users, settings = self.folder / "users.acl", self.folder / "valkey.conf"
        users.write_text((FOLDER / "users.acl").read_text() + "user test on nopass ~* &* +@all\n")
        lines = (FOLDER / "valkey.conf").read_text()
        for old, new in (("/data", str(self.folder)), ("/etc/valkey/users.acl", str(users))):
            assert lines.count(old) == 1
            lines = lines.replace(old, new)
        settings.write_text(lines)
        own = ("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", self.path)
        return (str(settings), *own)

    def call(self, *parts: Part) -> object:
        """One command of the test's user."""
        return calls(self.path, ("AUTH", "test", ""), parts)[1]


@contextmanager
def engine() -> Iterator[Engine]:
    """Valkey as its container has it."""
    require(VALKEY)
    with short_folder() as folder:
        server = Engine(VALKEY, folder)
        try:
            yield server
        finally:
            server.kill()


class Site(NamedTuple):
    """All of it. Lives inside `open_site`."""

    port: int
    """Of nginx."""
    nodes: Mapping[str, ServerProcess]
    ports: Mapping[str, int]
    engine: Engine

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def call(self, method: str, body: Mapping[str, object], node: str = "") -> Any:
        """Call the server API by nginx, or of one node."""
        base = f"http://127.0.0.1:{self.ports[node]}" if node else self.base
        async with httpx.AsyncClient(timeout=LOOP_ANSWERS) as client:
            answer = await client.post(
                f"{base}/api/{method}", json=dict(body), headers={"X-API-Key": SECRET}
            )
        return answer.json()["result"]


@contextmanager
def database(postgresql: str) -> Iterator[str]:
    """An empty database of the server."""
    name = "deploy_cluster"
    admin = create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield postgresql.replace("/postgres?", f"/{name}?")
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def variables(name: str, engine: Engine, database_url: str) -> dict[str, str]:
    """The variables of a node, as the Compose file has them, with other places and our secrets."""
    given: dict[str, str] = dict(SERVICES[name]["environment"])
    for variable, value in given.items():
        value = re.sub(r"\$\{\w+:\?\}", SECRET, value)
        given[variable] = value.replace("@valkey:6379", f"@127.0.0.1:{engine.port}")
    given["REPEATER_COMMENTS_DATABASE_URL"] = database_url
    given["REPEATER_TRUSTED_PROXIES"] = "127.0.0.1"
    return given


def nginx_file(port: int, ports: Mapping[str, int]) -> str:
    """nginx's file, with the nodes where they are; what `nginx` below sets itself is left out."""
    block = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
    assert "listen 80;" in block
    block = block.replace("listen 80;", f"listen 127.0.0.1:{port};")
    for name in NODES:
        assert f"{name}:8000" in block
        block = block.replace(f"{name}:8000", f"127.0.0.1:{ports[name]}")
    return block[block.index("http {") :]


@asynccontextmanager
async def open_node(
    name: str, port: int, running: Engine, database_url: str, folder: Path
) -> AsyncIterator[ServerProcess]:
    """A node with the folder's settings; it starts when the block begins."""
    (folder / name).mkdir(exist_ok=True)
    given = {
        **variables(name, running, database_url),
        "REPEATER_COMMENTS": "true",
        "REPEATER_DATA_DIR": str(folder / name),
        "REPEATER_ENGINE": "valkey",
    }
    arguments = ("--config", str(FOLDER / "repeater.toml"), "--listen", f"127.0.0.1:{port}")
    async with serving(*arguments, variables=given) as node:
        yield node


async def migrate(running: Engine, database_url: str) -> None:
    """The service that ends before the nodes start; they need the schema that it makes."""
    for name in NODES:
        assert SERVICES[name]["depends_on"]["migrate"] == {
            "condition": "service_completed_successfully"
        }
    command = [*SERVICES["migrate"]["command"]]
    assert command.pop(0) == "repeater"
    file = command.index("--config") + 1
    command[file] = str(FOLDER / "repeater.toml")
    await trio.run_process(
        [sys.executable, "-m", "repeater", *command],
        env={**os.environ, **variables("migrate", running, database_url)},
        capture_stdout=True,
    )


@asynccontextmanager
async def open_site(postgresql: str, folder: Path) -> AsyncIterator[Site]:
    """All programs of the Compose file, but PostgreSQL, which the tests have already."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    ports = {name: free_port() for name in NODES}
    port = free_port()
    with (
        engine() as running,
        database(postgresql) as url,
        nginx(folder, nginx_file(port, ports)),
    ):
        await migrate(running, url)
        async with (
            open_node("node1", ports["node1"], running, url, folder) as first,
            open_node("node2", ports["node2"], running, url, folder) as second,
        ):
            for node in (first, second):
                await node.port()
            yield Site(port, {"node1": first, "node2": second}, ports, running)


@asynccontextmanager
async def event_stream(site: Site, channel: str) -> AsyncIterator[Peer]:
    """A stream of Server-Sent Events by nginx, which has begun."""
    async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        peer = Peer(stream)
        head = f"GET /events?channel={channel} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await stream.send_all(head.encode())
        assert b" 200 " in await peer.until(b"\r\n\r\n")
        yield peer


@pytest.mark.slow
async def test_two_nodes_are_one_server(postgresql: str, tmp_path: Path) -> None:
    """The comments application is one on both; a node that is killed costs nobody an event."""
    async with open_site(postgresql, tmp_path) as site:
        await check_comments(site)
        await check_recovery(site)
        assert site.engine.call("ACL", "LOG") == []


async def check_comments(site: Site) -> None:
    """Sign-in and lists are those of both nodes, and every open page hears a comment, by nginx."""
    where = f"ws://127.0.0.1:{site.port}/ws?channel=comments"
    async with (
        httpx.AsyncClient(base_url=site.base, timeout=LOOP_ANSWERS) as ann,
        open_websocket_url(where) as one,
        open_websocket_url(where) as other,
        event_stream(site, "comments") as stream,
    ):
        # nginx sends a connection where the fewest are.
        assert await connections(site) == [2, 1]
        await ann.post("/api/signup", data=ANN)
        assert (await ann.post("/api/signin", data=ANN)).headers["Location"] == "/comments.html"
        for word in ("first", "second"):
            posted = await ann.post("/api/new_comment", data={"text": word})
            assert posted.headers["Location"] == "/comments.html"
            with trio.fail_after(LOOP_ANSWERS):
                for heard in (await one.get_message(), await other.get_message()):
                    assert word in heard
                await stream.until(word.encode())
            for node in NODES:
                base = f"http://127.0.0.1:{site.ports[node]}"
                found = (await ann.get(f"{base}/api/comments")).json()
                assert found[-1]["text"] == word


async def check_recovery(site: Site) -> None:
    """Subscribers of a node that is killed come back to the other one, by nginx, and recover."""
    subscribed = partial(
        open_subscriber,
        *(site.base, ["news:today"]),
        backoff=(0.05, 0.1),
        on_gap=fail,
        connect_timeout=LOOP_ANSWERS,
    )
    async with subscribed() as one, subscribed() as other:
        assert await connections(site) == [1, 1]
        seen = await site.call("presence_stats", {"channel": "news:today"}, node="node2")
        assert seen["num_clients"] == 2
        for number in range(10):
            if number == 5:
                site.nodes["node1"].process.kill()
            await site.call("publish", {"channel": "news:today", "data": number}, node="node2")
        with trio.fail_after(LOOP_ANSWERS):
            for subscriber in (one, other):
                heard = [(await anext(subscriber)).data for _ in range(10)]
                assert heard == [*range(10)]
        # By nginx, which finds out that one node is gone.
        await site.call("publish", {"channel": "news:today", "data": 10})


async def connections(site: Site) -> list[int]:
    """How many clients the nodes have, the one with the most first."""
    found = await site.call("info", {})
    return sorted((node["num_clients"] for node in found["nodes"]), reverse=True)


def fail(channel: str) -> None:
    raise AssertionError(f"events of {channel} are lost")


def test_the_compose_file_names_what_is_there() -> None:
    """Each file that a service mounts is in the folder, and each that is there is mounted."""
    mounted = {
        source.removeprefix("./")
        for service in SERVICES.values()
        for source in (volume.split(":")[0] for volume in service.get("volumes", ()))
        if source.startswith("./")
    }
    made = {"compose.yaml", "Dockerfile", "Dockerfile.dockerignore"}
    assert {file.name for file in FOLDER.iterdir()} == mounted | made


def test_the_image_has_pins_for_all_that_it_installs() -> None:
    """Each library that is declared, at the version that is tested; the build sends its files."""
    versions = _pins("requirements-cluster.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    for requirement in named:
        found = re.match("[a-z0-9-]+", requirement)
        assert found
        assert found[0] in versions
    assert versions.items() <= _pins("requirements-dev.txt").items()
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {
        name
        for words in (line.split() for line in lines if line.startswith("COPY "))
        if not words[1].startswith("--from")
        for name in words[1:-1]
    }
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def _pins(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_settings_and_network_agree() -> None:
    """The settings are right, and trust the network in which nginx is."""
    settings = tomllib.loads((FOLDER / "repeater.toml").read_text(encoding="utf-8"))
    (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert settings["trusted_proxies"] == [network["subnet"]]
    for name in NODES:
        variables = SERVICES[name]["environment"]
        assert variables["REPEATER_NODE_NAME"] == name
        assert variables["REPEATER_ENGINE_URL"] == "valkey://repeater:change-me@valkey:6379"
    grace = float(SERVICES["node1"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["shutdown_timeout"].default
