"""`repeater data check | backup | compact | restore`, beside a running server and without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from repeater.brokers.sqlite.journal import FILE
from repeater.brokers.sqlite.lock import hold_folder
from repeater.brokers.sqlite.opening import open_sqlite_broker
from repeater.cli.main import main
from repeater.node import Node, open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.publication import Publication
from repeater.serving.admin_socket import open_admin_socket
from repeater.serving.data_methods import data_methods
from tests.deadlines import LOOP_ANSWERS, PROCESS_STARTS
from tests.histories import change, dump, killed, make

pytestmark = pytest.mark.timeout(120)

OPTIONS = NodeOptions(insecure=True, channel=ChannelOptions(history_size=1_000, history_ttl=600))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data"


def run(folder: Path, *arguments: object) -> Result:
    """One command with this data directory."""
    result = CliRunner().invoke(
        main, ["data", *map(str, arguments)], env={"REPEATER_DATA_DIR": str(folder)}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def done(folder: Path, *arguments: object) -> str:
    """The output of a command that succeeds."""
    result = run(folder, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(folder: Path, *arguments: object) -> str:
    """The one line of a command that fails."""
    result = run(folder, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    line = result.stderr
    assert line.startswith("Error: ")
    assert line.count("\n") == 1
    return line.removeprefix("Error: ").rstrip("\n")


@asynccontextmanager
async def running(folder: Path, wal_limit: int = 1 << 30) -> AsyncIterator[Node]:
    """A node on a durable history, as far as the commands can tell a server."""
    with trio.fail_after(3 * LOOP_ANSWERS):
        async with open_sqlite_broker(folder) as broker, open_node(OPTIONS, broker=broker) as node:
            methods = data_methods(lambda: broker, wal_limit)
            async with open_admin_socket(folder, methods, node.failures):
                yield node


async def publish(node: Node, count: int, channel: str = "news", size: int = 10) -> None:
    for number in range(count):
        data = json.dumps([number, "x" * size]).encode()
        await node.publish(Publication(channel, data))


@asynccontextmanager
async def loaded(node: Node, tasks: int, size: int) -> AsyncIterator[None]:
    """So many publishers, each in its own channel; each ends behind its last answer."""
    stopped = trio.Event()

    async def work(channel: str) -> None:
        while not stopped.is_set():
            await publish(node, 1, channel, size)

    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(work, f"load{number}")
        yield
        stopped.set()


in_thread = trio.to_thread.run_sync


def test_check_prints_what_the_history_holds(folder: Path) -> None:
    """Also what a kill left in the WAL."""
    killed(folder)
    lines = done(folder, "check").splitlines()
    assert lines[0].split() == ["file", str(folder / FILE)]
    assert lines[2].split() == ["streams", "3"]
    assert lines[3].split()[:2] == ["publications", "15"]
    assert lines[3].endswith("the oldest from 2025-11-24 16:00:00 UTC")
    assert lines[-1] == "no faults"
    found = json.loads(done(folder, "check", "--json"))
    assert (found["streams"], found["faults"]) == (3, [])


def test_check_ends_with_3_for_faults(folder: Path) -> None:
    """A line for each; names that a terminal could obey are escaped."""
    path = make(folder)
    change(path, "UPDATE streams SET channel = 'a' || char(27) WHERE id = 1")
    change(path, 'DELETE FROM publications WHERE "offset" = 3')
    result = run(folder, "check")
    assert result.exit_code == 3
    assert r"'a\x1b': 4 comes after 2" in result.stdout
    assert "no faults" not in result.stdout
    os.truncate(path, 5_000)
    assert run(folder, "check").exit_code == 3
    path.write_bytes(b"nothing of ours" * 1_000)
    assert run(folder, "check", "--json").exit_code == 3


def test_backup_and_restore_without_a_server(folder: Path) -> None:
    """The rows come back, and the replaced file stays."""
    path, target = killed(folder), folder.parent / "backup"
    assert "publications      15" in done(folder, "backup", target)
    assert "no faults" in done(folder, "check", target)
    change(path, "DELETE FROM publications")
    result = run(folder, "restore", target)
    assert result.exit_code == 0
    kept = Path(result.stderr.split(" is kept as ")[1].strip())
    assert dump(kept)["publications"] == []
    assert dump(path)["publications"] == dump(target)["publications"]


def test_restore_into_a_folder_that_does_not_exist(folder: Path) -> None:
    """On a new machine, before the first start."""
    make(folder)
    done(folder, "backup", folder.parent / "backup")
    new = folder.parent / "new" / "data"
    done(new, "restore", folder.parent / "backup")
    assert dump(new / FILE)["publications"]
    assert new.stat().st_mode & 0o777 == 0o700
    env = {"REPEATER_DATA_DIR": str(new), "REPEATER_ENGINE": "memory"}
    command = ["data", "restore", str(folder.parent / "backup")]
    result = CliRunner().invoke(main, command, env=env)
    assert 'engine is not "sqlite": a server will not use this history' in result.stderr


def test_compact_without_a_server(folder: Path) -> None:
    """It says how much was won."""
    path = make(folder, streams=20, publications=200)
    change(path, "DELETE FROM publications WHERE stream > 2")
    size = path.stat().st_size
    result = run(folder, "compact")
    assert result.exit_code == 0
    assert result.stderr == f"{size - path.stat().st_size:,} bytes less\n"
    assert path.stat().st_size < size / 2


def test_what_cannot_be_done(folder: Path) -> None:
    """One line, and exit status 1."""
    backup = folder.parent / "backup"
    for command in (["check"], ["backup", backup], ["compact"]):
        assert refused(folder, *command) == f"{folder} holds no history"
    assert refused(folder.parent / "no", "check").endswith("no server has kept anything there")
    assert refused(folder, "restore", backup) == f"{backup}: No such file or directory"
    assert refused(folder, "check", backup) == f"{backup}: No such file or directory"
    assert not backup.exists()
    change(folder / FILE, "CREATE TABLE notes(text TEXT)")
    for command in (["check"], ["backup", backup], ["compact"]):
        assert "another program's database" in refused(folder, *command)
    result = CliRunner().invoke(main, ["data", "check"], env={"REPEATER_DATA_DIR": None})
    assert result.stderr == "Error: data_dir is not set: history is kept in memory\n"


def test_leftovers_of_a_kill_are_removed(folder: Path) -> None:
    """By the next command that has the folder for itself."""
    make(folder)
    left = folder / f"{FILE}.tmp"
    left.write_bytes(b"x")
    done(folder, "check")
    assert not left.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_does_stays_the_server_s(folder: Path) -> None:
    """Every file in the folder belongs to the folder's user afterwards."""
    killed(folder)
    for one in (folder, *folder.iterdir()):
        os.chown(one, 65_534, 65_534)
    target = folder.parent / "backup"
    done(folder, "check")
    done(folder, "backup", target)
    done(folder, "compact")
    done(folder, "restore", target)
    assert {(one.stat().st_uid, one.stat().st_gid) for one in folder.iterdir()} == {
        (65_534, 65_534)
    }
    assert target.stat().st_uid == 0


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_disk_that_cannot_be_written(folder: Path) -> None:
    """The history can be backed up from there, to elsewhere, with what is in the WAL."""
    killed(folder)
    target = folder.parent / "backup"
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 77; shift;'
        ' for what in "data check" "data compact" "data backup $1"; do "$2" -m repeater $what; done'
    )
    environment = {**os.environ, "REPEATER_DATA_DIR": str(folder)}
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", folder, target, sys.executable],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PROCESS_STARTS,
    )
    if result.returncode in (1, 77) and "unshare" in result.stderr:
        pytest.skip("this user may not mount")
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == (
        f"Error: {folder} cannot be written, and commits wait in {FILE}-wal:"
        " back it up to elsewhere, and check that"
    )
    assert lines[1] == f"Error: {folder / 'lock'}: Read-only file system"
    assert len(lines) == 2
    assert "publications      15" in result.stdout
    assert len(dump(target)["publications"]) == 15


async def test_check_of_a_running_server(folder: Path) -> None:
    """It counts what is committed, and the server goes on."""
    async with running(folder) as node:
        await publish(node, 50)
        found = json.loads(await in_thread(done, folder, "check", "--json"))
        assert (found["publications"], found["faults"]) == (50, [])
        await publish(node, 1)
        assert "51" in await in_thread(done, folder, "check")


async def test_a_backup_under_load_is_contiguous(folder: Path) -> None:
    """It has all that was acknowledged before it began; what is published meanwhile goes on."""
    target = folder.parent / "backup"
    async with running(folder) as node, loaded(node, 8, 200):
        await publish(node, 200)
        for _ in range(3):
            before = node.statistics().repeater.publications
            found = json.loads(await in_thread(done, folder, "backup", target, "--json"))
            assert found["faults"] == []
            assert found["publications"] >= 200
            assert node.statistics().repeater.publications > before
    rows = dump(target)
    (news,) = [row[0] for row in rows["streams"] if row[1] == "news"]
    assert [row[2] for row in rows["publications"] if row[1] == news] == list(range(1, 201))


async def test_compact_and_restore_want_the_server_stopped(folder: Path) -> None:
    """The line names the process."""
    async with running(folder) as node:
        await publish(node, 3)
        await in_thread(done, folder, "backup", folder.parent / "backup")
        for command in (["compact"], ["restore", folder.parent / "backup"]):
            line = await in_thread(refused, folder, *command)
            assert line == (
                f"{folder} is in use by process {os.getpid()} (repeater serve): stop it first"
            )
        await publish(node, 1)
    assert len(dump(folder / FILE)["publications"]) == 4


async def test_a_second_command_waits_for_nobody(folder: Path) -> None:
    """It says that another one reads the file; so it does at a server without a socket."""
    async with running(folder) as node:
        await publish(node, 3)
        await node.broker.with_journal(lambda journal: journal.pin())  # type: ignore[attr-defined]
        line = await in_thread(refused, folder, "check")
        assert line == "history: another command reads the file"
    with hold_folder(folder, "repeater data compact"):
        line = await in_thread(refused, folder, "check")
        assert line.endswith(f"is in use by process {os.getpid()} (repeater data compact)")


async def test_a_wal_that_grows_too_much_ends_the_command(folder: Path) -> None:
    """The server's disk comes first; no half of a backup is left."""
    async with running(folder, wal_limit=100_000) as node, loaded(node, 1, 5_000):
        await publish(node, 3)
        # The command itself is quick, so another peer holds the file.
        async with await trio.open_unix_socket(folder / "admin.sock") as stream:
            await stream.send_all(b'{"method":"data.hold"}\n')
            received = b"".join([chunk async for chunk in stream])
        assert b'{"error":"too much was written meanwhile: try again at a quieter' in received
        await in_thread(done, folder, "check")


async def test_a_command_that_is_killed_lets_the_file_go_on(folder: Path) -> None:
    """Its connection ends with it; the server sees that soon, and another one may ask."""
    async with running(folder) as node:
        await publish(node, 3)
        async with await trio.open_unix_socket(folder / "admin.sock") as stream:
            await stream.send_all(b'{"method":"data.hold"}\n')
            assert b"progress" in await stream.receive_some()
        with trio.fail_after(LOOP_ANSWERS):
            while (await in_thread(run, folder, "check")).exit_code:  # noqa: ASYNC110 - see above
                await trio.sleep(0.01)


async def test_a_server_in_memory_says_so(folder: Path) -> None:
    """`data_dir` may be set for other reasons."""
    async with open_node(OPTIONS) as node:
        methods = data_methods(lambda: node.broker)
        with hold_folder(folder):
            async with open_admin_socket(folder, methods, node.failures):
                line = await in_thread(refused, folder, "check")
    assert line == "this server keeps no history in data_dir"
