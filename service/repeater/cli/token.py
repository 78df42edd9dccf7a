"""`repeater token`: makes tokens to try the server with, and checks tokens.

Secret, audience and issuer are those of the configuration, as the server has them. A secret is
never printed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repeater.cli.config import config_option, load

if TYPE_CHECKING:
    import msgspec

    from repeater.access.tokens.options import TokenOptions
    from repeater.access.tokens.verifier import JWTVerifier

_SAFE_LENGTH = 32  # bytes, as HMAC_SAFE_LENGTH, whose module would load the cryptography
_HOW = "set REPEATER_TOKEN__HMAC_SECRET_KEY, or hmac_secret_key in [token] of the configuration"

secret_option = click.option(
    "--hmac-secret-key",
    help="The secret shared with the server; better configured than typed here.  [default: "
    "the configuration's; REPEATER_TOKEN__HMAC_SECRET_KEY]",
)
ttl_option = click.option(
    "--ttl", default=3_600, show_default=True, type=click.IntRange(min=0),
    help="Seconds until the token expires; 0 for never.",
)  # fmt: skip
info_option = click.option("--info", metavar="JSON", help="Data of the user that others see.")


@click.group()
def token() -> None:
    """Make and check tokens of clients."""


@token.command()
@click.option("--user", required=True, help="The user's id; an empty one is anonymous.")
@click.option("--channel", "channels", multiple=True, help="Subscribe to this; may be repeated.")
@click.option("--meta", metavar="JSON", help="Data that only the server sees.")
@info_option
@ttl_option
@secret_option
@config_option
def connection(
    user: str,
    channels: tuple[str, ...],
    meta: str | None,
    info: str | None,
    ttl: int,
    hmac_secret_key: str | None,
    config_file: Path | None,
) -> None:
    """Print a token with which a client may connect."""
    claims = _json_claims(info=info, meta=meta)
    if channels:
        claims["channels"] = channels
    options, _ = _options(hmac_secret_key, config_file)
    click.echo(signed(user, options, ttl, **claims))


@token.command()
@click.option("--user", required=True, help="The user's id, as in the connection token.")
@click.option("--channel", required=True, help="The channel that the token opens.")
@info_option
@ttl_option
@secret_option
@config_option
def subscription(
    user: str,
    channel: str,
    info: str | None,
    ttl: int,
    hmac_secret_key: str | None,
    config_file: Path | None,
) -> None:
    """Print a token with which a client may subscribe to one channel."""
    _, options = _options(hmac_secret_key, config_file)
    click.echo(signed(user, options, ttl, channel=channel, **_json_claims(info=info)))


def _json_claims(**given: str | None) -> dict[str, Any]:
    """The values of the options that hold JSON, without the options that were not given."""
    import msgspec

    claims = {}
    for name, text in given.items():
        if text is None:
            continue
        try:
            claims[name] = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            raise click.ClickException(f"--{name} is not JSON") from None
    return claims


def signed(user: str, options: TokenOptions, ttl: int, **claims: Any) -> str:
    """A token of a user that these options accept, with more claims; 0 seconds of life for ever.

    Warns on standard error of a short secret, and of what the token lacks.

    Raises:
        click.ClickException: there is no secret to sign with.
    """
    from repeater.access.tokens.issue import issue_token

    secret = options.hmac_secret_key
    if not secret:
        keys = "its keys are public, and sign nothing" if options.enabled else _HOW
        raise click.ClickException(f"no secret: {keys}")
    if len(secret.encode()) < _SAFE_LENGTH:
        click.echo(f"warning: a secret below {_SAFE_LENGTH} bytes may be guessed", err=True)
    for name, pattern in (("aud", options.audience_regex), ("iss", options.issuer_regex)):
        if pattern is not None:
            click.echo(f"warning: the token has no {name}, which must match a pattern", err=True)
    now = int(time.time())
    claims |= {options.user_id_claim: user, "iat": now}
    claims |= {"exp": now + ttl} if ttl else {}
    claims |= {"aud": options.audience} if options.audience else {}
    claims |= {"iss": options.issuer} if options.issuer else {}
    try:
        return issue_token(claims, secret)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@token.command()
@click.argument("text", metavar="TOKEN")
@click.option(
    "--public-key", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A PEM file, for a token that an RSA, EC or Ed25519 key signed.",
)  # fmt: skip
@click.option("--jwks-url", help="The URL where the issuer publishes its keys.")
@secret_option
@config_option
def check(
    text: str,
    public_key: Path | None,
    jwks_url: str | None,
    hmac_secret_key: str | None,
    config_file: Path | None,
) -> None:
    """Print what a token grants, or why it is invalid.

    Without a key here, the configuration's keys prove it, as the server would.
    """
    import msgspec
    import trio

    from repeater.access.grants import TokenExpiredError, TokenInvalidError
    from repeater.errors import BrokerError

    try:
        if public_key is not None or jwks_url:
            options = _given_keys(public_key, jwks_url, hmac_secret_key)
            both = options, options
        else:
            both = _options(hmac_secret_key, config_file)
        if not any(options.enabled for options in both):
            raise click.ClickException(f"no key: {_HOW}, or give --public-key")
        kind, found = trio.run(_verify, text.strip(), *both)
    except TokenExpiredError as error:
        raise click.ClickException(str(error.why)) from None
    except TokenInvalidError as error:
        raise click.ClickException(str(error.why)) from None
    except (BrokerError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(msgspec.json.encode({"type": kind, **_readable(found)}))


def _options(secret: str | None, config_file: Path | None) -> tuple[TokenOptions, TokenOptions]:
    """How connection tokens and subscription tokens are proven: by a secret or as configured.

    Raises:
        click.ClickException: the configuration is wrong.
    """
    from repeater.access.tokens.options import TokenOptions

    if secret:
        options = TokenOptions(hmac_secret_key=secret)
        return options, options
    settings = load(config_file, "; or give --hmac-secret-key")
    return settings.token_options(), settings.subscription_token_options()


def _given_keys(
    public_key: Path | None, jwks_url: str | None, hmac_secret_key: str | None
) -> TokenOptions:
    """The keys that the command line gives.

    Raises:
        ValueError: a key is unusable.
        OSError: the file cannot be read.
    """
    from repeater.access.tokens.keys import KEY_SETTINGS, pem_keys
    from repeater.access.tokens.options import TokenOptions

    keys = {"hmac_secret_key": hmac_secret_key or "", "jwks_url": jwks_url or ""}
    if public_key is not None:
        pem = public_key.read_text(errors="replace")
        keys[KEY_SETTINGS[pem_keys(pem)[0].algorithm[:2]]] = pem
    return TokenOptions(**keys)  # type: ignore[arg-type]  # all of them are text


async def _verify(
    text: str, connections: TokenOptions, subscriptions: TokenOptions
) -> tuple[str, msgspec.Struct]:
    """The token's kind and what it grants.

    Raises:
        TokenExpiredError, TokenInvalidError, BrokerError: as the verifier says.
    """
    from repeater.access.tokens.verifier import open_verifier

    try:
        async with open_verifier(connections, subscriptions) as verifier:
            return await _verify_either(text, verifier)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # The verifier's nursery wrapped the error.


async def _verify_either(text: str, verifier: JWTVerifier) -> tuple[str, msgspec.Struct]:
    from repeater.access.grants import TokenInvalidError

    try:
        return "subscription", await verifier.verify_subscription(text)
    except TokenInvalidError:
        # Perhaps a connection token. If it is neither, the error of this second try is raised.
        return "connection", await verifier.verify_connection(text)


def _readable(found: msgspec.Struct) -> dict[str, Any]:
    """The grant as JSON values, without empty ones. JSON text in the grant is not changed."""
    import msgspec

    readable: dict[str, Any] = {}
    for name in found.__struct_fields__:
        value = getattr(found, name)
        match value:
            case bytes() if value:
                readable[name] = msgspec.Raw(value)
            case msgspec.Struct():
                readable[name] = _readable(value)
            case dict() if value:
                readable[name] = {key: _readable(one) for key, one in value.items()}
            case _ if name == "by_token":
                continue  # set by the server; the token does not say it
            case str() | int() if value or name == "user" or value is False:
                readable[name] = value
    return {name: value for name, value in readable.items() if value != {}}
