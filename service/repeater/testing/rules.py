"""How a conformance suite is run: rule after rule, and the one that is broken is named.

A rule is an async function whose docstring states a fact. It calls `expect`, since an `assert` of
a library says nothing of its values. No rule knows a test framework.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

_PATIENCE: Final = 60.0
"""Seconds for one rule. No rule takes a second of real time, but those that wait for an expiry."""


def expect(what: str, found: object, wanted: object) -> None:
    """Compare what an implementation did with what the contract says.

    Raises:
        AssertionError: they differ; the text holds both.
    """
    if found != wanted:
        raise AssertionError(f"{what}: expected {wanted!r}, found {found!r}")


async def hold(rules: Sequence[Callable[..., Awaitable[None]]], *subject: Any) -> None:
    """Check that each rule holds for a subject, one after the other.

    Raises:
        AssertionError: the first rule that does not; the text begins with its sentence.
    """
    for rule in rules:
        sentence = " ".join((rule.__doc__ or rule.__name__).split())
        try:
            with trio.fail_after(_PATIENCE):
                await rule(*subject)
        except AssertionError as error:
            raise AssertionError(f"{sentence} {error}") from error
        except trio.TooSlowError:
            message = f"{sentence} Nothing came of it within {_PATIENCE:.0f} seconds."
            raise AssertionError(message) from None
        except BaseExceptionGroup as group:
            broken = group.subgroup(AssertionError)  # in a task of the rule
            if broken is None:
                group.add_note(f"while this rule was checked: {sentence}")
                raise
            raise AssertionError(f"{sentence} {_first(broken)}") from group
        except BaseException as error:
            error.add_note(f"while this rule was checked: {sentence}")
            raise


async def hold_side_by_side(rules: Sequence[Callable[..., Awaitable[None]]], *subject: Any) -> None:
    """Check rules that wait for some seconds each, all at the same time.

    Raises:
        AssertionError: one that does not hold; the text begins with its sentence.
    """
    try:
        async with trio.open_nursery() as nursery:
            for rule in rules:
                nursery.start_soon(hold, [rule], *subject)
    except BaseExceptionGroup as group:
        broken = group.subgroup(AssertionError)
        if broken is None:
            raise
        raise _first(broken) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
