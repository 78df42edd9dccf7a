"""What a channel's options are and what a user may do there, for somebody at a terminal."""

from __future__ import annotations

import json
from typing import Any, Final

import click
import msgspec

from repeater.cli.call import ask
from repeater.cli.server import Server
from repeater.cli.terminal import visible
from repeater.options import ChannelOptions

_DEFAULTS: Final = {"allowed_delta_types": []} | {
    one.name: one.default
    for one in msgspec.structs.fields(ChannelOptions)
    if not isinstance(one.default, frozenset)
}


def print_channel_info(server: Server, channel: str, user: str) -> None:
    """Ask a server about a channel, and print the answer to standard error.

    Raises:
        click.ClickException: as `call`.
    """
    result = ask(server, "channel_info", channel=channel, user=user)
    who = f"user {user!r}" if user else "an anonymous client"
    lines = [f"{channel} for {who}:"]
    for action, permission in result["permissions"].items():
        lines.append(f"  {action:<10} {permission['may']:<5} {_reason(permission)}")
    lines.append(f"  options of {result['table']}, others are at their defaults:")
    for name, value in result["options"].items():
        if value != _DEFAULTS.get(name):
            lines.append(f"    {name} = {json.dumps(value)}")
    for line in lines:
        click.echo(visible(line), err=True)


def _reason(permission: dict[str, Any]) -> str:
    mend = permission["mend"]
    return f"{permission['why']} ({mend})" if mend else str(permission["why"])
