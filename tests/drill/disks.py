"""Disks of a server's own that can be filled or broken, and what must go on meanwhile."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import psutil
import trio

from tests.deadlines import LOOP_ANSWERS
from tests.drill.ledger import BrokenPromise
from tests.drill.links import Ended, Http
from tests.drill.missing import Missing
from tests.drill.places import Place
from tests.drill.scene import LoadedScene
from tests.drill.target import call, until

_SIZE: Final = 80  # MiB: the reserve, a full WAL, the history, and some more
_CHUNK: Final = bytes(1 << 16)
_AGAIN: Final = 5.0
"""Seconds until publishing works again: 1 is promised, on a machine that is not busy."""


@contextmanager
def small_memory_disk(folder: Path) -> Iterator[Place]:
    """A small tmpfs for the data.

    Raises:
        Missing: mounting takes root.
    """
    disk = _folder(folder)
    _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}m,mode=700", "tmpfs", str(disk))
    try:
        yield Place(disk=disk)
    finally:
        _unmount(disk)


@contextmanager
def breakable_disk(folder: Path) -> Iterator[Place]:
    """A small ext4 file system that turns read-only at an error, as on a disk that fails.

    Raises:
        Missing: that takes root, and a kernel that lets an error be made.
    """
    disk, image = _folder(folder), folder / "image"
    with image.open("wb") as file:
        file.truncate(_SIZE << 20)
    _run("mkfs.ext4", "-q", str(image))
    _mount(image, disk)
    try:
        if not _error_of(disk).exists():
            raise Missing("this kernel makes no errors of ext4")
        yield Place(disk=disk)
    finally:
        _unmount(disk)


def _folder(folder: Path) -> Path:
    if os.geteuid() != 0:
        raise Missing("mounting a disk takes root")
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    return disk


def _mount(image: Path, disk: Path) -> None:
    _run("mount", "-o", "loop,errors=remount-ro", str(image), str(disk))


def _copied(image: Path) -> Path:
    """The same file system in another file, in its place.

    A program that has a view of its own on all mounts may have the broken one in it. As long as it
    has, the kernel mounts that one again: an image has one file system.
    """
    copy = image.with_suffix(".copied")
    shutil.copyfile(image, copy)
    return copy.replace(image)


def _unmount(disk: Path) -> None:
    subprocess.run(("umount", "--lazy", str(disk)), check=False, stderr=subprocess.DEVNULL)


def _error_of(disk: Path) -> Path:
    """The kernel's file that makes an error in a file system."""
    device = os.stat(disk).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return Path("/sys/fs/ext4") / name / "trigger_fs_error"


def _run(*command: str) -> None:
    if shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        raise Missing(f"{command[0]} is not installed")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{' '.join(command)}: {done.stderr.strip()}")


async def full_disks(scene: LoadedScene) -> None:
    """The disk is full for a while, and the server may be killed meanwhile: nothing else changes.

    Publishing is refused.
    """
    ballast, check = scene.data.parent / "ballast", scene.target.between
    with ballast.open("wb", buffering=0) as file:
        fill(file)
        await _refused(scene)
        if scene.rng.random() < 0.5:

            def refill() -> None:
                check()
                fill(file)

            scene.target.between = refill
            await scene.target.restart(signal.SIGKILL)
            scene.target.between = check
            await scene.traffic.wait_live()
        ballast.unlink()
    await _accepted_again(scene)


def fill(file: BinaryIO) -> None:
    """Take the disk's room to the last byte."""
    with suppress(OSError):
        for chunk in itertools.repeat(_CHUNK):
            file.write(chunk)


async def stuck_files(scene: LoadedScene) -> None:
    """No file may grow for a while: publishing is refused, and nothing else changes."""
    process = psutil.Process(scene.target.pid)
    _, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        await _refused(scene, nothing=True)
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await _accepted_again(scene)


async def read_only_disks(scene: LoadedScene) -> None:
    """The disk fails and is read-only: publishing is refused until a restart on a mended one."""
    disk = scene.data.parent
    # An fsync that is under way when ext4 gives its journal up may succeed, though nothing is kept:
    # one of some seventy did. So the server stands still for that moment.
    scene.target.send(signal.SIGSTOP)
    with trio.fail_after(LOOP_ANSWERS):
        await until(lambda: _stands_still(scene.target.pid))
    _error_of(disk).write_text("drill")
    scene.target.send(signal.SIGCONT)
    await _refused(scene, nothing=True)
    check = scene.target.between

    def mend() -> None:
        _unmount(disk)
        _mount(_copied(disk.parent / "image"), disk)
        check()

    scene.target.between = mend
    await scene.target.restart(scene.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    scene.target.between = check
    await scene.traffic.wait_live()


def _stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped; one that writes ends its call before."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        return all(one.read_text().rpartition(") ")[2].startswith("T") for one in threads)
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread has ended meanwhile


async def _refused(scene: LoadedScene, *, nothing: bool = False) -> None:
    """Wait until publishing is refused, and look at what must go on.

    Args:
        scene: The fault's.
        nothing: Whether not one byte can be written. A full disk may have room now and then: what
            is freed is used.

    Raises:
        BrokenPromise: something does not.
    """
    counts = scene.offsets.counts
    before = counts["refused"]
    with trio.move_on_after(LOOP_ANSWERS):
        await until(lambda: counts["refused"] > before + 3)
    if counts["refused"] <= before + 3:
        raise BrokenPromise("publishing goes on, and nothing can be written")
    reconnects, acknowledged = counts["reconnects"], counts["acknowledged"]
    await trio.sleep(scene.rng.uniform(0.5, 2))
    async with await scene.target.open() as stream:
        http = Http(stream)
        try:
            await call(http, "history", {"channel": scene.channels[0], "limit": 10})
            await call(http, "publish", {"channel": "aside", "data": 1, "skip_history": True})
        except Ended as error:
            raise BrokenPromise(f"nothing can be written, and so: {error}") from None
    if nothing and counts["acknowledged"] > acknowledged:
        raise BrokenPromise("something is acknowledged that cannot be written")
    if counts["reconnects"] > reconnects:
        raise BrokenPromise("nothing can be written, and so subscribers had to come back")


async def _accepted_again(scene: LoadedScene) -> None:
    """Wait until publishing works.

    Raises:
        BrokenPromise: it does not in time.
    """
    before = scene.offsets.counts["acknowledged"]
    with trio.move_on_after(_AGAIN):
        await until(lambda: scene.offsets.counts["acknowledged"] > before)
    if scene.offsets.counts["acknowledged"] == before:
        raise BrokenPromise(f"there is room, and publishing is refused for {_AGAIN:g} s")
