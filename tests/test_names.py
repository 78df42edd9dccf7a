"""The package has one name, `repeater`. `service/` is its folder and not a package."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# This file, and the one that shows that an installed wheel has no such package.
ALLOWED = {Path(__file__), ROOT / "tests" / "wheel" / "test_installed.py"}
LEFT_OUT = {".git", ".venv", "node_modules", "dist", "build"}
SUFFIXES = {".py", ".md", ".toml", ".j2", ".js", ".mjs", ".json", ".yml", ".yaml", ".txt", ""}

# `import service`, `from service import`, `python -m service`, "service.node" as a module's name.
BY_FOLDER = re.compile(
    r"""\b(?:import|from)\s+service\b(?!/)
    | -m["', ]+service\b
    | (?<![\w./-])service\.(?:web|node|cli|testing|subscriber|comments|config)\b
    """,
    re.VERBOSE,
)


def files() -> list[Path]:
    """Every text file of the project."""
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.suffix in SUFFIXES
        and path.is_file()
        and path not in ALLOWED
        and not any(
            part in LEFT_OUT or part.startswith((".venv", ".py")) or part.endswith("_cache")
            for part in path.relative_to(ROOT).parts
        )
    ]


def test_nothing_imports_the_folder() -> None:
    """No module, page, recipe or test uses `service` as the name of a package."""
    found = []
    for path in files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if BY_FOLDER.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "from service import open_node",
        "import service",
        '[sys.executable, "-m", "service", "serve"]',
        "python -m service serve",
        "hypercorn -k trio 'service.web.app:create_app()'",
    ],
)
def test_a_use_of_the_folder_is_found(line: str) -> None:
    """The pattern above knows each form."""
    assert BY_FOLDER.search(line)


def test_the_folder_is_not_a_package() -> None:
    """`service/` has no `__init__.py`, and the package is found under one name only."""
    assert not (ROOT / "service" / "__init__.py").exists()
    found = importlib.util.find_spec("repeater")
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin) == ROOT / "service" / "repeater" / "__init__.py"
