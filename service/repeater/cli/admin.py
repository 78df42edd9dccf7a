"""`repeater info|channels|presence|history|disconnect|unsubscribe`: inspect and control a server.

The commands print tables for people. With `--json`, for programs, they print the API's result
unchanged on one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import click

from repeater.cli.call import call, server_options

F = TypeVar("F", bound=Callable[..., Any])
Row = Sequence[object]

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's result.")


def _target_options(command: F) -> F:
    """Give a command `--user`, `--client` and `--session`, which select connections."""
    for option in (
        click.option("--user", help="The user of the connections; empty for anonymous ones."),
        click.option("--client", help="Only the connection with this id."),
        click.option("--session", help="Only the connection with this session."),
    ):
        command = option(command)
    return command


@click.command()
@_json_option
@server_options
def info(as_json: bool, api_key: str | None, url: str) -> None:
    """Show each node: its version, uptime, and numbers of clients, users and channels."""
    result = _call(url, "info", api_key)
    head = ("NODE", "VERSION", "UPTIME", "CLIENTS", "USERS", "CHANNELS", "SUBSCRIPTIONS")
    rows = [
        (
            node["name"] or node["uid"],
            node["version"],
            timedelta(seconds=node["uptime"]),
            node["num_clients"],
            node["num_users"],
            node["num_channels"],
            node["num_subs"],
        )
        for node in result["nodes"]
    ]
    _print(result, as_json, head, rows)


@click.command()
@click.argument("pattern", default="*")
@_json_option
@server_options
def channels(pattern: str, as_json: bool, api_key: str | None, url: str) -> None:
    """List the channels that have subscribers, the fullest first; PATTERN as in a shell."""
    result = _call(url, "channels", api_key, pattern=pattern)
    sizes = {name: channel["num_clients"] for name, channel in result["channels"].items()}
    rows = sorted(sizes.items(), key=lambda row: (-row[1], row[0]))
    _print(result, as_json, ("CHANNEL", "CLIENTS"), rows)


@click.command()
@click.argument("channel")
@_json_option
@server_options
def presence(channel: str, as_json: bool, api_key: str | None, url: str) -> None:
    """List the clients that are present in a channel, by user."""
    result = _call(url, "presence", api_key, channel=channel)
    rows = [
        (member["user"], client, _text(member.get("conn_info")), _text(member.get("chan_info")))
        for client, member in result["presence"].items()
    ]
    head = ("USER", "CLIENT", "CONNECTION INFO", "CHANNEL INFO")
    _print(result, as_json, head, sorted(rows))


@click.command()
@click.argument("channel")
@click.option("--limit", default=10, show_default=True, help="Most publications; below 0 for all.")
@click.option("--reverse", is_flag=True, help="Newest first.")
@_json_option
@server_options
def history(
    channel: str, limit: int, reverse: bool, as_json: bool, api_key: str | None, url: str
) -> None:
    """Print the last publications of a channel, and then the top of its stream."""
    # Without --reverse too, the limit counts from the newest publication.
    result = _call(url, "history", api_key, channel=channel, limit=limit, reverse=True)
    if not reverse:
        result["publications"].reverse()
    rows = [
        (one.get("offset", 0), _data(one), _text(one.get("tags"))) for one in result["publications"]
    ]
    _print(result, as_json, ("OFFSET", "DATA", "TAGS"), rows)
    if not as_json:
        click.echo(f"top: offset {result['offset']} of epoch {_shown(result['epoch'])}")


@click.command()
@_target_options
@click.option("--code", type=click.IntRange(3_000, 4_999), help="[default: 3503, for good]")
@click.option("--reason", help="The reason that the client gets.")
@server_options
def disconnect(
    user: str | None,
    client: str | None,
    session: str | None,
    code: int | None,
    reason: str | None,
    api_key: str | None,
    url: str,
) -> None:
    """End a user's connections."""
    body = _target(user, client, session)
    if code is not None or reason is not None:
        body["disconnect"] = {"code": code or 0, "reason": reason or ""}
    _call(url, "disconnect", api_key, **body)


@click.command()
@_target_options
@click.argument("channel", default="")
@server_options
def unsubscribe(
    user: str | None,
    client: str | None,
    session: str | None,
    channel: str,
    api_key: str | None,
    url: str,
) -> None:
    """End a user's subscription to a channel, or to all channels without CHANNEL."""
    _call(url, "unsubscribe", api_key, channel=channel, **_target(user, client, session))


COMMANDS: Final = (info, channels, presence, history, disconnect, unsubscribe)


def _call(url: str, method: str, api_key: str | None, **body: object) -> Any:
    return call(url, method, json.dumps(body).encode(), api_key)


def _target(user: str | None, client: str | None, session: str | None) -> dict[str, object]:
    if user is None:
        # The API takes a missing user for the anonymous one. Not so here: a forgotten option would
        # end the connections of all anonymous users.
        raise click.UsageError("missing --user USER, or --user '' for the anonymous user")
    return {"user": user, "client": client or "", "session": session or ""}


def _print(result: object, as_json: bool, head: Row, rows: Iterable[Row]) -> None:
    if as_json:
        click.echo(json.dumps(result, separators=(",", ":")))
        return
    lines = [[_shown(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _data(publication: dict[str, Any]) -> str:
    """The JSON of a publication; of a binary one the bytes as Base64, said so."""
    if "b64data" in publication:
        return f"base64 {publication['b64data']}".rstrip()
    return _text(publication["data"])


def _text(value: object) -> str:
    """The value as JSON on one line; empty for None."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _shown(text: str) -> str:
    """The text, or its JSON if a terminal could take a part of it for a command."""
    return text if text.isprintable() else json.dumps(text)
