"""`repeater data`: check, compact, back up and restore the history that a server keeps on its disk.

`check` and `backup` ask the server if it runs; `compact` and `restore` want it stopped. Exit
status: 0 done; 1 not done, and one line says why; 2 wrong usage; 3 `check` found faults.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from repeater.cli.config import config_option
from repeater.cli.terminal import visible

if TYPE_CHECKING:
    from repeater.brokers.sqlite.inspection import Inspection
    from repeater.serving.admin_call import AdminCall

_FAULTY: Final = 3  # the exit status for a file with faults
_HOLDING: Final = 120.0  # seconds for a server to bring its WAL into the file, on a slow disk

_path = click.Path(path_type=Path)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")


@click.group("data")
def data_group() -> None:
    """Check, compact, back up and restore the history in data_dir."""


@data_group.command()
@click.argument("file", required=False, type=_path)
@_json_option
@config_option
def check(file: Path | None, as_json: bool, config_file: Path | None) -> None:
    """Read the whole history, print what it holds, and look for faults.

    A running server goes on meanwhile. With FILE, check a backup. Exit status 3 means faults.
    """
    from repeater.brokers.sqlite.inspection import inspect

    with _one_line():
        if file is not None:
            found = inspect(file)
        else:
            folder = _folder(config_file)
            with _standing_still(folder, "repeater data check") as still:
                if still.stopped:
                    _settle(_history(folder))
                found = inspect(_history(folder))
                still.confirm()
    _print(found, as_json)
    if found.faults:
        raise SystemExit(_FAULTY)


@data_group.command()
@click.argument("file", type=_path)
@_json_option
@config_option
def backup(file: Path, as_json: bool, config_file: Path | None) -> None:
    """Copy the history into FILE, checked and whole; replaces an older backup of this name.

    A running server goes on meanwhile.
    """
    from repeater.brokers.sqlite.copies import back_up

    with _one_line():
        folder = _folder(config_file)
        with _standing_still(folder, "repeater data backup") as still:
            found = back_up(
                _history(folder), file, stood_still=still.confirm, with_log=still.stopped
            )
    _print(found, as_json)


@data_group.command()
@_json_option
@config_option
def compact(as_json: bool, config_file: Path | None) -> None:
    """Write the history anew, without the room of what was freed. The server must be stopped.

    Needs room for a second file in data_dir. A kill leaves the old file whole.
    """
    from repeater.brokers.sqlite import compaction

    with _one_line():
        folder = _folder(config_file)
        with _locked(folder, "repeater data compact"):
            before = _history(folder).stat().st_size
            found = compaction.compact(_history(folder))
    _print(found, as_json)
    click.echo(f"{before - found.size:,} bytes less", err=True)


@data_group.command()
@click.argument("file", type=_path)
@_json_option
@config_option
def restore(file: Path, as_json: bool, config_file: Path | None) -> None:
    """Put the backup FILE in the place of the history. The server must be stopped.

    FILE is checked first; the replaced history is kept beside the new one. Clients are told that
    they cannot recover, and begin anew.
    """
    from repeater.brokers.sqlite import copies

    with _one_line():
        folder = _folder(config_file, make=True)
        with _locked(folder, "repeater data restore"):
            found, kept = copies.restore(folder, file)
    _print(found, as_json)
    if kept is not None:
        click.echo(f"the replaced history is kept as {kept}", err=True)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the command with one line for what is not our mistake."""
    from repeater.brokers.sqlite.errors import JournalError
    from repeater.config import ConfigError
    from repeater.errors import BrokerError
    from repeater.serving.admin_call import AdminError

    try:
        yield
    except (JournalError, BrokerError, AdminError, ConfigError) as error:
        raise click.ClickException(visible(str(error))) from None
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        raise click.ClickException(visible(f"{place}{error.strerror or error}")) from None


def _folder(config_file: Path | None, *, make: bool = False) -> Path:
    """The folder of the server's data, as `repeater serve` would use it."""
    from repeater.private_files import make_private_folder
    from repeater.serving.extension import load_settings

    settings = load_settings(config_file)
    folder = settings.kept_in
    if folder is None:
        raise click.ClickException("data_dir is not set: history is kept in memory")
    if make:
        if settings.engine_in_force != "sqlite":
            click.echo('engine is not "sqlite": a server will not use this history', err=True)
        make_private_folder(folder)
    if not folder.is_dir():
        raise click.ClickException(f"{folder} does not exist: no server has kept anything there")
    return folder


def _history(folder: Path) -> Path:
    from repeater.brokers.sqlite.journal import FILE

    path = folder / FILE
    if not path.exists():
        raise click.ClickException(f"{folder} holds no history")
    return path


def _settle(path: Path) -> None:
    """Bring what a kill left in the WAL into the file, because `inspect` reads the file alone."""
    from repeater.brokers.sqlite.copies import settle
    from repeater.brokers.sqlite.files import log_size

    if os.access(path.parent, os.W_OK):
        settle(path)
    elif log_size(path):
        raise click.ClickException(
            f"{path.parent} cannot be written, and commits wait in {path.name}-wal:"
            " back it up to elsewhere, and check that"
        )


@contextlib.contextmanager
def _standing_still(folder: Path, name: str) -> Iterator[_Still]:
    """Keep the history as it is: by its server's help, or without a server by the folder's lock."""
    from repeater.serving.admin_call import NobodyThereError, open_admin_call
    from repeater.serving.data_methods import HOLD

    with contextlib.ExitStack() as stack:
        try:
            call = stack.enter_context(open_admin_call(folder, HOLD))
        except NobodyThereError:
            stack.enter_context(_locked(folder, name, reading=True))
            yield _Still()
        else:
            call.next(_HOLDING)  # It comes when the file stands still.
            yield _Still(call)


class _Still:
    """The history stands still. Lives inside `_standing_still`."""

    def __init__(self, call: AdminCall | None = None) -> None:
        self._call = call

    @property
    def stopped(self) -> bool:
        """Whether no server runs; else commits go on into the WAL, which is not to be read."""
        return self._call is None

    def confirm(self) -> None:
        """Make sure that nothing of the file has changed until now.

        Raises:
            AdminError: it may have.
        """
        if self._call is not None:
            self._call.say({})
            self._call.result()


@contextlib.contextmanager
def _locked(folder: Path, name: str, *, reading: bool = False) -> Iterator[None]:
    """Hold the folder while no server uses it, and remove what a killed command left in it."""
    from repeater.brokers.sqlite.files import remove_leftovers
    from repeater.brokers.sqlite.journal import FILE
    from repeater.brokers.sqlite.lock import FolderInUseError, hold_folder

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_folder(folder, name))
        except FolderInUseError as error:
            hint = "" if reading else ": stop it first"
            raise click.ClickException(f"{error}{hint}") from None
        except OSError as error:
            if not (reading and error.errno == errno.EROFS):
                raise
        else:
            remove_leftovers(folder / FILE)
        yield


def _print(found: Inspection, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found))
        return
    oldest = ""
    if found.oldest is not None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.oldest))
        oldest = f", the oldest from {moment}"
    rows = [
        ("file", found.file),
        ("size", f"{found.size:,} bytes, format {found.format}"),
        ("streams", f"{found.streams:,}"),
        ("publications", f"{found.publications:,} of {found.bytes:,} bytes{oldest}"),
        ("idempotency keys", f"{found.results:,}"),
        ("denials", f"{found.denials:,} blocked users and revoked tokens"),
    ]
    if found.waiting:
        rows.append(("to be freed", f"{found.waiting:,} publications of forgotten streams"))
    rows += [("fault", fault) for fault in found.faults]
    if found.more_faults:
        rows.append(("faults", f"{found.more_faults:,} more"))
    for name, value in rows:
        click.echo(visible(f"{name:<17} {value}"))
    if not found.faults:
        click.echo("no faults")
