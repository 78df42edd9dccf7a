"""Repeater and Centrifugo, told the same; and the comparison itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.deadlines import run_in_real_time
from tests.differential.compare import Verdict, compare
from tests.differential.document import documented
from tests.differential.generator import conversation
from tests.differential.kinds import KINDS
from tests.differential.run import running
from tests.differential.smallest import smallest
from tests.differential.steps import Conversation, Moment, Seen

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"
SEEDS = range(1, 201)
"""With the examples of the kinds, these are fewer than 300 conversations; they take some 20 s."""
_TIMES = 5  # an example is held at most so often until it shows its kind
CENTRIFUGO = shutil.which("centrifugo")
needs_centrifugo = pytest.mark.skipif(CENTRIFUGO is None, reason="no centrifugo on the PATH")


@needs_centrifugo
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_conversations_are_the_same_with_both(autojump_clock: MockClock) -> None:
    """Nothing differs in conversations from seeds but what is meant to."""
    run_in_real_time(autojump_clock)
    assert CENTRIFUGO is not None
    async with running(CENTRIFUGO) as runner:
        found = await runner.verdicts([conversation(seed) for seed in SEEDS])
        differing = {one.name: verdict for one, verdict in found if verdict.difference}
    assert not differing, "`just differential --seed` tells the smallest conversation that differs"


@needs_centrifugo
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_each_kind_of_difference_shows(autojump_clock: MockClock) -> None:
    """The example of each kind differs by this kind, and by nothing that is not meant to."""
    run_in_real_time(autojump_clock)
    assert CENTRIFUGO is not None
    left = {one.name: Conversation(one.name, one.codec, one.example) for one in KINDS}
    async with running(CENTRIFUGO) as runner:
        # Some of Centrifugo's commands race with its disconnects: such a kind shows mostly.
        for _ in range(_TIMES):
            for example, verdict in await runner.verdicts(list(left.values())):
                assert verdict.difference is None, example.name
                if example.name in verdict.kinds:
                    del left[example.name]
    assert not left


def test_the_page_has_all_kinds() -> None:
    """`just docs` wrote the table as the kinds are now."""
    assert documented(PAGE.read_text()) == PAGE.read_text()


def test_kinds_have_names_of_their_own() -> None:
    """Two kinds never have the same name."""
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_a_seed_is_one_conversation() -> None:
    """The same seed gives the same conversation; others give others."""
    assert conversation(7) == conversation(7)
    assert len({str(conversation(seed).steps) for seed in range(100)}) == 100
    assert {conversation(seed).codec for seed in range(100)} == {"json", "protobuf"}


PUBLISHED = {"id": 2, "publish": {}}
PUSHED = {"push": {"channel": "c", "pub": {"data": 1}}}
OTHER = {"push": {"channel": "c", "pub": {"data": 2}}}
PUBLISH = Conversation(
    "publish",
    "json",
    [
        {"open": "a", "way": "websocket", "connect": {}},
        {"say": "a", "commands": [{"id": 2, "publish": {"channel": "c", "data": 1}}]},
    ],
)


@pytest.mark.parametrize(
    ("theirs", "ours", "kinds", "differs"),
    [
        ([PUBLISHED], [PUBLISHED], set(), False),
        ([PUSHED, PUBLISHED], [PUBLISHED, PUSHED], {"replies-first"}, False),
        ([PUSHED, PUBLISHED], [PUBLISHED, OTHER], {"replies-first"}, True),
        ([PUSHED, OTHER, PUBLISHED], [PUBLISHED, OTHER, PUSHED], {"replies-first"}, True),
        ([PUBLISHED, PUSHED], [PUBLISHED], set(), True),
        ([PUBLISHED], [{"closed": [3501, "bad request"]}], set(), True),
    ],
)
def test_a_kind_explains_nothing_else(
    theirs: list[dict[str, object]], ours: list[dict[str, object]], kinds: set[str], differs: bool
) -> None:
    """What is said in another order is explained, what is said otherwise or not at all is not."""
    verdict = compare(PUBLISH, [{}, {"a": theirs}], [{}, {"a": ours}])
    assert verdict.kinds == kinds
    assert (verdict.difference is not None) is differs


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_excuse_leaves_what_it_is_not_for(kind: object) -> None:
    """No kind lets a reply pass that one of the servers owes."""
    seen: Seen = {"a": [{"id": 2, "history": {"publications": [], "offset": 3, "epoch": "e"}}]}
    asked = {"say": "a", "commands": [{"id": 2, "history": {"channel": "hist:x", "limit": 1}}]}
    moment = Moment(Conversation("history", "json", [asked]), 0, seen, {})
    assert kind in KINDS
    after = next(one for one in KINDS if one is kind).excuse(moment)
    assert after.theirs != after.ours


async def test_the_smallest_conversation() -> None:
    """What a difference does not need is left out."""
    whole = conversation(3)
    there = next(n for n, step in enumerate(whole.steps) if step.get("call") == "publish")

    async def judge(one: Conversation) -> Verdict:
        last = len(one.steps) - 1
        differs = one.steps[last].get("call") == "publish"
        return Verdict(frozenset(), Moment(one, last, {}, {"api": [{}]}) if differs else None)

    verdict = Verdict(frozenset(), Moment(whole, there, {}, {"api": [{}]}))
    found, _ = await smallest(whole, verdict, judge)
    assert [step.get("call") for step in found.steps] == ["publish"]
