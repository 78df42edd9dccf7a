"""Rules for what users type: addresses, passwords, names and texts. Pure functions."""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Final

from repeater.comments.problems import (
    BAD_ADDRESS,
    BAD_NAME,
    EMPTY,
    TOO_LONG,
    WEAK_PASSWORD,
    ProblemError,
)

_ADDRESS_LIMIT: Final = 254  # RFC 5321's path without its brackets
_NAME_LIMIT: Final = 40
_PASSWORD_LIMITS: Final = (8, 256)  # NIST SP 800-63B: at least 8, at least 64 allowed
# The rule of HTML's `<input type=email>`, so that form and server agree. The server sends no mail.
_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS: Final = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")
# All control characters (C0, C1, DEL), except tab and newline; PostgreSQL does not accept NUL.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# The first guesses of an attacker, as far as they are long enough.
_GUESSES: Final = (
    "password passw0rd password1 password12 password123 12345678 123456789 1234567890 qwertyui "
    "qwertyuiop qwerty123 1q2w3e4r 1qaz2wsx iloveyou sunshine princess football baseball superman "
    "trustno1 welcome1 letmein1 abcd1234 abc12345 asdfghjkl 11111111 00000000 87654321 88888888 "
    "administrator changeme correcthorsebatterystaple"
)
_COMMON: Final = frozenset(_GUESSES.split())
_ADJECTIVES: Final = "Amber Brave Calm Clever Eager Gentle Happy Keen Lucky Quiet Swift Warm"
_ANIMALS: Final = "Badger Crane Dolphin Falcon Fox Heron Lynx Marten Otter Raven Seal Wren"


def is_address(address: str) -> bool:
    """Whether a text in its normal form is an address."""
    return len(address) <= _ADDRESS_LIMIT and bool(_ADDRESS.fullmatch(address))


def check_address(given: str) -> str:
    """The address as it is stored and compared: trimmed, in lower case.

    Raises:
        ProblemError: the text is not an address.
    """
    address = normal_address(given)
    if not is_address(address):
        raise ProblemError(BAD_ADDRESS)
    return address


def normal_address(given: str) -> str:
    """The text trimmed and in lower case, also if it is not an address."""
    return given.strip().lower()


def check_password(password: str, address: str) -> str:
    """The password, if it is acceptable.

    Raises:
        ProblemError: the password is too short, too long or easily guessed, or is the address.
    """
    shortest, longest = _PASSWORD_LIMITS
    lower = password.lower()
    guessable = lower in _COMMON or lower in (address, address.partition("@")[0])
    if not shortest <= len(password) <= longest or guessable or len(set(password)) < 3:
        raise ProblemError(WEAK_PASSWORD)
    return password


def check_name(given: str) -> str:
    """The name that others see. If it is empty, a random name without a hint at the address.

    Raises:
        ProblemError: the name is too long, or looks like an address.
    """
    # Without format characters (Cf): they turn the text around them, or make two names look alike.
    shown = (letter for letter in given if unicodedata.category(letter) != "Cf")
    name = " ".join(_CONTROL.sub("", "".join(shown)).split())
    if len(name) > _NAME_LIMIT or "@" in name:
        raise ProblemError(BAD_NAME)
    return name or made_up_name()


def made_up_name() -> str:
    """A random name, for example `Quiet Heron 27`."""
    words = (secrets.choice(words.split()) for words in (_ADJECTIVES, _ANIMALS))
    return f"{' '.join(words)} {secrets.randbelow(90) + 10}"


def check_text(given: str, limit: int) -> str:
    """The plain text of a comment: line breaks stay, other control characters are removed.

    Raises:
        ProblemError: the text is then empty or too long.
    """
    text = _CONTROL.sub("", given.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        raise ProblemError(EMPTY)
    if len(text) > limit:
        raise ProblemError(TOO_LONG)
    return text
