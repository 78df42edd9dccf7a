"""Excuses for where one server refuses what the other takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from tests.differential.moments import Message, Messages, calls, each, end, said
from tests.differential.steps import Moment, Step

Excuse = Callable[[Moment], Moment]
Asked = Callable[[Step], object]
"""Whether a step asks for it."""


def refused(asked: Asked, *codes: int) -> Excuse:
    """Repeater's refusal with one of these codes, in a step that asks for it."""

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        return (our, our) if set(codes) & set(_codes(our)) else (their, our)

    return lambda moment: each(moment, changed) if asked(moment.step) else moment


def taken(asked: Asked, *codes: int) -> Excuse:
    """What Repeater does in place of Centrifugo's refusal with one of these codes."""

    def changed(their: Messages, our: Messages) -> tuple[Messages, Messages]:
        return (our, our) if set(codes) & set(_codes(their)) else (their, our)

    return lambda moment: each(moment, changed) if asked(moment.step) else moment


def command(method: str, fits: Callable[[Message], object]) -> Asked:
    """Steps with a client's command that fits."""
    return lambda step: any(fits(one) for _, one in said(step, method))


def call(method: str, fits: Callable[[Message], object]) -> Asked:
    """Steps with a back end's call that fits."""
    return lambda step: any(name == method and fits(one) for name, one in calls(step))


def _codes(messages: Messages) -> Iterator[int]:
    """The codes of errors and ends, and the HTTP statuses, in what was said."""
    yield from end(messages)[:1]
    for one in messages:
        if "status" in one:
            yield one["status"]
        for found in re.findall(r'"error": \{"code": (\d+)', json.dumps(one, default=repr)):
            yield int(found)
