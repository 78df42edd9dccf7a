"""What holds for the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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
