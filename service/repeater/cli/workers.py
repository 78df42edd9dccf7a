"""`repeater workers`: replace the workers of the server that runs with a data directory."""

from __future__ import annotations

from pathlib import Path

import click

from repeater.cli.config import config_option
from repeater.cli.terminal import visible


@click.group("workers")
def workers_group() -> None:
    """Manage the workers of a running server.

    It must have a data_dir.
    """


@workers_group.command()
@config_option
def restart(config_file: Path | None) -> None:
    """Replace the workers one by one, while the server serves.

    Each new one accepts connections before the clients of the old one are asked to come back.
    """
    from repeater.config import ConfigError
    from repeater.serving.admin_call import AdminError, open_admin_call
    from repeater.serving.extension import load_settings

    try:
        folder = load_settings(config_file).kept_in
        if folder is None:
            raise click.ClickException(
                "data_dir is not set, so nobody can be asked: send SIGTERM to one worker after the "
                "other"
            )
        with open_admin_call(folder, "workers.restart") as call:
            # No deadline: the shutdown timeout bounds each step, and the server's end ends it.
            while "result" not in (message := call.next(None)):
                click.echo(visible(str(message["progress"])))
    except (ConfigError, AdminError) as error:
        raise click.ClickException(visible(str(error))) from None
