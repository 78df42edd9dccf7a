"""Nodes of a cluster on an engine in this process, random faults, and what must hold all the same.

Members, control, denials and places are the real code, with the real scripts; the engine and the
network are `tests.memory_network`. A world is made from its seed alone, and is the same each time.

The promise, once the faults have ended: all nodes that live know each other and nobody else; what
is to be done for a node that died is done, and nothing for one that the engine could always hear;
all have the same denials, and none that was acknowledged is missing; the engine has the counts that
the nodes have. At all times an answer is the right one, and a question is carried out once.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import msgspec
import pytest
import trio

from repeater.access.grants import Denial
from repeater.brokers.control import Question, UnknownMemberError
from repeater.cluster.denial_log import denial_of
from repeater.errors import BrokerError
from tests.memory_clusters import MemoryCluster, MemoryNode, open_memory_cluster
from tests.memory_network import Fates
from tests.worlds import run_life

USERS: Final = ("ann", "bob", "cho")
FATES: Final = Fates(lost=0.05, doubled=0.05, late=0.05)
_ALL_HEARD: Final = 4.0  # seconds of its own cuts after which the others may take a node for lost
_SETTLING: Final = 60.0  # seconds: a duty whose node died is another one's after 30, and may take 5
_LATEST: Final = 3_000.0  # seconds after which a world that does not end is given up
_FOREVER: Final = 10**9


class Change(msgspec.Struct):
    """A denial that a node was to save."""

    denial: Denial
    author: MemoryNode
    begin: float
    end: float = float("inf")
    """When it was acknowledged; infinity: never, and it may be in force or not."""

    @property
    def acknowledged(self) -> bool:
        return self.end < _FOREVER


class World:
    """One life of some nodes and an engine, from a seed."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.seed = seed
        self.cluster: MemoryCluster
        self.nursery: trio.Nursery
        self.dead: list[MemoryNode] = []
        self.changes: list[Change] = []
        self.cuts: defaultdict[str, float] = defaultdict(float)
        """Seconds for which a node alone was cut off, by its name."""
        self.held: list[tuple[MemoryNode, str]] = []
        self.has_lost_data = False
        self.questions = 0
        self.answers = 0
        self.refused = 0

    async def run(self) -> None:
        """Live, and check the promise; raises an `AssertionError` where it is broken."""
        with trio.fail_after(_LATEST):
            async with open_memory_cluster(self.seed) as self.cluster:
                for _ in range(self.rnd.choice((2, 3, 4))):
                    await self._start()
                await trio.sleep(self.rnd.choice((0.0, 15.0)))
                self.cluster.network.fates = FATES
                async with trio.open_nursery() as self.nursery:
                    for _ in range(self.rnd.randrange(10, 40)):
                        await self._act()
                        await trio.sleep(self.rnd.choice((0.0, 0.01, 0.2, 1.0, 4.0)))
                self.cluster.network.fates = Fates()
                for node in self.living:
                    node.duty_fails = False
                await trio.sleep(_SETTLING)
                await self._check()

    @property
    def living(self) -> list[MemoryNode]:
        """The nodes that run."""
        return [one for one in self.cluster.nodes if not one.ended.is_set()]

    async def _act(self) -> None:
        rnd, network = self.rnd, self.cluster.network
        pick = rnd.random()
        if pick < 0.30:
            self.nursery.start_soon(self._ask, rnd.choice(self.living))
        elif pick < 0.55:
            self.nursery.start_soon(self._deny, rnd.choice(self.living))
        elif pick < 0.65:
            self.nursery.start_soon(self._move_place)
        elif pick < 0.72:
            node = rnd.choice(self.living)
            network.cut(node.name)
        elif pick < 0.79:
            self.nursery.start_soon(self._cut, rnd.choice(self.living))
        elif pick < 0.84:
            await self._end_one()
        elif pick < 0.88:
            await self._start()
        elif pick < 0.91:
            network.go_down()
            await trio.sleep(rnd.choice((0.5, 3.0, 8.0, 12.0, 20.0)))
            network.come_back()
        elif pick < 0.93:
            network.pause()
            await trio.sleep(rnd.choice((0.5, 3.0, 12.0)))
            network.resume()
        elif pick < 0.95:
            self._lose_data()
        elif pick < 0.96:
            self.cluster.ahead += rnd.choice((1.0, 30.0))
        elif pick < 0.97:
            network.valkey.flush_scripts()
        else:
            self._spoil()

    async def _start(self) -> None:
        if len(self.living) < 5:
            node = await self.cluster.start()
            node.duty_fails = self.rnd.random() < 0.3
            node.duty_lasts = self.rnd.choice((0.0, 5.0))

    async def _end_one(self) -> None:
        """A node ends in order, or as by a kill -9, as long as another one is left."""
        if len(self.living) < 2:
            return
        node = self.rnd.choice(self.living)
        self.held = [one for one in self.held if one[0] is not node]
        if self.rnd.random() < 0.5:
            self.dead.append(node)
            await node.kill()
        else:
            # Nobody hears a goodbye that is lost: then it is lost, too.
            await node.leave()

    async def _cut(self, node: MemoryNode) -> None:
        seconds = self.rnd.choice((0.5, 2.0, 6.0, 15.0, 25.0))
        self.cuts[node.name] += seconds
        node.cut()
        await trio.sleep(seconds)
        if node not in self.dead:
            node.mend()

    async def _ask(self, asker: MemoryNode) -> None:
        """Ask all others, or one; who answers has carried the question out."""
        self.questions += 1
        question = Question(f"{self.questions}", b"%d" % self.questions)
        control = asker.parts.control
        found: list[tuple[str, object]] = []
        if self.rnd.random() < 0.7:
            found = [(one.member.name, one.answer) for one in await control.ask_others(question)]
        else:
            other = self.rnd.choice(self.cluster.nodes)
            try:
                found = [(other.name, await control.ask(other.id, question))]
            except (BrokerError, UnknownMemberError) as error:
                found = [(other.name, error)]
        for name, answer in found:
            if isinstance(answer, bytes):
                self.answers += 1
                assert answer == question.body + b" from " + name.encode(), answer

    async def _deny(self, author: MemoryNode) -> None:
        user = self.rnd.choice(USERS)
        denial = Denial(user=user, expire_at=_FOREVER * 3 + len(self.changes))
        if self.rnd.random() < 0.3:
            denial = Denial(user=user, lifted=True)
        change = Change(denial, author, trio.current_time())
        self.changes.append(change)
        try:
            await author.deny(denial)
            change.end = trio.current_time()
        except BrokerError:
            self.refused += 1

    async def _move_place(self) -> None:
        """A connection of a user begins or ends."""
        if self.held and self.rnd.random() < 0.4:
            node, user = self.held.pop(self.rnd.randrange(len(self.held)))
            node.parts.places.give_back(user)
            return
        node, user = self.rnd.choice(self.living), self.rnd.choice(USERS)
        if await node.parts.places.take(user, 3):
            if node.ended.is_set():
                return
            self.held.append((node, user))

    def _lose_data(self) -> None:
        valkey = self.cluster.network.valkey
        self.has_lost_data = True
        if self.rnd.random() < 0.3:
            valkey.data.clear()
            valkey.expiry.clear()
        else:
            self.cluster.network.fail_over(self.rnd.choice((0, 1, 2, 5, 20)))

    def _spoil(self) -> None:
        network, rnd = self.cluster.network, self.rnd
        channel = rnd.choice(("news", "control", f"control:{rnd.choice(self.cluster.nodes).id}"))
        payload = rnd.choice((b"", b"\xff", b"1 x", b"\x93\x01\x02", b"9" * 30 + b" x"))
        network.publish(f"repeater:{channel}".encode(), payload)

    # What must hold.

    async def _check(self) -> None:
        living = self.living
        names = {node.name for node in living}
        for node in living:
            assert node.knows == names, f"{node.name} knows {node.knows}, not {names}"
        self._check_losses(names)
        for node in self.cluster.nodes:
            twice = [one for one, times in Counter(node.asked).items() if times > 1]
            assert not twice, f"{node.name} has carried {twice} out twice"
        self._check_denials(living)
        for node in living:
            self._check_places(node)

    def _check_losses(self, living: Iterable[str]) -> None:
        settled = Counter(lost for lost, _ in self.cluster.settled)
        if not self.has_lost_data:
            for node in self.dead:
                assert settled[node.name], f"nothing was done for {node.name}, which died"
        for name in living:
            if self.cuts[name] < _ALL_HEARD:
                assert not settled[name], f"{name} was taken for lost, and was always there"

    def _check_denials(self, living: list[MemoryNode]) -> None:
        first, *others = living
        for node in others:
            assert node.denied == first.denied, f"{node.name}: {node.denied}, {first.denied}"
        kept: Any = self.cluster.network.valkey.data.get(b"repeater:denials", {})
        in_engine = {one.key: one for one in (denial_of(*pair) for pair in kept.items())}
        assert in_engine == first.denied, f"the engine has {in_engine}, not {first.denied}"
        for user in USERS:
            self._check_user(user, first.denied.get(("user", user)))

    def _check_user(self, user: str, found: Denial | None) -> None:
        changes = [one for one in self.changes if one.denial.user == user]
        lasting = [
            one
            for one in changes
            if not any(other.acknowledged and other.begin > one.end for other in changes)
        ]
        wanted = [None if one.denial.lifted else one.denial for one in lasting]
        if not any(one.acknowledged for one in changes):
            wanted.append(None)
        if self.has_lost_data:
            # What was lifted may be in force again. What was put in force stays, as long as its
            # author lives, or something wider does.
            if len(lasting) != 1:
                return
            (last,) = lasting
            if not last.acknowledged or last.denial.lifted or last.author.ended.is_set():
                return
            assert found is not None, f"{user} was blocked: {last.denial}"
            assert found.expire_at >= last.denial.expire_at, f"{user}: {found}, {last.denial}"
            return
        assert found in wanted, f"{user}: {found}, and not one of {wanted}"

    def _check_places(self, node: MemoryNode) -> None:
        held = Counter(user for one, user in self.held if one is node)
        key = f"repeater:places:{node.id}".encode()
        data: Any = self.cluster.network.valkey._get(key, object) or {}
        found = {user.decode(): int(number) for user, number in data.items()}
        if held:
            held[""] = held.total()  # all together
        assert found == dict(held), f"{node.name}: the engine has {found}, not {dict(held)}"


@contextmanager
def _patched() -> Iterator[None]:
    """Ids that are the same each time, and connections that last."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("opening", "denials"):
            patch.setattr(f"repeater.cluster.{module}.random_id", lambda: f"id{next(numbers)}")
        # Each connection looks for a silent server so often. One look would end a connection
        # whose only request was sent just before.
        patch.setattr("repeater.valkey.primary._TICKS", 2)
        yield


def run_world(seed: int) -> World:
    """Run one world on a clock of its own; a mistake names the seed."""
    world = World(seed)
    try:
        with _patched():
            run_life(world.run, seed)
    except BaseException as error:
        raise AssertionError(f"world {seed}: {type(error).__name__}: {error}") from error
    return world


def sums(worlds: Iterable[World]) -> dict[str, int]:
    """What happened in some worlds, in all."""
    of: Counter[str] = Counter()
    for world in worlds:
        of["worlds"] += 1
        of["right answers"] += world.answers
        of["denials kept"] += sum(one.acknowledged for one in world.changes)
        of["denials refused"] += world.refused
        of["nodes that died"] += len(world.dead)
        of["losses dealt with"] += len(world.cluster.settled)
    return dict(of)


def first_failure(seeds: Iterable[int]) -> str | None:
    """How the promise is broken in the first of some worlds in which it is; None if it holds."""
    for seed in seeds:
        try:
            run_world(seed)
        except AssertionError as error:
            return str(error)
    return None
