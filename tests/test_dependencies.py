"""What is imported is declared, and the comments application is an extra that may be missing."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import starts_processes

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "service"
FILES = sorted((SOURCE / "repeater").rglob("*.py"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Of the command `repeater`, in a Python in which the libraries of the extra can't be imported.
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sqlalchemy", "argon2", "itsdangerous"} - {KEPT}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv[0] = "repeater"
from repeater.cli.main import main
main()
"""


def distribution(requirement: str) -> str:
    """The name in `pyjwt[crypto]>=2.12`, as package indexes compare names."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def declared(*extras: str) -> set[str]:
    """The distributions that installing the project with these extras asks for."""
    optional: dict[str, list[str]] = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(one for extra in extras for one in optional[extra])]
    return {distribution(one) for one in named}


def imported_by(file: Path) -> set[str]:
    """The modules that a file names in its imports, wherever in it they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


# It reads the metadata of everything that is installed.
_known = functools.cache(packages_distributions)


def distributions_of(file: Path) -> set[str]:
    """What has to be installed for the imports of a file."""
    tops = {name.partition(".")[0] for name in imported_by(file)}
    others = tops - sys.stdlib_module_names - {"repeater", "__future__"}
    return {distribution(_known()[name][0]) for name in others}


def name_of(file: Path) -> str:
    return str(file.relative_to(SOURCE))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_what_is_imported_is_declared(file: Path) -> None:
    """No module counts on a library that comes by way of another one."""
    extras: tuple[str, ...] = ()
    if "comments" in file.parent.parts:
        extras = ("comments", "postgres", "valkey")
    elif "valkey" in file.parent.parts:
        extras = ("valkey",)
    elif "postgres" in file.parent.parts or name_of(file) == "repeater/config/outgoing.py":
        extras = ("postgres",)  # which the setting `outbox` asks for before it imports anything
    assert not distributions_of(file) - declared(*extras)


def test_what_is_declared_is_imported() -> None:
    """No dependency is left of code that is gone."""
    used = {one for file in FILES for one in distributions_of(file)}
    assert declared("comments", "postgres", "valkey") - used == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nobody_but_the_server_knows_the_comments(file: Path) -> None:
    """`serving/extension.py` alone imports `repeater.comments`, besides the application itself."""
    if "comments" in file.parent.parts or name_of(file) == "repeater/serving/extension.py":
        return
    assert not any(name.startswith("repeater.comments") for name in imported_by(file))


def command(*arguments: str) -> list[str]:
    # Quart needs itsdangerous as well, so that it is there in any case.
    program = WITHOUT.replace("{KEPT}", "{'itsdangerous'}")
    return [sys.executable, "-c", program, *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=PROCESS_STARTS
    )


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """A running server's address, and the line that follows the one with it."""
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments), cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found
        yield found[0], process.stderr.readline()
    finally:
        process.terminate()
        process.communicate(timeout=LOOP_ANSWERS)
    assert process.returncode == 0


@starts_processes
def test_development_mode_starts_without_the_extra(tmp_path: Path) -> None:
    """One line says what to install; the front page leads to the console and the reference."""
    with served(tmp_path, "--dev") as (url, notice):
        assert "pip install 'repeater-server[comments]'" in notice
        with httpx.Client(base_url=url, trust_env=False, timeout=LOOP_ANSWERS) as client:
            page = client.get("/")
            assert page.status_code == 200
            links = set(re.findall(r'<a href="([^"]*)"', page.text))
            assert links == {"console", "docs"}
            for link in links:
                assert client.get(link).status_code == 200
            assert client.get("/api/comments").status_code == 404
    assert not (tmp_path / ".repeater").exists()


@starts_processes
@pytest.mark.parametrize("command", [("serve", "--dev", "--comments"), ("config", "check")])
def test_asked_for_without_the_extra_it_is_one_line(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--comments`, and `comments = true` in the file, say what to install and end with 1."""
    if command[0] == "config":
        (tmp_path / "repeater.toml").write_text("dev = true\ncomments = true\n")
    ended = run(tmp_path, *command)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "comments: the comments application is not installed" in line
    assert line.endswith("pip install 'repeater-server[comments]'")


@starts_processes
def test_its_settings_are_known_without_the_extra(tmp_path: Path) -> None:
    """`config init`, `config check` and `config show` have them like all others."""
    assert "#comments_database_url" in run(tmp_path, "config", "init").stdout
    (tmp_path / "repeater.toml").write_text('comments_cache_url = "redis://:hush@host/0"\n')
    assert run(tmp_path, "config", "check").returncode == 0
    assert 'comments_cache_url = "********"' in run(tmp_path, "config", "show").stdout
