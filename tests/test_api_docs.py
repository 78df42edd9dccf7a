"""docs/api.md: every method is there, and every example works as it stands."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import httpx
import pytest
import trio

from repeater.api.answers import api_error
from repeater.api.methods import METHODS
from repeater.api.stream import STREAM
from repeater.cli.main import main
from repeater.config import load_settings
from repeater.errors import ErrorCode, ReplyError
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
EXAMPLES = [
    text.replace("\\\n", " ")
    for text in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
BASE = "http://127.0.0.1:8000"


def parsed(example: str) -> tuple[dict[str, str], str, str]:
    """Headers, body and URL of a curl command; fails for options that it does not know."""
    command, *words = shlex.split(example)
    assert command == "curl"
    headers, body, url = {}, "", ""
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = words.pop(0)
        else:
            assert word.startswith(BASE)
            url = word
    return headers, body, url


async def test_every_example_works() -> None:
    """On a fresh server each gets a result, but the one that can't."""
    settings = load_settings(dev=True, port=0, channel={"presence": True})
    with trio.fail_after(LOOP_ANSWERS):
        async with open_server(settings) as server, httpx.AsyncClient() as client:
            for example in EXAMPLES:
                headers, body, url = parsed(example)
                url = url.replace(BASE, f"http://127.0.0.1:{server.port}")
                answer = await client.post(url, content=body, headers=headers)
                assert answer.status_code == 200, example
                (kind,) = answer.json()
                expected = {"rpc": "error", "batch": "replies"}
                assert kind == expected.get(url.rpartition("/")[2], "result"), example
                if kind == "replies":
                    assert "error" not in str(answer.json())


def test_every_method_has_its_section_and_example() -> None:
    """And a removed method has no section."""
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == METHODS.keys() | {STREAM}
    shown = {parsed(example)[2].removeprefix(f"{BASE}/api/") for example in EXAMPLES}
    assert shown == METHODS.keys() | {STREAM}


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_described(name: str) -> None:
    """In its method's section, or in the part that its group has in common."""
    section = PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    shared = {"broadcast": "publish", "presence_stats": "presence", "history_remove": "presence"}
    if name in shared:
        section += PAGE.partition(f"\n### {shared[name]}\n")[2].partition("\n### ")[0]
    common = {"user", "client", "session"}
    schema = METHODS[name].fields
    for field in schema - common:
        assert f"`{field}`" in section or f'"{field}"' in section, field


def test_every_code_has_its_text() -> None:
    """As the server says it."""
    rows = re.findall(r"^\| (\d{3}) \| ([a-z ]+) \|", PAGE, re.MULTILINE)
    assert {int(code) for code, _ in rows} == {100, 102, 104, 106, 107, 108, 111, 112}
    for code, message in rows:
        assert api_error(ReplyError(ErrorCode(int(code)))).message == message


def test_every_command_is_there() -> None:
    """Those of the command line that the page names."""
    names = re.search(r"^`repeater publish`(.*?)make\nthese", PAGE, re.MULTILINE | re.DOTALL)
    assert names is not None
    for name in re.findall(r"`(\w+)`", names[1]):
        assert name in main.commands


def test_the_dates_of_the_examples_are_to_come() -> None:
    """An expiry in the past would end connections."""
    times = [
        json.loads(body)["expire_at"] for _, body, _ in map(parsed, EXAMPLES) if "expire_at" in body
    ]
    assert times
    assert min(times) > time.time()
