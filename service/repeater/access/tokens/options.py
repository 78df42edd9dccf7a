"""What makes a token good: whose keys, for which audience, from which issuer. Values only.

A server has one set for connection tokens and may have another for subscription tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from repeater.options import Options, OptionsError, SecretText


class TokenOptions(Options, frozen=True, kw_only=True):
    """What one kind of token is proven with (protocol, section 13). Secrets stay out of `repr`.

    The keys alone decide which algorithms are taken; what a token's header says decides nothing.
    Without any key every token is invalid. Times are seconds, sizes bytes.

    Raises:
        OptionsError: options that contradict each other; the text never holds a key.
    """

    hmac_secret_key: SecretText = ""
    """Allows HS256, HS384 and HS512; empty for none."""

    hmac_previous_secret_key: SecretText = ""
    """Also taken while the secret is being replaced; empty for none."""

    hmac_previous_secret_key_valid_until: int = 0
    """Unix seconds from which the previous secret is no longer taken; 0 for no end."""

    rsa_public_key: str = ""
    """PEM, of 2,048 bits at least; allows RS256, RS384 and RS512."""

    ecdsa_public_key: str = ""
    """PEM; allows the one of ES256, ES384 and ES512 that is its curve's."""

    eddsa_public_key: str = ""
    """PEM of an Ed25519 key; allows EdDSA."""

    jwks_url: str = ""
    """Where the issuer publishes its keys; a token names its key by `kid`. Each key allows its
    own type's algorithms, so never HS*."""

    jwks_ttl: float = 3_600.0
    """How long published keys are used before they are fetched again."""

    jwks_retry_interval: float = 10.0
    """Between two fetches at least, however many unknown keys the tokens name."""

    jwks_timeout: float = 2.0
    """For one fetch; a client's SDK gives up on a connect after 5."""

    jwks_size_limit: int = 262_144
    """Longest key set; real ones have a few KiB."""

    jwks_proxy: SecretText = ""
    """The HTTP proxy that fetches go through, `http://user:password@proxy:3128`; empty for none.
    Variables such as HTTPS_PROXY do not count."""

    jwks_ca_file: str = ""
    """Certificates of the authorities that the issuer's certificate is proven with, PEM; empty
    for the public ones. Variables such as SSL_CERT_FILE do not count."""

    audience: str = ""
    """What `aud` must be, or have among its values; empty for anything."""

    audience_regex: re.Pattern[str] | None = None
    """The same as a pattern, which the whole value must match."""

    issuer: str = ""
    """What `iss` must be; empty for anything."""

    issuer_regex: re.Pattern[str] | None = None
    """The same as a pattern, which the whole value must match."""

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
    """Whether this is an address with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
