"""`repeater info|channels|presence|history`: look at a running server.

The commands print tables for people. With `--json`, for programs, they print the API's result
unchanged on one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

import click

from repeater.cli.call import ask
from repeater.cli.server import Server, server_options

Row = Sequence[object]

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's result.")


@click.command()
@_json_option
@server_options
def info(as_json: bool, server: Server) -> None:
    """Show each node, with its numbers of clients.

    Also its version, its uptime, and its numbers of users, channels and subscriptions.
    """
    result = ask(server, "info")
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
def channels(pattern: str, as_json: bool, server: Server) -> None:
    """List channels with subscribers, the fullest first.

    PATTERN is as in a shell: `news*`.
    """
    result = ask(server, "channels", pattern=pattern)
    sizes = {name: channel["num_clients"] for name, channel in result["channels"].items()}
    rows = sorted(sizes.items(), key=lambda row: (-row[1], row[0]))
    _print(result, as_json, ("CHANNEL", "CLIENTS"), rows)


@click.command()
@click.argument("channel")
@click.option("--stats", is_flag=True, help="Only count them.")
@_json_option
@server_options
def presence(channel: str, stats: bool, as_json: bool, server: Server) -> None:
    """List who is present in a channel, by user."""
    if stats:
        counts = ask(server, "presence_stats", channel=channel)
        row = (counts["num_clients"], counts["num_users"])
        return _print(counts, as_json, ("CLIENTS", "USERS"), [row])
    result = ask(server, "presence", channel=channel)
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
def history(channel: str, limit: int, reverse: bool, as_json: bool, server: Server) -> None:
    """Print the last publications of a channel.

    Then the top of its stream.
    """
    # Without --reverse too, the limit counts from the newest publication.
    result = ask(server, "history", channel=channel, limit=limit, reverse=True)
    if not reverse:
        result["publications"].reverse()
    rows = [
        (one.get("offset", 0), _data(one), _text(one.get("tags"))) for one in result["publications"]
    ]
    _print(result, as_json, ("OFFSET", "DATA", "TAGS"), rows)
    if not as_json:
        click.echo(f"top: offset {result['offset']} of epoch {_shown(result['epoch'])}")


COMMANDS: Final = (info, channels, presence, history)


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
