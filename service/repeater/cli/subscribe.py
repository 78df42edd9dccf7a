"""`repeater subscribe`: print the events of channels, as any user or with any token."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import click

from repeater.cli.channel_info import print_channel_info
from repeater.cli.server import Server, server_options
from repeater.cli.terminal import explain, visible
from repeater.cli.token import signed

if TYPE_CHECKING:
    from repeater.config import Settings
    from repeater.subscriber import SubscriptionError

_TTL: Final = 86_400  # seconds of a token's life: a night, after which the next connect makes a new
_SIGN_IN: Final = " (neither --user nor --token was given)"
_SEE_LOG: Final = " (the server's log says why)"
_EXPIRED: Final = "109 "
# How a server ends a connection that has not said who it is, an application's own code included.
_REFUSED: Final = re.compile(r"^disconnected: (3004|350[017]|4501) ")
_ASK: Final = " (--channel-info says which rule)"
_HINTS: Final = {101: _SIGN_IN, 102: _ASK, 103: _ASK, 107: _ASK, 108: _ASK}


@click.command()
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--user", help="Connect as this user, with a token by the configured secret.")
@click.option(
    "--grant", is_flag=True,
    help="With --user: make subscription tokens, too, which open each channel to the user.",
)  # fmt: skip
@click.option("--token", help="Connect with this token; - reads it from standard input.")
@click.option(
    "--channel-info", "with_info", is_flag=True,
    help="First say what the channel's options are, and what the user may do there.",
)  # fmt: skip
@click.option("--with-channel", is_flag=True, help="Print the channel's name before each event.")
@server_options
def subscribe(
    channels: tuple[str, ...],
    user: str | None,
    grant: bool,
    token: str | None,
    with_info: bool,
    with_channel: bool,
    server: Server,
) -> None:
    """Print the events of channels, until Ctrl-C.

    One in each line. Reconnects by itself, and recovers what it missed. Exit status 1 if the
    server refuses it for good.
    """
    import trio

    from repeater.subscriber import SubscriberError, SubscriptionError

    if user is not None and token is not None:
        raise click.UsageError("give --user or --token, not both")
    if grant and user is None:
        raise click.UsageError("--grant goes with --user")
    options = _credentials(server, user, token, grant=grant)
    if with_info:
        for channel in dict.fromkeys(channels):
            print_channel_info(server, channel, user or "")
    try:
        trio.run(_print_events, server, channels, with_channel, options)
    except KeyboardInterrupt:
        return
    except SubscriptionError as error:
        raise click.ClickException(visible(f"{error}{_hint(error, options)}")) from None
    except SubscriberError as error:
        # The server may say no more than that it wants to know who this is, or a better token.
        hint = _SEE_LOG if options else _SIGN_IN
        hint = hint if _REFUSED.search(str(error)) else ""
        raise click.ClickException(visible(f"{error}{hint}")) from None
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            explain(group, SubscriberError)


def _credentials(
    server: Server, user: str | None, token: str | None, *, grant: bool
) -> dict[str, Callable[..., Any]]:
    """The functions that give a subscriber its tokens, and end it when there is none any more.

    Raises:
        click.ClickException: there is no secret to make a token with.
    """
    if token is not None:
        fixed = sys.stdin.readline().strip() if token == "-" else token
        return {"get_token": _always(fixed), "on_reconnect": _end_if_expired}
    if user is None:
        return {}
    settings = _secrets(server)
    signed(user, settings.token_options(), _TTL)  # a mistake is told before anything is printed

    async def get_token() -> str:
        return signed(user, settings.token_options(), _TTL)

    async def get_subscription_token(channel: str) -> str:
        return signed(user, settings.subscription_token_options(), _TTL, channel=channel)

    if not grant:
        return {"get_token": get_token}
    return {"get_token": get_token, "get_subscription_token": get_subscription_token}


def _always(token: str) -> Callable[[], Awaitable[str]]:
    async def get_token() -> str:
        return token

    return get_token


def _secrets(server: Server) -> Settings:
    if server.settings is None:
        # A token by the configured secret is as good as the user's password there.
        raise click.UsageError(
            "--user needs the configuration of this server: give --config, or --token"
        )
    return server.settings


async def _print_events(
    server: Server, channels: tuple[str, ...], with_channel: bool, options: dict[str, Any]
) -> None:
    from repeater.subscriber import open_subscriber

    address = server.address
    async with open_subscriber(
        address.url,
        channels,
        on_gap=_say_gap,
        ssl_context=server.certificates(),
        host=address.host,
        unix_socket=address.socket,
        **{"on_reconnect": _say_reconnect, **options},
    ) as subscriber:
        where = f"unix:{address.socket}" if address.socket else address.url
        click.echo(visible(f"subscribed to {', '.join(channels)} on {where}"), err=True)
        async for event in subscriber:
            line = f"{event.channel} {event.text}" if with_channel else event.text
            click.echo(visible(line) if _is_terminal() else line)
            sys.stdout.flush()


def _hint(error: SubscriptionError, credentials: dict[str, Any]) -> str:
    """What the person at the terminal can do about a refusal."""
    hint = _HINTS.get(error.code, "")
    return "" if hint is _SIGN_IN and credentials else hint


def _is_terminal() -> bool:
    """Whether events go to a person; a program gets them as they were published."""
    return sys.stdout.isatty()


def _say_gap(channel: str) -> None:
    click.echo(visible(f"events of {channel} may be missing here"), err=True)


def _say_reconnect(reason: str, delay: float) -> None:
    click.echo(visible(f"{reason}; trying again in {delay:.1f} s"), err=True)


def _end_if_expired(reason: str, delay: float) -> None:
    """End a subscriber whose only token has expired: another attempt would be refused, too."""
    from repeater.subscriber import SubscriberError

    if reason.startswith(_EXPIRED):
        raise SubscriberError(f"{reason}; give a new --token")
    _say_reconnect(reason, delay)
