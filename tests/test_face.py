"""The package's face: which names there are, where each is at home, and what importing it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest

import repeater
from tests.deadlines import PROCESS_STARTS

PACKAGE = Path(repeater.__file__).parent
NAMES = {
    *("open_node", "open_server", "open_subscriber", "create_app"),
    *("Node", "NodeOptions", "ChannelOptions", "LimitOptions", "Publication", "StreamPosition"),
    *("ReplyError", "ErrorCode", "BrokerError", "IntakeFullError", "Disconnect", "RepeaterError"),
    *("Broker", "PresenceStore", "DenialStore", "Backend", "Events", "Transport", "MemoryBroker"),
    *("Receipt", "Rupture", "Feed", "ListenerBehindError", "ApplicationError", "DisconnectError"),
    *("BackendFunctions", "Caller", "ConnectRequest"),
    *("ConnectionGrant", "SubscriptionGrant", "PublicationGrant", "Renewal"),
}
HEAVY = {"quart", "quart_trio", "hypercorn", "pydantic", "sqlalchemy", "httpx", "cryptography"}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_names() -> None:
    """`dir(repeater)` shows exactly these and the version; each is there."""
    assert set(dir(repeater)) == set(repeater.__all__) == {*NAMES, "__version__"}
    for name in NAMES:
        assert getattr(repeater, name) is not None


def test_no_other_name() -> None:
    """What the face has not is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        repeater.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_has_one_home(name: str) -> None:
    """The module of the table defines it, and no other module but the face offers it as its own."""
    home = repeater._HOMES[name]
    assert getattr(repeater, name).__module__ == home
    assert getattr(import_module(home), name) is getattr(repeater, name)
    offering = {module for module, names in all_offered().items() if name in names}
    assert offering <= {"repeater", home}


@cache
def all_offered() -> dict[str, set[str]]:
    """What each module offers, by its name."""
    return {module_of(path): offered(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}


def offered(tree: ast.Module) -> set[str]:
    """The names in a module's `__all__`, and those that it imports as themselves (`A as A`)."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    return names


def test_type_checkers_see_the_same_homes() -> None:
    """The imports for type checkers and the table of homes say the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imports = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("repeater.")
        for alias in node.names
    }
    assert imports == repeater._HOMES


@pytest.mark.parametrize(
    "code",
    [
        "import repeater",
        "from repeater import open_node, Node, NodeOptions, Publication, MemoryBroker",
        "from repeater import open_subscriber",
        "from repeater import Broker, PresenceStore, DenialStore, Backend, Events, Transport",
        "import repeater.testing",
    ],
)
def test_what_is_not_used_is_not_loaded(code: str) -> None:
    """A program that needs no web server loads no web framework, no HTTP client, no database."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=PROCESS_STARTS,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & HEAVY


def test_exceptions_have_one_base() -> None:
    """Each exception among the names is a RepeaterError."""
    values = [getattr(repeater, name) for name in NAMES]
    found = {one for one in values if isinstance(one, type) and issubclass(one, Exception)}
    assert {repeater.ReplyError, repeater.BrokerError, repeater.IntakeFullError} < found
    assert all(issubclass(one, repeater.RepeaterError) for one in found)


@pytest.mark.parametrize(
    "home",
    [
        ("repeater.config", "ConfigError"),
        ("repeater.errors", "DisconnectError"),
        ("repeater.serving.errors", "ServeError"),
        ("repeater.subscriber", "SubscriberError"),
        ("repeater.subscriber", "SubscriptionError"),
        ("repeater.access.grants", "TokenExpiredError"),
        ("repeater.access.grants", "TokenInvalidError"),
    ],
    ids=lambda home: home[1],
)
def test_others_that_users_meet_have_it_too(home: tuple[str, str]) -> None:
    """So `except RepeaterError` catches what a part of the library raises on purpose."""
    module, name = home
    assert issubclass(getattr(import_module(module), name), repeater.RepeaterError)


def test_the_version_is_written_once() -> None:
    """The distribution has the version of the face, and pyproject.toml takes it from there."""
    assert metadata.version("repeater-server") == repeater.__version__
    text = (PACKAGE.parent.parent / "pyproject.toml").read_text()
    assert repeater.__version__ not in text.split("[build-system]")[1].split("dependencies")[0]
