"""`repeater postgres`: make the schema by which transactions publish, and say who may use it.

For whoever owns the database; the server itself makes no schema.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from repeater.cli.config import config_option
from repeater.cli.terminal import visible

_url_option = click.option(
    "--url", metavar="URL",
    help="The database; by default outbox, or the comments' PostgreSQL. A URL with a password"
    " belongs in REPEATER_OUTBOX, or leave the password to PGPASSWORD or ~/.pgpass.",
)  # fmt: skip


@click.group("postgres")
def postgres_group() -> None:
    """Make the schema by which transactions publish, and grant it."""


@postgres_group.command("sql")
def print_sql() -> None:
    """Print the statements that make the schema, for a migration of one's own."""
    with _one_line():
        from repeater.postgres.schema import schema_text

        click.echo(schema_text(), nl=False)


@postgres_group.command()
@_url_option
@config_option
def migrate(url: str | None, config_file: Path | None) -> None:
    """Make the schema repeater, in one transaction; nothing if it is there."""
    with _one_line():
        from repeater.postgres.schema import VERSION
        from repeater.postgres.schema import migrate as make

        made = make(_address(url, config_file))
    is_there = "is made" if made else "is there already"
    click.echo(f"the schema repeater, version {VERSION}, {is_there}")


@postgres_group.command()
@click.argument("role")
@click.option(
    "--server", is_flag=True, help="The role of the server, which takes what is published."
)
@_url_option
@config_option
def grant(role: str, server: bool, url: str | None, config_file: Path | None) -> None:
    """Let ROLE publish, or with --server take what is published."""
    with _one_line():
        from repeater.postgres import schema

        schema.grant(_address(url, config_file), role, server=server)
    what = "take what is published" if server else "publish"
    click.echo(visible(f"{role} may {what}"))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """End the command with one line for what is not our mistake."""
    from repeater.config import ConfigError
    from repeater.config.outgoing import INSTALL

    try:
        from repeater.postgres.schema import SchemaError
    except ModuleNotFoundError:
        raise click.ClickException(f"PostgreSQL's client is not installed: {INSTALL}") from None
    try:
        yield
    except (SchemaError, ConfigError) as error:
        raise click.ClickException(visible(str(error))) from None


def _address(url: str | None, config_file: Path | None) -> str:
    """The database that is meant."""
    from repeater.serving.extension import load_settings

    if found := url or load_settings(config_file).schema_url():
        return found
    raise click.ClickException("which database? Give --url, or set outbox")
