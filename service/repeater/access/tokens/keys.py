"""Which key allows which algorithm: the key alone decides this, once, when it is loaded.

So `alg: none`, and an RSA key that is used as an HMAC secret, are impossible without a check: the
ring has only algorithms that one of its keys allows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm

from repeater.access.tokens.options import TokenOptions

HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512")
CURVE_ALGORITHMS: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
PUBLIC_KEY_ALGORITHMS: Final = frozenset((*RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), "EdDSA"))

KEY_SETTINGS: Final = {
    "HS": "hmac_secret_key",
    "RS": "rsa_public_key",
    "ES": "ecdsa_public_key",
    "Ed": "eddsa_public_key",
}
"""The settings that have the keys, by the first two letters of their algorithms."""

HMAC_SAFE_LENGTH: Final = 32
"""Bytes. A shorter secret can be guessed from a single token (RFC 7518, section 3.2)."""

_RSA_SAFE_LENGTH = 2_048  # bits; RFC 7518, section 3.3

# Without the algorithm "none", which the library's default list has.
_LIBRARY = jwt.PyJWS([*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS])

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class Key:
    """One key for one algorithm. Its `repr` shows nothing of the key."""

    __slots__ = ("_implementation", "_material", "algorithm")

    def __init__(self, algorithm: str, implementation: Algorithm, material: Any) -> None:
        self.algorithm = algorithm
        self._implementation = implementation
        self._material = material

    def proves(self, text: bytes, signature: bytes) -> bool:
        """Whether this key's secret half made the signature of the text."""
        return self._implementation.verify(text, self._material, signature)


def hmac_keys(secret: str | bytes) -> list[Key]:
    """The keys of a shared secret, one for each HMAC algorithm.

    Raises:
        ValueError: the secret is a public key, with which anybody could sign.
    """
    try:
        return [_key(name, secret) for name in HMAC_ALGORITHMS]
    except jwt.InvalidKeyError:
        raise ValueError("an HMAC secret must not be a public key or a certificate") from None


def public_keys(key: object) -> list[Key]:
    """The keys of a public key, one for each algorithm: RS*, the one ES* of its curve, or EdDSA.

    Raises:
        ValueError: no algorithm takes a key of this type or curve, or the RSA key is too short.
    """
    return [_key(name, key) for name in _algorithms_of(key)]


def pem_keys(pem: str) -> list[Key]:
    """The keys of a public key in PEM form; see `public_keys`.

    Raises:
        ValueError: the text is not a public key in PEM form, or the key cannot be used.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a public key in PEM form") from None
    return public_keys(key)


def _algorithms_of(key: object) -> tuple[str, ...]:
    match key:
        case RSAPublicKey() if key.key_size < _RSA_SAFE_LENGTH:
            raise ValueError(f"an RSA key needs {_RSA_SAFE_LENGTH} bits, this has {key.key_size}")
        case RSAPublicKey():
            return RSA_ALGORITHMS
        case EllipticCurvePublicKey() if key.curve.name in CURVE_ALGORITHMS:
            return (CURVE_ALGORITHMS[key.curve.name],)
        case Ed25519PublicKey():
            return ("EdDSA",)
    raise ValueError("a key of this type or curve cannot sign tokens")


def _key(name: str, material: object) -> Key:
    implementation = _LIBRARY.get_algorithm_by_name(name)
    return Key(name, implementation, implementation.prepare_key(material))


class KeyRing:
    """The keys that the options themselves hold. Made once; never waits."""

    def __init__(self, options: TokenOptions) -> None:
        self._current = _by_algorithm(_configured(options))
        self._previous = _by_algorithm(_secret(options, "hmac_previous_secret_key"))
        self._previous_until = options.hmac_previous_secret_key_valid_until or float("inf")

    def allows(self, algorithm: str) -> bool:
        """Whether there is a key for this algorithm."""
        return algorithm in self._current

    @property
    def algorithms(self) -> Collection[str]:
        """The algorithms that it has keys for."""
        return self._current.keys()

    def proves(
        self, algorithm: str, text: bytes, signature: bytes, now: float = float("inf")
    ) -> bool:
        """Whether one of the algorithm's keys made the signature; `now` is Unix seconds.

        Without a time, only the current keys count.
        """
        keys = self._current.get(algorithm, [])
        if now < self._previous_until:
            keys = keys + self._previous.get(algorithm, [])
        return any(key.proves(text, signature) for key in keys)


def _by_algorithm(keys: Iterable[Key]) -> dict[str, list[Key]]:
    ring: dict[str, list[Key]] = {}
    for key in keys:
        ring.setdefault(key.algorithm, []).append(key)
    return ring


def _secret(options: TokenOptions, option: str) -> list[Key]:
    """The keys of one secret, if it is set. Raises as `_configured`."""
    secret: str = getattr(options, option)
    try:
        return hmac_keys(secret) if secret else []
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _configured(options: TokenOptions) -> list[Key]:
    """The options' current keys, each of the type that its option says.

    Raises:
        ValueError: a key is not usable, or is of another type; the text names the option and
            never holds the key.
    """
    keys = _secret(options, "hmac_secret_key")
    for option, prefix in (("rsa", "RS"), ("ecdsa", "ES"), ("eddsa", "EdDSA")):
        pem: str = getattr(options, f"{option}_public_key")
        if not pem:
            continue
        try:
            found = pem_keys(pem)
        except ValueError as error:
            raise ValueError(f"{option}_public_key: {error}") from None
        if not all(key.algorithm.startswith(prefix) for key in found):
            raise ValueError(f"{option}_public_key: a key of another type")
        keys += found
    return keys
