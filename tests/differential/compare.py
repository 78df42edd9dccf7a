"""Compares what two servers said, and lets known kinds of differences pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.differential.kind import Kind
from tests.differential.kinds import KINDS
from tests.differential.steps import Conversation, Moment, Seen


class Verdict(NamedTuple):
    """What a comparison found."""

    kinds: frozenset[str]
    """The names of the deliberate differences that were met."""
    difference: Moment | None
    """The first difference that no kind explains, with the explained ones taken out."""


def compare(conversation: Conversation, theirs: Sequence[Seen], ours: Sequence[Seen]) -> Verdict:
    """Compare step by step, until a difference; behind some kinds nothing can be compared."""
    met = set[str]()
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        moment, kinds = explained(Moment(conversation, number, their, our))
        met |= {kind.name for kind in kinds}
        if not moment.equal:
            return Verdict(frozenset(met), moment)
        if any(kind.parts_ways for kind in kinds):
            break
    return Verdict(frozenset(met), None)


def explained(moment: Moment) -> tuple[Moment, Sequence[Kind]]:
    """The moment without what kinds explain, and these kinds; only what is needed of them."""
    used = list[Kind]()
    for kind in (*KINDS, *KINDS):  # some see what they are for when others are gone
        if moment.equal:
            break
        after = kind.excuse(moment)
        if (after.theirs, after.ours) != (moment.theirs, moment.ours):
            moment = after
            used.append(kind)
    return moment, used
