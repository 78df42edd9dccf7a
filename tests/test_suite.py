"""What holds for the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(path: Path) -> Iterator[str]:
    """The modules that this file imports from, wherever it does; those in its texts as well."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = (line.split() for line in node.value.splitlines())
            yield from (words[1] for words in lines if words[:1] == ["from"] and len(words) > 3)


def test_no_test_module_is_imported() -> None:
    """What tests share is in helper modules and conftest: a test may move without its readers."""
    files = list(TESTS.rglob("*.py"))
    modules = {path.stem for path in files if path.stem.startswith("test_")}
    found = {
        (path.name, name)
        for path in files
        for name in imported(path)
        if name.startswith("tests.") and name.split(".")[-1] in modules
    }
    assert found == set()


def test_every_test_ends_before_the_run_is_ended(request: pytest.FixtureRequest) -> None:
    """The faulthandler's deadline ends the whole run, so each test's own deadline comes first."""
    config = request.config
    last = float(config.getini("faulthandler_timeout"))
    times = {float(config.getini("timeout"))} | {
        float(mark.args[0])
        for item in request.session.items
        for mark in item.iter_markers("timeout")
    }
    assert config.getini("faulthandler_exit_on_timeout")
    assert max(times) < last
