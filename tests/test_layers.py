"""Imports point down: the table of the design's section 5, enforced."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "service").rglob("*.py"))

# From the bottom up. A package stands for all its modules.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "service",
        "service.errors",
        "service.publication",
        "service.options",
        "service.credentials",
        "service.comments.options",
        "service.token_options",
        "service.histogram",
        "service.callback_options",
        "service.headers",
        "service.endpoints",
        "service.proxies",
    ),
    ("service.protocol",),
    ("service.interfaces", "service.log", "service.grants", "service.collector"),
    (
        "service.outbox",
        "service.groups",
        "service.hub",
        "service.intake",
        "service.heartbeat",
        "service.auth",
        "service.addresses",
        "service.limits",
        "service.admission",
        "service.channels",
        "service.position_sets",
    ),
    ("service.denials",),
    (
        "service.client",
        "service.repeater",
        "service.presence",
        "service.recovery",
        "service.connection_log",
        "service.reading",
    ),
    ("service.joining",),
    ("service.subscribing", "service.asking", "service.renewing"),
    ("service.connecting", "service.commanding"),
    (
        "service.session",
        "service.unidirectional",
        "service.listening",
        "service.emulation",
        "service.statistics",
    ),
    ("service.node",),
    ("service.api",),
    (
        "service.brokers",
        "service.transports",
        "service.tokens",
        "service.callbacks",
        "service.config",
    ),
    ("service.assembly",),
    ("service.web", "service.testing", "service.subscriber"),
    ("service.comments",),
    # The application mounts what is built on it.
    ("service.web.app",),
    ("service.tls", "service.gate", "service.listeners", "service.raw_stream"),
    ("service.reception",),
    ("service.server", "service.handover", "service.door", "service.forwarding"),
    ("service.cli_call",),
    ("service.cli_config", "service.cli_token", "service.cli_admin"),
    ("service.cli",),
    ("service.__main__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# The default broker is the node's to make; nothing else may look up.
EXCEPTIONS = {("service.node", "service.brokers.memory")}

WEB = {"quart", "quart_trio", "hypercorn", "click", "werkzeug"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank_of(module: str) -> int:
    """The rank of the module or of the package that it is in."""
    name = module
    while name not in RANKS or (name == "service" and module != "service"):
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
        if imported.split(".")[0] == "service" and (name, imported) not in EXCEPTIONS:
            assert rank_of(imported) <= rank_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_web_libraries_stay_above_the_node(path: Path) -> None:
    """Up to the node, and in brokers, nothing imports Quart, Hypercorn or click."""
    name = name_of(path)
    if rank_of(name) <= RANKS["service.node"] or name.startswith("service.brokers"):
        assert not {imported.split(".")[0] for imported in imports_of(path)} & WEB


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_configuration_reads_the_environment(path: Path) -> None:
    """`os.environ` and `os.getenv` are nobody's but the configuration's."""
    if name_of(path).startswith("service.config"):
        return
    text = path.read_text()
    assert "environ" not in text.replace("environment", "")
    assert "getenv" not in text


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name == "protocol"], ids=name_of
)
def test_protocol_is_sans_io(path: Path) -> None:
    """The protocol package has no async function, and imports values and sans-I/O only."""
    tree = ast.parse(path.read_text())
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not any(isinstance(node, waiting) for node in ast.walk(tree))
    imported = imports_of(path)
    assert not {name.split(".")[0] for name in imported} & {"trio", "socket", "time", "asyncio"}
    ours = {name for name in imported if name.startswith("service")}
    values = {"service.errors", "service.publication", "service.options"}
    assert all(name in values or name.startswith("service.protocol") for name in ours)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_brokers_and_transports_do_not_know_each_other(path: Path) -> None:
    """A broker imports no hub, client or transport; a transport imports no broker."""
    name, imported = name_of(path), imports_of(path)
    if name.startswith("service.brokers"):
        hidden = ("service.hub", "service.client", "service.transports", "service.node")
        assert not any(one.startswith(hidden) for one in imported)
    if name.startswith("service.transports"):
        assert not any(one.startswith("service.brokers") for one in imported)
