"""`repeater token`: what it makes is taken by the server, and it never shows a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repeater.access.grants import SubscriptionGrant
from repeater.access.tokens.options import TokenOptions
from repeater.access.tokens.verifier import open_verifier
from repeater.cli.main import main
from tests.signing import OTHER_SECRET, SECRET, key_for, pem_of, sign, sign_text

ENV = {"REPEATER_TOKEN__HMAC_SECRET_KEY": SECRET}


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(main, ["token", *arguments], env=ENV if env is None else env)
    assert SECRET not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def fail(*arguments: str, env: dict[str, str] | None = None) -> str:
    """The one line that a failed command prints."""
    result = run(*arguments, env=env)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr.removeprefix("Error: ").strip()


async def test_connection_token() -> None:
    """It holds what the options say, and the verifier takes it."""
    made = run("connection", "--user", "42", "--ttl", "60", "--channel", "a", "--channel", "b",
               "--info", '{"n": 1}', "--meta", "[1, 2]")  # fmt: skip
    assert made.exit_code == 0
    async with open_verifier(TokenOptions(hmac_secret_key=SECRET)) as verifier:
        grant = await verifier.verify_connection(made.stdout.strip())
    assert grant.user == "42"
    assert (grant.info, grant.meta) == (b'{"n":1}', b"[1,2]")
    assert grant.channels == {"a": SubscriptionGrant(), "b": SubscriptionGrant()}
    assert grant.expire_at - grant.issued_at == 60


async def test_subscription_token() -> None:
    """It opens its channel to its user, for an hour unless told otherwise."""
    made = run("subscription", "--user", "42", "--channel", "news").stdout.strip()
    endless = run("subscription", "--user", "", "--channel", "news", "--ttl", "0").stdout.strip()
    async with open_verifier(TokenOptions(hmac_secret_key=SECRET)) as verifier:
        claims = await verifier.verify_subscription(made)
        assert (claims.user, claims.channel) == ("42", "news")
        assert claims.grant.expire_at - claims.issued_at == 3_600
        claims = await verifier.verify_subscription(endless)
        assert (claims.user, claims.grant.expire_at) == ("", 0)


def test_check_prints_the_grant() -> None:
    """`check` tells the kind, and prints what is granted as one line of JSON."""
    made = run("connection", "--user", "42", "--channel", "a", "--ttl", "0", "--info", "1.50")
    found = json.loads(run("check", made.stdout.strip()).stdout)
    issued = found.pop("issued_at")
    assert issued > 1_700_000_000
    assert found == {"type": "connection", "user": "42", "info": 1.5, "channels": {"a": {}}}
    made = run("subscription", "--user", "42", "--channel", "a", "--ttl", "0")
    found = json.loads(run("check", made.stdout).stdout)
    assert (found["type"], found["user"], found["channel"]) == ("subscription", "42", "a")
    token = sign_text(
        b'{"subs":{"a":{"override":{"presence":{"value":false}}}},"info":' + b"9" * 5_000 + b"}"
    )
    output = run("check", token).stdout
    assert '"channels":{"a":{"overrides":{"presence":false}}}' in output
    assert "9" * 5_000 in output


@pytest.mark.parametrize("algorithm", ["RS256", "ES384", "EdDSA"])
def test_check_with_a_public_key(tmp_path: Path, algorithm: str) -> None:
    """A PEM file of any type proves its tokens; the secret is not needed."""
    path = tmp_path / "key.pem"
    path.write_text(pem_of(key_for(algorithm)))
    token = sign({"sub": "42"}, key_for(algorithm), algorithm)
    found = json.loads(run("check", token, "--public-key", str(path), env={}).stdout)
    assert found == {"type": "connection", "user": "42"}


def test_check_says_what_is_wrong() -> None:
    """One line and exit code 1, never a traceback."""
    assert fail("check", "nope").startswith("the token is invalid: not a token: a JWT has three")
    assert fail("check", sign({}, OTHER_SECRET)) == (
        "the token is invalid: wrong signature: "
        "sign with the secret of token.hmac_secret_key, byte for byte"
    )
    for claims in ({"exp": 1}, {"exp": 1, "channel": "a"}):
        assert fail("check", sign(claims)).startswith("the token is good, but expired 1")
    assert "not valid yet" in fail("check", sign({"nbf": 10**10}))
    assert fail("check", sign({}), env={}).startswith("no key: set REPEATER_TOKEN")
    token = sign({}, key_for("RS256"), "RS256", kid="a")
    url = "http://127.0.0.1:1/keys"
    assert "not available now" in run("check", token, "--jwks-url", url).stderr
    assert fail("check", token, "--jwks-url", "keys").startswith("jwks_url must be")


def test_check_with_a_file_that_is_no_key(tmp_path: Path) -> None:
    """The file's contents are not repeated."""
    path = tmp_path / "key.pem"
    path.write_bytes(b"swordfish\xff")
    assert fail("check", sign({}), "--public-key", str(path)) == "not a public key in PEM form"


def test_mistakes_when_making() -> None:
    """No secret, a public key for one, or an option that is not JSON: one line each."""
    make = ("connection", "--user", "42")
    assert fail(*make, env={}).startswith("no secret: set REPEATER_TOKEN__HMAC_SECRET_KEY, or ")
    assert fail(*make, "--info", "{") == "--info is not JSON"
    assert fail(*make, "--meta", "NaN") == "--meta is not JSON"
    pem = {"REPEATER_TOKEN__HMAC_SECRET_KEY": pem_of(key_for("RS256"))}
    assert "an HMAC secret must not be a public key" in fail(*make, env=pem)
    key = ("--hmac-secret-key", pem_of(key_for("RS256")))
    assert fail(*make, *key, env={}) == "an HMAC secret must not be a public key"


def test_short_secret_is_warned_of() -> None:
    """A secret that can be guessed still signs, with a warning that does not show it."""
    made = run("connection", "--user", "42", env={"REPEATER_TOKEN__HMAC_SECRET_KEY": "hunter2"})
    assert made.exit_code == 0
    assert made.stdout.count(".") == 2
    assert "guessed" in made.stderr
    assert "hunter2" not in made.output
