"""The `repeater` command: serve, publish and subscribe; other modules have the other subcommands.

A user's mistake is one line on standard error and a non-zero exit, never a traceback. A command
imports the modules that it needs when it runs, so that `repeater --version` is quick.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repeater import __version__
from repeater.cli import admin, changes
from repeater.cli.call import call
from repeater.cli.config import config_group, config_option
from repeater.cli.data import data_group
from repeater.cli.postgres import postgres_group
from repeater.cli.server import Server, server_options
from repeater.cli.subscribe import subscribe
from repeater.cli.terminal import explain
from repeater.cli.token import token
from repeater.cli.workers import workers_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from repeater.config import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="repeater")
def main() -> None:
    """Repeater: publish events over REST; every subscriber gets them within milliseconds.

    Commands that talk to a server take its URL, its key and its secrets from --config,
    REPEATER_CONFIG or repeater.toml in this directory, as the server does. Variables win over the
    file, options over both.

    \b
    Exit status:
      0  done
      1  not done: refused, nothing to change, or no server; one line says which
      2  wrong usage
      3  `data check` has found faults
    """


main.add_command(config_group)
main.add_command(workers_group)
main.add_command(data_group)
main.add_command(postgres_group)
main.add_command(token)
main.add_command(subscribe)
for _command in (*admin.COMMANDS, *changes.COMMANDS):
    main.add_command(_command)


@main.command()
@config_option
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1; REPEATER_HOST]")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port, 0 for a free one.  [8000]")
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT|unix:PATH",
    help="Listen here instead of host and port; may be repeated.",
)  # fmt: skip
@click.option("--unix", metavar="PATH", help="The same as --listen unix:PATH.")
@click.option("--tls-cert", metavar="FILE", help="Certificate chain, PEM: speak TLS on TCP.")
@click.option("--tls-key", metavar="FILE", help="Its key, PEM.")
@click.option("--dev", is_flag=True, default=None, help="Open to everybody on this machine.")
@click.option(
    "--engine", metavar="memory|sqlite|valkey",
    help="Where the history of channels is.  [default: memory]",
)  # fmt: skip
@click.option(
    "--engine-url", metavar="URL",
    help="Where valkey is. A URL with a password belongs in REPEATER_ENGINE_URL.",
)  # fmt: skip
@click.option("--workers", metavar="N|auto", help="Processes that serve the clients.  [default: 1]")
@click.option(
    "--take-over",
    is_flag=True,
    help="Take over from the server that runs in data_dir, without refusing a connection.",
)
@click.option(
    "--comments/--no-comments", default=None,
    help="Run the comments application too.  [default: with --dev, if it is installed]",
)  # fmt: skip
def serve(
    config_file: Path | None,
    host: str | None,
    port: int | None,
    listen: tuple[str, ...],
    unix: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    dev: bool | None,
    engine: str | None,
    engine_url: str | None,
    workers: str | None,
    take_over: bool,
    comments: bool | None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM.

    Every setting is a line of the file and an environment variable, REPEATER_API_KEY and
    REPEATER_HOST for example; variables win over the file, options over both. `repeater config
    init` prints a file with all settings. SIGHUP reads the settings again.
    """
    from repeater.config import ConfigError, worker_place
    from repeater.config.extension import ExtensionError
    from repeater.serving.errors import ServeError, WorkersError
    from repeater.serving.extension import load_settings

    mistakes = (ConfigError, ServeError, ExtensionError, WorkersError)
    try:
        overrides = {
            "host": host,
            "port": port,
            "listen": (*listen, f"unix:{unix}") if unix is not None else listen or None,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "dev": dev,
            "engine": engine,
            "engine_url": engine_url,
            "workers": workers,
            "comments": comments,
        }
        load = partial(load_settings, config_file, **overrides)
        if place := worker_place():
            from repeater.serving.worker import run_worker

            sys.exit(run_worker(place, load))
        settings = load()
        if settings.listen and not (host is None and port is None):
            raise click.ClickException(
                "--host and --port do nothing beside --listen, --unix or the setting listen: "
                "leave them out"
            )
        _run_server(settings, load, take_over=take_over)
    except mistakes as error:
        raise click.ClickException(str(error)) from None
    except BaseExceptionGroup as group:
        explain(group, mistakes)


def _run_server(settings: Settings, load: Callable[[], Settings], *, take_over: bool) -> None:
    """Serve until a signal, in this process alone or with workers."""
    import trio

    from repeater.log import configure_log, open_log_output, share_log
    from repeater.serving import early_signals
    from repeater.serving.collector import settle_heap
    from repeater.serving.processors import count_workers

    workers = count_workers(settings.workers)
    if workers > 1:
        from repeater.serving.supervisor import supervise

        share_log(None)
        serving = partial(supervise, settings, load, workers)
    else:
        from repeater.serving.process import serve as serve_alone

        serving = partial(serve_alone, settings, load)
    open_log_output()
    configure_log(settings.log_level, settings.log_format)
    settle_heap()
    early_signals.keep_all()
    trio.run(partial(serving, take_over=take_over, earlier=early_signals.take_kept))


@main.command()
@click.argument("channel")
@click.argument("data", metavar="JSON")
@server_options
def publish(channel: str, data: str, server: Server) -> None:
    """Publish one event and print its position."""
    from repeater.json_text import json_text

    try:
        # Bytes of an argument that are not UTF-8 are surrogates in a `str`.
        text = json_text(data.encode(errors="surrogateescape"))
    except ValueError as error:
        raise click.ClickException(f"that is not JSON: {error}") from None
    body = b'{"channel":%b,"data":%b}' % (json.dumps(channel).encode(), text)
    click.echo(json.dumps(call(server, "publish", body)))
