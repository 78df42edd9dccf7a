"""The conformance suite of `DenialStore`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from repeater.access.denial_store import DenialStore
from repeater.access.grants import Denial
from repeater.errors import open_service_nursery
from repeater.testing.rules import expect, hold

OpenDenials = Callable[[int], AbstractAsyncContextManager[Sequence[DenialStore]]]
"""Opens so many stores that share what is kept; each call finds what an earlier one has kept.

At the beginning of a rule nothing is kept.
"""

_POLL: Final = 0.01
_DENIALS: Final = (
    Denial(user="ann"),
    Denial(user="a user with spaces, a line\nand \N{SNOWMAN}", expire_at=2_000_000_000),
    Denial(user="ann", issued_before=1_700_000_000),
    Denial(user="", issued_before=1_700_000_001, expire_at=2_000_000_001),
    Denial(token_id="user ann"),
    Denial(token_id="0 0", expire_at=2_000_000_002),
)


async def check_denials(open_denials: Callable[[], OpenDenials], *, most: int) -> None:
    """Check that a store keeps its contract.

    Args:
        open_denials: Gives what opens the stores of one rule, with nothing kept.
        most: The number of stores that can share what is kept, as nodes do: 1, or at least 2.

    Raises:
        AssertionError: a rule is broken; the text says which.
    """
    for rule in (*RULES, *(RULES_OF_MANY if most > 1 else ())):
        await hold((rule,), open_denials())


async def what_is_saved_is_kept(open_denials: OpenDenials) -> None:
    """A store has what was saved, of each kind, also when it is opened again."""
    async with open_denials(1) as (store,):
        expect("at first", list(await store.load()), [])
        for one in _DENIALS:
            await store.save(one)
    async with open_denials(1) as (store,):
        expect("kept", _in_order(await store.load()), _in_order(_DENIALS))


async def a_later_one_takes_its_place(open_denials: OpenDenials) -> None:
    """A denial with the same key replaces the earlier one; a lifted one removes it."""
    async with open_denials(1) as (store,):
        await store.load()
        await store.save(Denial(user="ann", expire_at=2_000_000_000))
        await store.save(Denial(user="ann"))
        await store.save(Denial(user="bob"))
        await store.save(Denial(user="bob", lifted=True))
        await store.save(Denial(token_id="never", lifted=True))
    async with open_denials(1) as (store,):
        expect("kept", list(await store.load()), [Denial(user="ann")])


async def what_expired_is_forgotten(open_denials: OpenDenials) -> None:
    """A sweep takes out what expired up to its time, and nothing else."""
    async with open_denials(1) as (store,):
        await store.load()
        for user, expire_at in (("ann", 100), ("bob", 101), ("cho", 0)):
            await store.save(Denial(user=user, expire_at=expire_at))
        await store.sweep(100)
    async with open_denials(1) as (store,):
        expect("kept", sorted(one.user for one in await store.load()), ["bob", "cho"])


async def others_are_told(open_denials: OpenDenials) -> None:
    """What one store saves the others apply, in its order; a later one loads it."""
    async with open_denials(2) as (first, second), open_service_nursery() as nursery:
        await first.load()
        await second.load()
        told = _Told()
        nursery.start_soon(first.run, _Told().apply)
        nursery.start_soon(second.run, told.apply)
        for one in _DENIALS:
            await first.save(one)
        lifted = Denial(user="ann", lifted=True)
        await first.save(lifted)
        await told.until(len(_DENIALS) + 1)
        expect("told", told.denials, [*_DENIALS, lifted])


async def all_end_alike(open_denials: OpenDenials) -> None:
    """When two change the same denials at the same time, both end with what is kept."""
    async with open_denials(2) as stores, open_service_nursery() as nursery:
        nodes = [_Told() for _ in stores]
        for store, node in zip(stores, nodes, strict=True):
            await store.load()
            nursery.start_soon(store.run, node.apply)

        async def change(number: int) -> None:
            for end in range(10):
                denial = Denial(user="ann", expire_at=2_000_000_000 + 10 * end + number)
                if (end + number) % 3 == 2:
                    denial = Denial(user="ann", lifted=True)
                await stores[number].save(denial)
                await nodes[number].apply(denial)

        async with trio.open_nursery() as changing:
            for number in range(len(stores)):
                changing.start_soon(change, number)
        async with open_denials(1) as (later,):
            kept = {one.key: one for one in await later.load()}
        while not all(node.in_force == kept for node in nodes):  # noqa: ASYNC110  # no event
            await trio.sleep(_POLL)


class _Told:
    """What a node does with the changes of others."""

    def __init__(self) -> None:
        self.denials: list[Denial] = []
        self.in_force: dict[tuple[str, str], Denial] = {}

    async def apply(self, denial: Denial) -> None:
        self.denials.append(denial)
        if denial.lifted:
            self.in_force.pop(denial.key, None)
        else:
            self.in_force[denial.key] = denial

    async def until(self, count: int) -> None:
        while len(self.denials) < count:  # noqa: ASYNC110  # there is no event behind a list
            await trio.sleep(_POLL)


def _in_order(denials: Sequence[Denial]) -> list[Denial]:
    return sorted(denials, key=lambda one: one.key)


RULES: Final = (what_is_saved_is_kept, a_later_one_takes_its_place, what_expired_is_forgotten)
RULES_OF_MANY: Final = (others_are_told, all_end_alike)
