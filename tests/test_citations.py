"""Docstrings cite the protocol by section: each citation leads to a heading of docs/protocol.md.

A citation is the word "section" or "appendix" with what follows it; several sections, and ranges,
are one citation. Sections of an RFC and of another specification are not the protocol's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
TRANSCRIPT = (ROOT / "tests" / "golden_transcript.txt").read_text(encoding="utf-8")
FOLDERS = ("service", "tests", "benchmarks", "docs")
KINDS = {".py", ".md", ".txt", ".j2"}

_NUMBER = r"\d+(?:\.\d+)*"
_HEADING = re.compile(rf"^##+ (?:Appendix (?P<letter>[A-Z])\.|(?P<number>{_NUMBER})\.?) ", re.M)
_CITATION = re.compile(
    r"(?P<owner>RFC \d+, |\b[a-z]+'s )?\b(?:sections?|appendix) "
    rf"(?P<cited>{_NUMBER}(?:(?:, | and | to ){_NUMBER})*|[A-Z]\b)",
    re.IGNORECASE,
)
# The end of a line, and in a Python comment the mark that begins the next one.
_LINE_BREAK = re.compile(r"\n\s*(?:# )?")

SECTIONS = frozenset(one["number"] or one["letter"] for one in _HEADING.finditer(PROTOCOL))


def unresolved(text: str) -> Iterator[str]:
    """The citations in a text that lead to no section of the protocol."""
    for one in _CITATION.finditer(_LINE_BREAK.sub(" ", text)):
        owner = (one["owner"] or "").lower()
        if owner.startswith("rfc ") or owner == "specification's ":
            continue
        cited = [part.upper() for part in re.split(", | and | to ", one["cited"])]
        if owner not in ("", "protocol's ") or not SECTIONS.issuperset(cited):
            yield one[0]


def sources() -> list[Path]:
    """The files that may cite, this one left out: it cites wrongly below."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
    files += ROOT.glob("*.md")
    own = [file for file in files if "node_modules" not in file.parts]
    return sorted(file for file in own if file.suffix in KINDS and file != Path(__file__))


def test_the_headings_are_read() -> None:
    """The protocol has sections 1 to 21, subsections and appendix A."""
    assert {str(number) for number in range(1, 22)} <= SECTIONS
    assert {"2.5", "4.10", "9.4", "18.4", "A"} <= SECTIONS


def test_every_citation_leads_to_a_section() -> None:
    """Nobody cites a section that docs/protocol.md does not have."""
    wrong = {
        str(file.relative_to(ROOT)): found
        for file in sources()
        if (found := list(unresolved(file.read_text(encoding="utf-8"))))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "(protocol, section 9.7)",
        "(protocol, sections 9.2 to 9.9)",
        "(protocol, sections 4.9 and 99)",
        "as the comment says (protocol,\n    # section 30)",
        "(section 4.11)",
        "Appendix B",
        "the design's section 5",
    ],
)
def test_a_wrong_citation_is_found(text: str) -> None:
    """Wherever it stands in a list or range, and across the lines of a comment."""
    assert len(list(unresolved(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "(protocol, section 9.4)",
        "(protocol, sections 9.2 to\n    9.5)",
        "(sections 3.3, 4.1 and 13)",
        "byte for byte appendix A's line",
        "(RFC 6455, section 5.4)",
        "the specification's section 99",
        "a section without a number",
    ],
)
def test_a_right_citation_passes(text: str) -> None:
    """So do the sections of other documents."""
    assert list(unresolved(text)) == []


def test_the_transcript_is_the_appendix() -> None:
    """Each line of the golden transcript stands in appendix A, those with a star left out."""
    appendix = PROTOCOL.partition("## Appendix A.")[2].splitlines()
    scenes = TRANSCRIPT.partition("\n== ")[2].splitlines()
    lines = [line for line in scenes if line.startswith(("C ", "S "))]
    assert len(lines) > 20
    assert set(lines) <= set(appendix)
