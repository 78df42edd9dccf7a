"""Keys and tokens for tests: what a back end and an issuer have."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from repeater.access.tokens.options import TokenOptions

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

SECRET = "sixty-four bytes of a secret that HS512 finds long enough for it"
OTHER_SECRET = SECRET[::-1]
NOW = 1_700_000_000.0
HMAC_OPTIONS = TokenOptions(hmac_secret_key=SECRET)

CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}


def now() -> float:
    """The fake clock: it stands still."""
    return NOW


@cache
def rsa_key(name: str = "first", bits: int = 2_048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, bits)


@cache
def key_for(algorithm: str, name: str = "first") -> PrivateKey:
    """A private key for the algorithm; another name is another key."""
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa_key(name)


def pem_of(key: PrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwk_of(key: PrivateKey, kid: str, **members: object) -> dict[str, Any]:
    """The key as an issuer publishes it."""
    match key:
        case rsa.RSAPrivateKey():
            published = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ec.EllipticCurvePrivateKey():
            published = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ed25519.Ed25519PrivateKey():
            published = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**published, "kid": kid, **members}


def sign(
    claims: Mapping[str, Any],
    key: PrivateKey | str = SECRET,
    algorithm: str = "HS256",
    **headers: object,
) -> str:
    """A token as any back end's library makes it."""
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers=headers)


def base64url(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def sign_text(payload: bytes, header: bytes = b'{"alg":"HS256"}', secret: str = SECRET) -> str:
    """A token of any header and payload, with a right HS256 signature."""
    text = f"{base64url(header)}.{base64url(payload)}"
    digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64url(digest)}"


def key_set(*keys: object) -> bytes:
    """What the issuer answers."""
    return json.dumps({"keys": keys}).encode()
