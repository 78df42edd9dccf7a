"""`repeater config`: write a configuration file, check it, show the settings in force."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from repeater.cli.terminal import visible

if TYPE_CHECKING:
    from repeater.config import Settings

_SECRET_BYTES: Final = 32

config_option = click.option(
    "--config", "config_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Settings to read.  [default: REPEATER_CONFIG, or repeater.toml if it is there]",
)  # fmt: skip


def load(config_file: Path | None, otherwise: str = "") -> Settings:
    """The settings that a server in this place would read.

    Raises:
        click.ClickException: they are wrong. One line with the first mistake; `otherwise` says
            how the command could do without them.
    """
    from repeater.config import ConfigError
    from repeater.serving.extension import load_settings

    try:
        return load_settings(config_file)
    except ConfigError as error:
        first, *others = error.lines
        more = f" (and {len(others)} more)" if others else ""
        hint = f"; see repeater config check{otherwise}"
        raise click.ClickException(visible(f"{first}{more}{hint}")) from None


@click.group("config")
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--secrets", "with_secrets", is_flag=True,
    help="Set each secret that the server shares with others to a new random one, of 256 bits.",
)  # fmt: skip
def init(file: Path | None, with_secrets: bool) -> None:
    """Write a file with every setting at its default, commented out.

    Writes to standard output, or to FILE, which must not exist yet. Only its owner may read FILE,
    since it will hold secrets.
    """
    from repeater.config.documentation import template
    from repeater.serving.extension import EXTENSION

    text = template(EXTENSION.settings, _new_secrets() if with_secrets else {})
    if file is None:
        if with_secrets:
            click.echo("standard output has the new secrets: keep it from others", err=True)
        click.echo(text, nl=False)
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{file} exists already and was not changed") from None
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    told = ", with new secrets" if with_secrets else ""
    click.echo(f"wrote {file}{told}", err=True)


def _new_secrets() -> dict[tuple[str, ...], str]:
    """A new secret for each setting that has one, by the setting's path."""
    names = ("api_key", "metrics_token", "token.hmac_secret_key", "callbacks.secret")
    paths = [tuple(name.split(".")) for name in (*names, "comments_secret_key")]
    return {path: secrets.token_urlsafe(_SECRET_BYTES) for path in paths}


@config_group.command()
@config_option
def check(config_file: Path | None) -> None:
    """Check the configuration, and print a line for each mistake.

    Loads the keys and the certificates, too. Listens nowhere and asks nobody. Warns of short
    secrets, and of a channel_regex that matches no channel; with warnings only the status is 0.
    """
    from repeater.config import ConfigError, find_config
    from repeater.config.warnings import warnings_of
    from repeater.front.tls import Certificate, TLSError
    from repeater.serving.extension import load_settings

    try:
        settings = load_settings(config_file)
        if settings.tls_cert is not None and settings.tls_key is not None:
            Certificate(settings.tls_cert, settings.tls_key)
        if settings.engine_in_force == "valkey":
            from repeater.serving.engine import check_files  # its library may not be installed

            check_files(settings)
    except TLSError as error:
        click.echo(f"tls_cert, tls_key: {error}", err=True)
        raise SystemExit(1) from None
    except ConfigError as error:
        for line in error.lines:
            click.echo(line, err=True)
        raise SystemExit(1) from None
    warnings = [f"warning: {'.'.join(one.path)}: {one.text}" for one in warnings_of(settings)]
    for warning in warnings:
        click.echo(visible(warning), err=True)
    file = find_config(config_file)
    found = f"{file}: no mistakes" if file else "no file; no mistakes in the environment"
    click.echo(f"{found}; {len(warnings)} to think about" if warnings else found)


@config_group.command()
@config_option
def show(config_file: Path | None) -> None:
    """Print the settings in force, from file and environment, as TOML, with stars for secrets."""
    from repeater.config import ConfigError
    from repeater.config.documentation import effective
    from repeater.serving.extension import load_settings

    try:
        click.echo(effective(load_settings(config_file)), nl=False)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


@config_group.command(hidden=True)
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def document(page: Path) -> None:
    """Renew the reference in PAGE, Markdown, from the settings."""
    from repeater.config.documentation import renew
    from repeater.serving.extension import EXTENSION

    text = renew(page.read_text(encoding="utf-8"), EXTENSION.settings)
    page.write_text(text, encoding="utf-8")
