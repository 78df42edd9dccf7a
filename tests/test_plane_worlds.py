"""Members, questions, denials and places of nodes hold through random faults.

`just drill --fault plane_worlds` runs 10,000 such worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from repeater.cluster import answers, denial_log, denials, members
from tests.drill.worlds import PlaneWorldsDrill
from tests.plane_world import first_failure, run_world, sums

_TOGETHER = 10


@pytest.mark.parametrize("first", range(0, 200, _TOGETHER))
def test_worlds_keep_the_promise(first: int) -> None:
    """Each is made from its number alone; one that fails is named."""
    worlds = [run_world(seed) for seed in range(first, first + _TOGETHER)]
    happened = sums(worlds)
    for kind in ("right answers", "denials kept", "nodes that died"):
        assert happened[kind], kind


def test_a_world_is_the_same_each_time() -> None:
    """A seed is enough to see a failure again."""
    assert sums([run_world(7)]) == sums([run_world(7)])


def test_worlds_are_run_by_the_drill() -> None:
    """From its seed on, in processes of its own."""
    assert PlaneWorldsDrill(seed=3, worlds=2).run().startswith("2 worlds, ")


def _without_grace(patch: pytest.MonkeyPatch) -> None:
    """Nodes judge others at once after an outage."""
    text = members.BEAT.text.replace(
        b"if is_steady and since > 0 and now - since >= stay", b"if true"
    )
    patch.setattr(members, "BEAT", type(members.BEAT)(text))


def _without_marks(patch: pytest.MonkeyPatch) -> None:
    """A number that was given twice is taken for the same change."""
    take = denial_log.DenialLog.take

    def trusting(self: Any, change: Any) -> Any:
        return [] if change.number <= self.number else take(self, change)

    patch.setattr(denial_log.DenialLog, "take", trusting)
    patch.setattr(denial_log.DenialLog, "_find_lost", lambda _self, _found: None)


def _without_memory(patch: pytest.MonkeyPatch) -> None:
    """A question that comes twice is carried out twice."""
    patch.setattr(answers.Answers, "__contains__", lambda _self, _key: False)
    patch.setattr(answers.Answers, "end", lambda _self, _key, _answer: None)


def _without_a_look(patch: pytest.MonkeyPatch) -> None:
    """Changes that were missed are not looked for."""
    patch.setattr(denials, "_LOOK", 1e9)
    patch.setattr(denials.ClusterDenials, "_is_up", lambda self: self._up.set())


def _without_a_keeper(patch: pytest.MonkeyPatch) -> None:
    """A duty is given to whoever beats first, and never again."""
    old = b"redis.call('ZADD', lost, whole(now + tonumber(ARGV[8])), one)"
    text = members.BEAT.text.replace(old, b"redis.call('ZREM', lost, one)")
    patch.setattr(members, "BEAT", type(members.BEAT)(text))


@pytest.mark.parametrize(
    ("break_it", "seed"),
    [
        (_without_grace, 1),
        (_without_marks, 3),
        (_without_memory, 0),
        (_without_a_look, 2),
        (_without_a_keeper, 19),
    ],
)
def test_worlds_find_what_is_broken(
    break_it: Callable[[pytest.MonkeyPatch], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the parts that the promise rests on is missed in some world near this one."""
    break_it(monkeypatch)
    failed = first_failure(range(seed, seed + 10))
    assert failed is not None
