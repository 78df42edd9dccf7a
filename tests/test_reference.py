"""The description of the HTTP interface is true, complete, and shown without the internet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from playwright.sync_api import Browser, expect

from repeater.api.methods import METHODS
from repeater.api.openapi import document
from repeater.api.stream import STREAM
from repeater.config import load_settings
from repeater.serving.server import open_server
from tests.browsing import Site
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.serving import Peer, peer, running

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "ignored_auth",
)
NDJSON = """
import schemathesis

@schemathesis.serializer("application/x-ndjson")
def lines(context, value):
    return (value if isinstance(value, str) else "").encode()
"""
AGAIN = b"GET /%s HTTP/1.1\r\nHost: t\r\nIf-None-Match: %s\r\n\r\n"
DESCRIPTION: dict[str, Any] = json.loads(document())


async def content(client: Peer, path: str) -> tuple[bytes, bytes]:
    """Head and body of what is at this path."""
    head, _, body = (await client.call("GET", path)).partition(b"\r\n\r\n")
    return head.lower(), body


def references(value: object) -> set[str]:
    """Every `$ref` below."""
    if isinstance(value, dict):
        own = {str(one) for name, one in value.items() if name == "$ref"}
        return own.union(*map(references, value.values()))
    return set[str]().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_call_is_described() -> None:
    """Each method of the table with its texts, its body, and the shape of its result."""
    schemas = DESCRIPTION["components"]["schemas"]
    paths = {f"/api/{name}" for name in (*METHODS, STREAM)}
    assert set(DESCRIPTION["paths"]) == {*paths, "/health", "/health/live", "/health/ready"}
    for name, method in METHODS.items():
        operation = DESCRIPTION["paths"][f"/api/{name}"]["post"]
        assert operation["summary"].endswith(".")
        assert not {"Raises", "section"} & set(re.findall("[A-Za-z]+", json.dumps(operation)))
        body = schemas[method.body.__name__]
        assert set(body["properties"]) >= set(body["required"])
        result = operation["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"][0]
        assert result.get("$ref") or result["properties"]["result"], f"what does {name} bring?"


def test_every_reference_leads_somewhere() -> None:
    """And nothing is described that is referred to from nowhere."""
    names = {one.removeprefix("#/components/schemas/") for one in references(DESCRIPTION)}
    assert names == set(DESCRIPTION["components"]["schemas"])


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Page, script, style and description come from here, and the page may load nothing else."""
    async with running(api_key="hunter2", dev=False) as server, peer(server) as client:
        head, page = await content(client, "/docs")
        assert b" 200 " in head
        assert b"default-src 'none'" in head
        assert b"content-type: text/html" in head
        assert b"//" not in page
        for path in re.findall(rb'(?:href|src)="([^":]+)"', page):
            head, body = await content(client, f"/{path.decode()}")
            assert b" 200 " in head, path
            assert b"https:" not in body
            assert b"hunter2" not in body
            tag = head.partition(b"\r\netag: ")[2].partition(b"\r\n")[0]
            await client.stream.send_all(AGAIN % (path, tag))
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 304"), path


@pytest.mark.slow
@pytest.mark.timeout(5 * PROCESS_STARTS)  # twenty seconds on an idle machine
async def test_calls_made_from_the_description(tmp_path: Path) -> None:
    """Hundreds of calls, right and wrong: no 5xx, only documented statuses and shapes."""
    settings = load_settings(api_key="secret", port=0)
    with trio.fail_after(4 * PROCESS_STARTS):
        async with open_server(settings) as server:
            result = await schemathesis(server.port, tmp_path)
    assert result.returncode == 0, result.stdout.decode()
    assert b"Tested: %d" % len(DESCRIPTION["paths"]) in result.stdout


async def schemathesis(port: int, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run it against a server of ours; everything that it says."""
    (folder / "ndjson_hooks.py").write_text(NDJSON)
    return await trio.run_process(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"http://127.0.0.1:{port}/openapi.json",
            *("--header", "X-API-Key: secret", "--checks", ",".join(CHECKS)),
            *("--generation-deterministic", "--max-examples", "20", "--no-color"),
            *("--request-timeout", str(LOOP_ANSWERS)),
        ],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "ndjson_hooks", "PYTHONPATH": str(folder)},
    )


def test_a_browser_shows_every_call(browser: Browser, tmp_path: Path) -> None:
    """In Chromium: each call with its fields, links that lead somewhere, and no error."""
    site = Site(tmp_path, "--dev")
    page = browser.new_page()
    try:
        site.start()
        errors: list[str] = []
        asked: list[str] = []
        page.on("console", lambda one: errors.append(one.text))
        page.on("pageerror", lambda one: errors.append(str(one)))
        page.on("request", lambda one: asked.append(one.url))
        page.goto(f"{site.url}/docs")
        expect(page.get_by_role("heading", name="POST /api/publish")).to_be_visible()
        expect(page.locator("#publish td code", has_text="idempotency_key")).to_be_visible()
        assert page.locator("main section h2 code").count() == len(DESCRIPTION["paths"])
        for link in page.locator("a[href^='#']").all():
            target = link.get_attribute("href") or ""
            assert page.locator(target).count() == 1, target
        assert all(url.startswith(site.url) for url in asked)
        assert errors == []
    finally:
        page.close()
        site.stop()
