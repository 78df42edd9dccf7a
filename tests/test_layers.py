"""Imports point down: the rooms of ARCHITECTURE.md, enforced."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "service" / "repeater").rglob("*.py"))

# From the bottom up. A package stands for all its modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "repeater",
        "repeater.errors",
        "repeater.fanout",
        "repeater.serving",
        "repeater.front",
        "repeater.clients",
        "repeater.clients.commands",
        "repeater.brokers",
        "repeater.publication",
        "repeater.options",
        "repeater.access",
        "repeater.access.grants",
        "repeater.comments.options",
        "repeater.access.tokens.options",
        "repeater.fanout.histogram",
        "repeater.backend.options",
        "repeater.backend.headers",
        "repeater.config.endpoints",
        "repeater.front.trusted_proxies",
    ),
    ("repeater.protocol",),
    (
        "repeater.brokers.contract",
        "repeater.log",
        "repeater.access.grant_json",
        "repeater.serving.collector",
    ),
    (
        "repeater.fanout.outbox",
        "repeater.fanout.groups",
        "repeater.fanout.hub",
        "repeater.fanout.intake",
        "repeater.clients.heartbeat",
        "repeater.front.auth",
        "repeater.clients.addresses",
        "repeater.clients.throttle",
        "repeater.clients.limits",
        "repeater.access.channel_rules",
        "repeater.clients.position_sets",
    ),
    ("repeater.clients.denials",),
    (
        "repeater.clients.client",
        "repeater.fanout.repeater",
        "repeater.clients.presence",
        "repeater.fanout.recovery",
        "repeater.clients.connection_log",
        "repeater.clients.reading",
    ),
    ("repeater.clients.joining",),
    (
        "repeater.clients.commands.subscribe",
        "repeater.clients.commands.publish",
        "repeater.clients.renewals",
    ),
    ("repeater.clients.commands.connect", "repeater.clients.connections"),
    (
        "repeater.clients.session",
        "repeater.clients.unidirectional",
        "repeater.clients.plain",
        "repeater.clients.emulation",
        "repeater.statistics",
    ),
    ("repeater.node",),
    ("repeater.api",),
    (
        "repeater.brokers",
        "repeater.transports",
        "repeater.front.admit",
        "repeater.front.rest",
        "repeater.access.tokens",
        "repeater.access.sqlite_denials",
        "repeater.backend",
        "repeater.config",
    ),
    ("repeater.serving.assembly",),
    ("repeater.web", "repeater.testing", "repeater.subscriber"),
    ("repeater.comments",),
    # The application mounts what is built on it.
    ("repeater.web.app",),
    (
        "repeater.front.tls",
        "repeater.front.preamble",
        "repeater.front.listeners",
        "repeater.front.raw_stream",
    ),
    ("repeater.front.upgrade",),
    (
        "repeater.serving.server",
        "repeater.front.hypercorn",
        "repeater.front.accept",
        "repeater.front.forwarding",
    ),
    ("repeater.cli", "repeater.cli.call"),
    ("repeater.cli.config", "repeater.cli.token", "repeater.cli.admin"),
    ("repeater.cli.main",),
    ("repeater.__main__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# The default broker is the node's to make; nothing else may look up.
EXCEPTIONS = {("repeater.node", "repeater.brokers.memory")}

WEB = {"quart", "quart_trio", "hypercorn", "click", "werkzeug"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "service").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank_of(module: str) -> int:
    """The rank of the module or of the package that it is in."""
    name = module
    while name not in RANKS or (name == "repeater" and module != "repeater"):
        assert "." in name, f"{module} is in no layer: add it to the table"
        name = name.rpartition(".")[0]
    return RANKS[name]


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes_at_run_time(child)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes_at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name_of(module) for module in MODULES}
            found |= (inner & modules) or {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No module imports one of a higher layer at run time."""
    name = name_of(path)
    for imported in imports_of(path):
        if imported.split(".")[0] == "repeater" and (name, imported) not in EXCEPTIONS:
            assert rank_of(imported) <= rank_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_web_libraries_stay_above_the_node(path: Path) -> None:
    """Up to the node, and in brokers, nothing imports Quart, Hypercorn or click."""
    name = name_of(path)
    if rank_of(name) <= RANKS["repeater.node"] or name.startswith("repeater.brokers"):
        assert not {imported.split(".")[0] for imported in imports_of(path)} & WEB


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_configuration_reads_the_environment(path: Path) -> None:
    """`os.environ` and `os.getenv` are nobody's but the configuration's."""
    if name_of(path).startswith("repeater.config"):
        return
    text = path.read_text()
    assert "environ" not in text.replace("environment", "")
    assert "getenv" not in text


@pytest.mark.parametrize(
    "path", [path for path in MODULES if "protocol" in path.parts], ids=name_of
)
def test_protocol_is_sans_io(path: Path) -> None:
    """The protocol package has no async function, and imports values and sans-I/O only."""
    tree = ast.parse(path.read_text())
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not any(isinstance(node, waiting) for node in ast.walk(tree))
    imported = imports_of(path)
    assert not {name.split(".")[0] for name in imported} & {"trio", "socket", "time", "asyncio"}
    ours = {name for name in imported if name.startswith("repeater")}
    values = {"repeater.errors", "repeater.publication", "repeater.options"}
    assert all(name in values or name.startswith("repeater.protocol") for name in ours)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_brokers_and_transports_do_not_know_each_other(path: Path) -> None:
    """A broker imports no hub, client or transport; a transport imports no broker."""
    name, imported = name_of(path), imports_of(path)
    if name.startswith("repeater.brokers"):
        hidden = (
            "repeater.fanout.hub",
            "repeater.clients.client",
            "repeater.transports",
            "repeater.node",
        )
        assert not any(one.startswith(hidden) for one in imported)
    if name.startswith("repeater.transports"):
        assert not any(one.startswith("repeater.brokers") for one in imported)
