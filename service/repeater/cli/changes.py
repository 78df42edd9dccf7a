"""`repeater disconnect|unsubscribe|block|unblock|revoke`: act on users and their connections.

Each prints how much it has changed, over all workers and nodes. Exit status 1 says that it has
changed nothing. With `--json` the line is the API's result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NoReturn, TypeVar

import click

from repeater.cli.call import ask
from repeater.cli.server import Server, server_options

F = TypeVar("F", bound=Callable[..., Any])

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's result.")


class _Duration(click.ParamType[int]):
    """Seconds, written as in the configuration: 90, 10m, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import TypeAdapter, ValidationError

        from repeater.config.fields import Seconds

        try:
            seconds = TypeAdapter(Seconds).validate_python(value)
        except ValidationError:
            seconds = 0.0
        if seconds <= 0:
            self.fail(f"{value!r} is not seconds, or a number with s, m, h or d", param, ctx)
        return math.ceil(seconds)


class _Moment(click.ParamType[int]):
    """Unix seconds, also written as 2026-11-25T20:00:00Z."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text.isascii() and text.isdigit():
            return int(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self._refuse(text, param, ctx)
        if moment.tzinfo is None:  # This machine's zone need not be the one that was meant.
            self._refuse(text, param, ctx)
        return math.ceil(moment.timestamp())

    def _refuse(
        self, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> NoReturn:
        self.fail(f"{text!r} is neither Unix seconds nor like 2026-11-25T20:00:00Z", param, ctx)


def _target_options(command: F) -> F:
    """Give a command `--user`, `--client` and `--session`, which select connections."""
    for option in (
        click.option("--user", help="The user of the connections; empty for anonymous ones."),
        click.option("--client", help="Only the connection with this id."),
        click.option("--session", help="Only the connection with this session."),
    ):
        command = option(command)
    return command


def _ending_options(command: F) -> F:
    """Give a command `--ttl` and `--until`, which say when a denial ends."""
    until = click.option(
        "--until", type=_Moment(), metavar="TIME", help="When it ends, 2026-11-25T20:00:00Z."
    )
    ttl = click.option("--ttl", type=_Duration(), help="How long it lasts, 10m for example.")
    return ttl(until(command))


@click.command()
@_target_options
@click.option("--code", type=click.IntRange(3_000, 4_999), help="[default: 3503, for good]")
@click.option("--reason", help="The reason that the client gets.")
@_json_option
@server_options
def disconnect(
    user: str | None,
    client: str | None,
    session: str | None,
    code: int | None,
    reason: str | None,
    as_json: bool,
    server: Server,
) -> None:
    """End a user's connections.

    Prints how many. Exit status 1 if there are none.
    """
    body = _target(user, client, session)
    if code is not None or reason is not None:
        body["disconnect"] = {"code": code or 0, "reason": reason or ""}
    result = ask(server, "disconnect", **body)
    count = result["num_clients"]
    _report(result, as_json, count, f"{_many(count, 'connection')} closed")


@click.command()
@_target_options
@click.argument("channel", default="")
@_json_option
@server_options
def unsubscribe(
    user: str | None,
    client: str | None,
    session: str | None,
    channel: str,
    as_json: bool,
    server: Server,
) -> None:
    """End a user's subscriptions.

    Those to CHANNEL, else to all channels. Prints how many. Exit status 1 if there are none.
    """
    result = ask(server, "unsubscribe", channel=channel, **_target(user, client, session))
    count = result["num_subs"]
    _report(result, as_json, count, f"{_many(count, 'subscription')} ended")


@click.command()
@click.argument("user")
@_ending_options
@_json_option
@server_options
def block(user: str, ttl: int | None, until: int | None, as_json: bool, server: Server) -> None:
    """Keep a user out, and close the user's connections.

    Until `unblock`, or for --ttl, or --until a time. Exit status 1 if the same is in force already.
    """
    result = ask(server, "block_user", user=user, **_ending(ttl, until))
    changed = result["changed"]
    told = f"1 user blocked, {_ended(result)}" if changed else "0 users blocked: already blocked"
    _report(result, as_json, changed, told)


@click.command()
@click.argument("user")
@_json_option
@server_options
def unblock(user: str, as_json: bool, server: Server) -> None:
    """Let a blocked user in again.

    Revoked tokens stay revoked. Exit status 1 if the user is not blocked.
    """
    result = ask(server, "unblock_user", user=user)
    changed = result["changed"]
    told = "1 user unblocked" if changed else "0 users unblocked: not blocked"
    _report(result, as_json, changed, told)


@click.command()
@click.option("--token-id", metavar="JTI", help="The one token with this jti.")
@click.option("--user", help="The tokens of this user.")
@click.option(
    "--issued-before", type=_Moment(), metavar="TIME",
    help="Of the user's tokens those issued (iat) before this time.  [default: now]",
)  # fmt: skip
@_ending_options
@_json_option
@server_options
def revoke(
    token_id: str | None,
    user: str | None,
    issued_before: int | None,
    ttl: int | None,
    until: int | None,
    as_json: bool,
    server: Server,
) -> None:
    """Refuse a token, or the tokens of a user.

    Connections that came by one are closed. The user may come back with a token that is issued
    later; `block` keeps the user out. Exit status 1 if the same is in force already.
    """
    if bool(token_id) is bool(user):
        raise click.UsageError("give either --token-id JTI or --user USER")
    if issued_before is not None and not user:
        raise click.UsageError("--issued-before goes with --user")
    which: dict[str, object] = {"user": user, "issued_before": issued_before or 0}
    if token_id:
        which = {"jti": token_id}
    result = ask(server, "revoke_token", **which, **_ending(ttl, until))
    changed = result["changed"]
    what = "1 token" if token_id else "the tokens of 1 user"
    told = f"{what} revoked, {_ended(result)}" if changed else "0 tokens revoked: already revoked"
    _report(result, as_json, changed, told)


COMMANDS: Final = (disconnect, unsubscribe, block, unblock, revoke)


def _target(user: str | None, client: str | None, session: str | None) -> dict[str, object]:
    if user is None:
        # The API takes a missing user for the anonymous one. Not so here: a forgotten option would
        # end the connections of all anonymous users.
        raise click.UsageError("missing --user USER, or --user '' for the anonymous user")
    return {"user": user, "client": client or "", "session": session or ""}


def _ending(ttl: int | None, until: int | None) -> dict[str, int]:
    if ttl is not None and until is not None:
        raise click.UsageError("give --ttl or --until, not both")
    return {"ttl": ttl or 0, "expire_at": until or 0}


def _ended(result: dict[str, Any]) -> str:
    closed = f"{_many(result['num_clients'], 'connection')} closed"
    if not result["num_subs"]:
        return closed
    return f"{closed}, {_many(result['num_subs'], 'subscription')} ended"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _report(result: dict[str, Any], as_json: bool, changed: int, told: str) -> None:
    """Print what was changed; exit with status 1 if that is nothing."""
    click.echo(json.dumps(result, separators=(",", ":")) if as_json else told)
    if not changed:
        raise SystemExit(1)
