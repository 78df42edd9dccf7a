"""README.md and docs/library.md: the programs in them run as they are written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from benchmarks.ports import free_port
from repeater.subscriber import open_subscriber
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import starts_processes

ROOT = Path(__file__).parent.parent
README, LIBRARY = ROOT / "README.md", ROOT / "docs" / "library.md"
BLOCK = re.compile(r"^```python *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = starts_processes


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    """It starts a server, subscribes to it, and prints the event; only its port is another one."""
    ((_, program),) = BLOCK.findall(README.read_text())
    assert "8000" in program
    file = tmp_path / "example.py"
    file.write_text(program.replace("8000", str(free_port())))
    done = subprocess.run(
        [sys.executable, "-W", "error", file.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROCESS_STARTS,
    )
    assert done.stdout == "news {'text': 'hello'}\n", done.stderr


def program_of(name: str) -> str:
    """The program of docs/library.md with this name."""
    return str(next(text for called, text in BLOCK.findall(LIBRARY.read_text()) if called == name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("feed.py", "news hello\nchat how do you do\n"),
        ("permissions.py", "hello, Ann\n"),
    ],
    ids=["feed.py", "permissions.py"],
)
def test_what_a_program_of_the_page_says(name: str, said: str, tmp_path: Path) -> None:
    """It runs as it is written, and ends."""
    (tmp_path / name).write_text(program_of(name))
    done = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROCESS_STARTS,
    )
    assert done.stdout == said, done.stderr
    assert done.returncode == 0


async def test_the_server_of_the_page(tmp_path: Path) -> None:
    """Its own page is served, and a subscriber hears its events."""
    program = program_of("server.py")
    (tmp_path / "server.py").write_text(program)
    process = await trio.lowlevel.open_process(
        [sys.executable, "server.py", "0"], cwd=tmp_path, stdout=subprocess.PIPE
    )
    try:
        with trio.fail_after(PROCESS_STARTS):
            assert process.stdout is not None
            url = (await process.stdout.receive_some()).decode().strip()
        with trio.fail_after(LOOP_ANSWERS):
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(url)).text == "a page of my own"
            async with open_subscriber(url, ["time"]) as events:
                assert isinstance((await anext(events)).data, int)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("page", [README, LIBRARY], ids=lambda page: page.name)
def test_every_example_imports_what_there_is(page: Path) -> None:
    """Each name that an example imports from Repeater is there."""
    for _, text in BLOCK.findall(page.read_text()):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("repeater"):
                module = __import__(str(node.module), fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name
