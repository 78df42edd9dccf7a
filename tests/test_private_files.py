"""What the server keeps, its own user alone may read: folders 0700, files 0600."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import trio

from repeater.access.sqlite_denials import open_sqlite_denials
from repeater.private_files import make_private_database, make_private_folder
from repeater.serving.extension import load_settings
from repeater.serving.server import open_server
from tests.deadlines import LOOP_ANSWERS


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """The process's own mask hides nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
@pytest.mark.parametrize("comments", [False, True])
async def test_a_server_that_keeps_things(comments: bool, engine: str, tmp_path: Path) -> None:
    """Every folder and file below the configured path, whichever part makes it first."""
    folder = tmp_path / "above" / "data"
    settings = load_settings(
        dev=True,
        port=0,
        data_dir=str(folder),
        comments=comments,
        allowed_hosts="*",
        engine=engine,
    )
    with trio.fail_after(LOOP_ANSWERS):
        async with (
            open_server(settings) as server,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client,
        ):
            answer = await client.post("/api/block_user", json={"user": "ann"})
            assert answer.json()["result"]["changed"] is True
            if comments:
                form = {"email": "ann@example.com", "password": "correct horse"}
                assert (await client.post("/api/signup", data=form)).status_code == 302
            made = {path.name: mode(path) for path in folder.iterdir()}
    assert mode(folder) == mode(folder.parent) == 0o700
    assert set(made.values()) == {0o600}
    expected = {"lock", "admin.sock", "denials.sqlite3"}
    if engine == "sqlite":
        names = ("history.sqlite3", "history.sqlite3-wal", "history.reserve")
        expected = {"lock", "admin.sock", *names}
    if comments:
        names = ("comments.sqlite3", "comments.sqlite3-wal", "comments.sqlite3-shm")
        expected |= {*names, "secret-key"}
    assert set(made) == expected


async def test_a_folder_that_others_may_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays as it is and is told once; what is in it is nobody else's all the same."""
    folder = tmp_path / "data"
    folder.mkdir(0o755)
    for name in ("denials.sqlite3", "denials.sqlite3-journal"):
        (folder / name).touch(0o644)
    async with open_sqlite_denials(folder / "denials.sqlite3"):
        pass
    make_private_folder(folder)
    assert mode(folder) == 0o755
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"folder={folder} mode=0755" in line


def test_a_folder_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that nobody else may enter needs no word."""
    make_private_folder(tmp_path / "mine")
    make_private_folder(tmp_path / "mine")
    assert not caplog.records


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    """A file is no folder, and is not changed."""
    (tmp_path / "file").touch(0o644)
    with pytest.raises(NotADirectoryError):
        make_private_folder(tmp_path / "file")


def test_a_database_keeps_what_is_in_it(tmp_path: Path) -> None:
    """To make a file that is there already changes its mode only."""
    file = tmp_path / "kept"
    file.write_text("kept")
    make_private_database(file)
    assert file.read_text() == "kept"
    assert mode(file) == 0o600


def test_full_commits(tmp_path: Path) -> None:
    """The comments' database writes each commit through to the disk, as its store promises."""
    from repeater.comments.options import CommentsOptions
    from repeater.comments.tables import make_engine

    engine = make_engine(CommentsOptions(data_dir=tmp_path))
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        values = {
            name: cursor.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "foreign_keys")
        }
        cursor.close()
    engine.dispose()
    assert values == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}
