"""docs/tutorial.md: its code, as it stands there, runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio
from trio_websocket import open_websocket_url

from benchmarks.ports import free_port
from tests.deadlines import PROCESS_STARTS
from tests.processes import starts_processes

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = starts_processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tutorial's files: blocks that name the same file are its parts, in order."""
    parts: dict[str, list[str]] = {}
    for name, text in BLOCK.findall(PAGE.read_text()):
        parts.setdefault(name, []).append(text)
    assert set(parts) == {"guestbook.py", "page.html", "test_guestbook.py"}
    for name, texts in parts.items():
        (tmp_path / name).write_text("\n\n".join(texts))
    return tmp_path


def test_the_tutorial_s_test_passes(folder: Path) -> None:
    """By the command that the page gives."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "trio_mode=true",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PROCESS_STARTS
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


async def test_the_guestbook_runs(folder: Path) -> None:
    """A comment posted by a form is in the list and arrives at a page; too long a one does not."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    process = await trio.lowlevel.open_process(
        [sys.executable, "guestbook.py", str(port)], cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(PROCESS_STARTS):
            async with httpx.AsyncClient(base_url=base) as client:
                while True:
                    try:
                        assert "Guestbook" in (await client.get("/")).text
                        break
                    except httpx.TransportError:
                        await trio.sleep(0.1)
                async with open_websocket_url(f"ws://127.0.0.1:{port}/ws?channel=comments") as page:
                    answer = await client.post("/comments", data={"text": " hello <b> "})
                    assert answer.status_code == 302
                    assert await page.get_message() == '{"id": 1, "text": "hello <b>"}'
                answer = await client.post("/comments", data={"text": "x" * 2_001})
                assert answer.status_code == 400
                comments = (await client.get("/comments")).json()
                assert comments == [{"id": 1, "text": "hello <b>"}]
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
