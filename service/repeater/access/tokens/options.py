"""The options of tokens: the keys, audience and issuer of a valid token. Values only.

A server has one `TokenOptions` for connection tokens, and may have another for subscription tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from repeater.options import Options, OptionsError, SecretText


class TokenOptions(Options, frozen=True, kw_only=True):
    """The keys and conditions of one kind of token (protocol, section 13). `repr` has no secrets.

    The keys alone decide which algorithms are accepted; a token's header decides nothing.
    Without any key every token is invalid. Times are seconds, sizes bytes.

    Raises:
        OptionsError: options that contradict each other; the text never holds a key.
    """

    hmac_secret_key: SecretText = ""
    """The shared secret; allows HS256, HS384 and HS512. Empty for none."""

    hmac_previous_secret_key: SecretText = ""
    """The old secret, accepted too while it is being replaced; empty for none."""

    hmac_previous_secret_key_valid_until: int = 0
    """The time, in Unix seconds, from which the previous secret is refused; 0 for never."""

    rsa_public_key: str = ""
    """PEM of an RSA key with 2,048 bits or more; allows RS256, RS384 and RS512."""

    ecdsa_public_key: str = ""
    """PEM of an elliptic curve key; allows ES256, ES384 or ES512, depending on its curve."""

    eddsa_public_key: str = ""
    """PEM of an Ed25519 key; allows EdDSA."""

    jwks_url: str = ""
    """The URL where the issuer publishes its keys. A token names its key by `kid`. Each key allows
    the algorithms of its own type, so never HS*."""

    jwks_ttl: float = 3_600.0
    """How long published keys are used before they are fetched again."""

    jwks_retry_interval: float = 10.0
    """Shortest time between two fetches, however many unknown keys the tokens name."""

    jwks_timeout: float = 2.0
    """Longest time for one fetch; a client's SDK gives up on a connect after 5 seconds."""

    jwks_size_limit: int = 262_144
    """Longest key set that is accepted; real ones have a few KiB."""

    jwks_proxy: SecretText = ""
    """The HTTP proxy that fetches go through, `http://user:password@proxy:3128`; empty for none.
    Variables such as HTTPS_PROXY do not count."""

    jwks_ca_file: str = ""
    """Certificates of the authorities that the issuer's certificate is proven with, PEM; empty
    for the public ones. Variables such as SSL_CERT_FILE do not count."""

    audience: str = ""
    """The value that `aud` must be, or contain if it is a list; empty allows any."""

    audience_regex: re.Pattern[str] | None = None
    """The same as a pattern, which the whole value must match."""

    issuer: str = ""
    """The value that `iss` must be; empty allows any."""

    issuer_regex: re.Pattern[str] | None = None
    """The same as a pattern, which the whole value must match."""

    leeway: float = 0.0
    """How far the issuer's clock may be ahead: a token is valid for so long before its `nbf`. `exp`
    needs none: at error 109 an SDK fetches a new token, and a client has `expired_close_delay` to
    refresh."""

    user_id_claim: str = "sub"
    """The claim that holds the user's id."""

    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise OptionsError(mistakes)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        if self.audience and self.audience_regex:
            yield "audience", "excludes audience_regex"
        if self.issuer and self.issuer_regex:
            yield "issuer", "excludes issuer_regex"
        if self.hmac_previous_secret_key and not self.hmac_secret_key:
            yield "hmac_previous_secret_key", "needs hmac_secret_key"
        if self.jwks_url and not is_http(self.jwks_url):
            yield "jwks_url", "must be an http or https URL"
        if self.jwks_proxy and not is_http(self.jwks_proxy):
            yield "jwks_proxy", "must be the http or https URL of a proxy"
        for name in ("jwks_proxy", "jwks_ca_file"):
            if getattr(self, name) and not self.jwks_url:
                yield name, "needs jwks_url"
        if not self.user_id_claim:
            yield "user_id_claim", "must not be empty"

    @property
    def enabled(self) -> bool:
        """Whether there is any key to prove a token with."""
        return bool(
            self.hmac_secret_key
            or self.rsa_public_key
            or self.ecdsa_public_key
            or self.eddsa_public_key
            or self.jwks_url
        )


def is_http(url: str) -> bool:
    """Whether this is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
