"""The drills of transactions that publish pass, and notice a server that breaks the promise."""

from __future__ import annotations

import sys
from typing import Literal

import pytest

from tests.deadlines import PROCESS_STARTS
from tests.drill.ledger import BrokenPromise
from tests.drill.transactions import TransactionDrill

pytestmark = [
    pytest.mark.slow,  # once is enough: nothing in it depends on the version of Python
    pytest.mark.timeout(6 * PROCESS_STARTS),
]


@pytest.mark.parametrize("engine", ["sqlite", "valkey"])
def test_kills_lose_and_double_nothing(engine: Literal["sqlite", "valkey"]) -> None:
    """Of the database, of servers and of programs."""
    assert TransactionDrill(1, 6, engine).run().startswith("6 kills, ")


@pytest.mark.parametrize(
    ("how", "noticed", "kills"),
    [
        ("nameless", "rows came twice", 6),  # the engine does not know what it has published
        ("greater", "rows are not published", 2),  # who commits late is overtaken
    ],
)
def test_a_server_that_breaks_the_promise_is_noticed(how: str, noticed: str, kills: int) -> None:
    """The two mistakes that everybody makes who builds this by hand."""
    command = (sys.executable, "-m", "tests.drill.sabotage", how, "serve")
    promise = pytest.RaisesExc(BrokenPromise, match=noticed)
    with pytest.RaisesGroup(promise, allow_unwrapped=True, flatten_subgroups=True):
        TransactionDrill(1, kills, "sqlite", command).run()
