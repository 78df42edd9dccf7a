"""The table of SDKs in docs/protocol.md says what these tests drive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.sdk.clients import CLIENTS, GO, HERE, JAVA

ROOT = HERE.parent.parent
NAMES = {
    "python": "centrifuge-python",
    "node": "centrifuge",
    "chromium": "centrifuge",
    "go": "centrifuge-go",
    "java": "centrifuge-java",
}


@pytest.fixture
def workers() -> None:
    """No server runs here."""


def rows() -> list[list[str]]:
    """The cells of the table: SDK, version, where it runs, JSON, Protobuf, what it lacks."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = text.partition("| SDK | version | runs in |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def pinned(pins: Path, pattern: str) -> str:
    (version,) = re.findall(pattern, pins.read_text(encoding="utf-8"))
    return str(version)


def test_the_versions_are_those_that_are_installed() -> None:
    """Of each SDK the pinned one."""
    packages = json.loads((HERE / "package.json").read_text())["dependencies"]
    wanted = {
        "centrifuge": packages["centrifuge"],
        "centrifuge-python": pinned(ROOT / "requirements-dev.txt", r"centrifuge-python==(\S+)"),
        "centrifuge-go": pinned(GO / "go.mod", r"centrifugal/centrifuge-go v(\S+)"),
        "centrifuge-java": pinned(
            JAVA / "pom.xml", r"<artifactId>centrifuge-java</artifactId>\s*<version>([^<]+)<"
        ),
    }
    found = {row[0].split("`")[1]: row[1] for row in rows() if row[1]}
    assert found == wanted


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_has_its_cell(name: str) -> None:
    """It says what the SDK lacks, and whether this format goes on with workers, too."""
    client = CLIENTS[name]
    runtime = {"node": "Node", "chromium": "Chromium"}.get(client.sdk, "")
    (row,) = (
        row for row in rows() if row[0].startswith(f"`{NAMES[client.sdk]}`") and runtime in row[2]
    )
    told = {lack.partition(" (")[0] for lack in row[5].split(", ") if lack}
    assert told == client.lacks
    cell = row[4] if client.protobuf else row[3]
    assert "WebSocket" in cell
    assert ("two workers" in cell) == client.workers
