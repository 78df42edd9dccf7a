"""The rooms of the package, and which way their imports point: down, types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "service"
MODULES = sorted((SOURCE / "repeater").rglob("*.py"))

# From the bottom up. A room is a folder, or a file that stands in none.
ROOMS = (
    *(
        "causes",
        "errors",
        "json_text",
        "publication",
        "options",
        "log_output",
        "log",
        "private_files",
    ),
    *("failures", "random_id", "turns", "deadlines", "tally", "histogram"),
    *(
        "protocol",
        "access",
        "fanout",
        "valkey",
        "postgres",
        "brokers",
        "backend",
        "workers",
        "cluster",
    ),
    "clients",
    "node",
    "outgoing",
    *("api", "config", "transports", "front", "web", "supervision"),
    *("testing", "subscriber", "comments", "serving", "cli", "__main__"),
)
RANKS = {room: rank for rank, room in enumerate(ROOMS)}

WEB = {"quart", "quart_trio", "hypercorn", "click", "werkzeug"}
# Client libraries of what is outside: each only where its calls are made.
OUTSIDE = {"httpx", "coredis", "hiredis", "sqlalchemy", "psycopg"}
SPEAKS_HTTP = {"repeater.access.http_client", "repeater.access.tokens", "repeater.backend"}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def room_of(module: str) -> str:
    """The room that a module is in; the face of the package is a room of its own."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(path: Path) -> Iterator[str]:
    """Everything that a module imports, at run time or for its types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (inner & NAMES) or {node.module}


def ours(path: Path) -> set[str]:
    """The modules of this package among them; `__version__` of the face is nobody's."""
    return {name for name in imported(path) if name.startswith("repeater.")}


def libraries(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_every_room_has_a_rank() -> None:
    """The list above is the package: a new room has to take its place in it."""
    rooms = {room_of(name) for name in NAMES} - {""}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No module imports one of a higher room. The face alone may: it re-exports."""
    name = name_of(path)
    if name == "repeater":
        return
    for other in ours(path):
        assert RANKS[room_of(other)] <= RANKS[room_of(name)], f"{name} imports {other}"


def test_no_imports_go_in_a_circle() -> None:
    """Following imports from module to module comes to an end. Faces are left out."""
    faces = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    names = {name_of(path): path for path in MODULES if name_of(path) not in faces}
    graph = {name: ours(path) - faces for name, path in names.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    """Up to the node nothing imports a web framework, nor what speaks to others over a network."""
    name = name_of(path)
    if name == "repeater" or RANKS[room_of(name)] > RANKS["node"]:
        return
    found = libraries(path)
    assert not found & WEB
    allowed = {"httpx"} if name.startswith(tuple(SPEAKS_HTTP)) else set[str]()
    if room_of(name) == "valkey":
        allowed = {"hiredis"}
    if room_of(name) == "postgres":
        allowed = {"psycopg"}
    assert not (found & OUTSIDE) - allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_configuration_reads_the_environment(path: Path) -> None:
    """`os.environ` and `os.getenv` are nobody's but the configuration's."""
    if room_of(name_of(path)) == "config":
        return
    text = path.read_text()
    assert "environ" not in text.replace("environment", "")
    assert "getenv" not in text


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room_of(name_of(path)) == "protocol"], ids=name_of
)
def test_protocol_is_sans_io(path: Path) -> None:
    """The protocols have no async function, no clock and no socket."""
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not any(isinstance(node, waiting) for node in ast.walk(ast.parse(path.read_text())))
    assert not libraries(path) & {"trio", "socket", "time", "asyncio"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_brokers_and_transports_do_not_know_each_other(path: Path) -> None:
    """A broker is given a sink and knows no fan-out; a transport knows no broker."""
    name, others = name_of(path), ours(path)
    if room_of(name) == "brokers":
        assert not {room_of(one) for one in others} & {"fanout", "clients", "transports"}
    if room_of(name) == "transports":
        assert not {room_of(one) for one in others} & {"brokers", "front"}
