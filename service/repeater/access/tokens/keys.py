"""Which key allows which algorithm: decided once, when a key is loaded, and by the key alone.

This is what makes `alg: none` and an RSA key taken for an HMAC secret impossible rather than
forbidden: an algorithm that no key allows is not in the ring.
"""

from __future__ import annotations

from collections.abc import Iterable
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

HMAC_SAFE_LENGTH: Final = 32
"""Bytes. A shorter secret can be guessed from a single token (RFC 7518, section 3.2)."""

_RSA_SAFE_LENGTH = 2_048  # bits; RFC 7518, section 3.3

# Without "none": the library's own list has it.
_LIBRARY = jwt.PyJWS([*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS])

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class Key:
    """One key for one algorithm. Prints nothing of itself."""

    __slots__ = ("_implementation", "_material", "algorithm")

    def __init__(self, algorithm: str, implementation: Algorithm, material: Any) -> None:
        self.algorithm = algorithm
        self._implementation = implementation
        self._material = material

    def proves(self, text: bytes, signature: bytes) -> bool:
        """Whether whoever signed the text has this key's secret half."""
        return self._implementation.verify(text, self._material, signature)


def hmac_keys(secret: str) -> list[Key]:
    """The keys that a shared secret makes.

    Raises:
        ValueError: the secret is a public key, which anybody could sign with.
    """
    try:
        return [_key(name, secret) for name in HMAC_ALGORITHMS]
    except jwt.InvalidKeyError:
        raise ValueError("an HMAC secret must not be a public key or a certificate") from None


def public_keys(key: object) -> list[Key]:
    """The keys that a public key makes, by its type: RS*, the one ES* of its curve, EdDSA.

    Raises:
        ValueError: a type or curve that no algorithm takes, or an RSA key that is too short.
    """
    return [_key(name, key) for name in _algorithms_of(key)]


def pem_keys(pem: str) -> list[Key]:
    """The keys that a PEM public key makes.

    Raises:
        ValueError: the text is not a public key, or not one that can be used.
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
    raise ValueError("a key of this type or curve signs no token")


def _key(name: str, material: object) -> Key:
    implementation = _LIBRARY.get_algorithm_by_name(name)
    return Key(name, implementation, implementation.prepare_key(material))


class KeyRing:
    """The keys that the options themselves hold. Made once; waits for nothing."""

    def __init__(self, options: TokenOptions) -> None:
        self._current = _by_algorithm(_configured(options))
        previous = options.hmac_previous_secret_key
        self._previous = _by_algorithm(hmac_keys(previous) if previous else ())
        self._previous_until = options.hmac_previous_secret_key_valid_until or float("inf")

    def allows(self, algorithm: str) -> bool:
        """Whether there is a key for this algorithm."""
        return algorithm in self._current

    def proves(self, algorithm: str, text: bytes, signature: bytes, now: float) -> bool:
        """Whether one of the algorithm's keys made the signature; `now` is Unix seconds."""
        keys = self._current.get(algorithm, [])
        if now < self._previous_until:
            keys = keys + self._previous.get(algorithm, [])
        return any(key.proves(text, signature) for key in keys)


def _by_algorithm(keys: Iterable[Key]) -> dict[str, list[Key]]:
    ring: dict[str, list[Key]] = {}
    for key in keys:
        ring.setdefault(key.algorithm, []).append(key)
    return ring


def _configured(options: TokenOptions) -> list[Key]:
    """The options' current keys, each of the type that its option says.

    Raises:
        ValueError: one is not; the text names the option and never holds the key.
    """
    keys = hmac_keys(options.hmac_secret_key) if options.hmac_secret_key else []
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
