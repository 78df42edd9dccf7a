"""The ASGI application under servers on asyncio: it refuses, at once and in one sentence."""

from __future__ import annotations

import sys

import httpx
import pytest
import trio

from repeater.web.loop_check import NEEDS_TRIO
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.processes import serving, starts_processes

UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "repeater:create_app")
HYPERCORN = (sys.executable, "-m", "hypercorn", "-k", "asyncio", "--bind", "127.0.0.1:0")
STATED = (*HYPERCORN, "repeater.serving.application:create_app()")

pytestmark = starts_processes


@pytest.mark.parametrize(
    "command", [(*UVICORN, "--port", "0"), STATED], ids=["uvicorn", "hypercorn"]
)
async def test_the_server_does_not_start(command: tuple[str, ...]) -> None:
    """It ends, and says what to use instead. (Hypercorn's status is 0 all the same.)"""
    with trio.fail_after(PROCESS_STARTS):
        done = await trio.run_process(command, capture_stderr=True, check=False)
    assert NEEDS_TRIO in done.stderr.decode()


async def test_a_server_that_does_not_ask_answers_at_once() -> None:
    """Without the lifespan protocol each request is answered 500, and the log has the sentence."""
    async with serving("--lifespan", "off", command=UVICORN) as server:
        port = await server.port()
        async with httpx.AsyncClient(trust_env=False, timeout=LOOP_ANSWERS) as client:
            for path in ("/health", "/api/publish", "/no-such-page"):
                answer = await client.get(f"http://127.0.0.1:{port}{path}")
                assert answer.status_code == 500
                assert NEEDS_TRIO in await server.line("RuntimeError: ")
