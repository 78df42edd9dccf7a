"""Network namespaces, and the cables that lead into them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from tests.drill.missing import Missing


@dataclass(frozen=True)
class Cable:
    """A cable from this namespace into another one."""

    name: str
    near: str
    """The address of this end."""
    far: str
    """The address of the other end."""

    async def pull(self) -> None:
        """Have all packets dropped."""
        await trio.run_process(("ip", "link", "set", self.name, "down"))

    async def plug(self) -> None:
        """Have packets carried again."""
        await trio.run_process(("ip", "link", "set", self.name, "up"))


@dataclass(frozen=True)
class Island:
    """A network namespace. Lives inside `island`."""

    inside: Sequence[str]
    """Begins the command of a program that runs in it."""
    cables: Sequence[Cable]


@contextmanager
def island(cables: int = 1, number: int = 0) -> Iterator[Island]:
    """A network namespace with so many cables; `number` tells those of one process apart.

    Raises:
        Missing: that takes root, and `ip`.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise Missing("network namespaces take root, and ip")
    name = f"drill{os.getpid()}{number}"
    inside = ("ip", "netns", "exec", name)
    made = [_cable(name, number, index) for index in range(cables)]
    try:
        _run("ip", "netns", "add", name)
        _run(*inside, "ip", "link", "set", "lo", "up")
        for cable in made:
            end = f"{cable.name}i"
            _run(*("ip", "link", "add", cable.name), *("type", "veth", "peer", "name", end))
            _run("ip", "link", "set", end, "netns", name)
            _run("ip", "address", "add", f"{cable.near}/30", "dev", cable.name)
            _run("ip", "link", "set", cable.name, "up")
            _run(*inside, "ip", "address", "add", f"{cable.far}/30", "dev", end)
            _run(*inside, "ip", "link", "set", end, "up")
        yield Island(inside, made)
    finally:
        for cable in made:
            _try("ip", "link", "delete", cable.name)
        _try("ip", "netns", "delete", name)


def _cable(name: str, number: int, index: int) -> Cable:
    net = f"10.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    first = 16 * number + 4 * index
    return Cable(f"{name}{'abcd'[index]}", f"{net}.{first + 1}", f"{net}.{first + 2}")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{' '.join(command)}: {done.stderr.strip()}")


def _try(*command: str) -> None:
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
