"""Hostile Protobuf: commands of the client protocol by their bytes, and what is not one any more.

Nothing here knows a schema's classes, which would refuse to write most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fuzz.values import NAMES, SIZES, value

NUMBER, LONG, BYTES, GROUP, GROUP_END, SHORT = range(6)  # the wire types
NUMBERS = (0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63, 2**64 - 1)
DEPTHS = (1, 2, 15, 16, 17, 90, 96, 97, 98, 99, 100, 101, 500, 5_000)
BAD_TEXTS = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3")
COMPARISONS = (b"eq", b"neq", b"in", b"nin", b"ex", b"nex", b"sw", b"lt", b"gte", b"", b"x")
MOST = 65_000  # bytes of a message, nearly the limit


def varint(number: int, more: int = 0) -> bytes:
    """A number; with `more` bytes of nothing behind it, which writers leave out."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    for _ in range(more):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def field(number: int, content: bytes | int) -> bytes:
    """One field: a number, or what has a length."""
    if isinstance(content, int):
        return varint(number << 3 | NUMBER) + varint(content)
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def text(rng: Random) -> bytes:
    """A name mostly; or a long text, a NUL, or one that is not UTF-8."""
    kind = rng.random()
    if kind < 0.9:
        return rng.choice(NAMES).encode()
    if kind < 0.96:
        return b"a" * rng.choice(SIZES)
    return b"\0" if kind < 0.98 else rng.choice(BAD_TEXTS)


def data(rng: Random) -> bytes:
    """JSON text, hostile JSON text, or any bytes."""
    kind = rng.random()
    if kind < 0.4:
        return b'{"n":1}'
    if kind < 0.7:
        return value(rng).encode(errors="surrogatepass")
    return rng.randbytes(rng.choice((0, 1, 20, 5_000)))


def number(rng: Random) -> int:
    """A number near some bound."""
    return rng.choice(NUMBERS)


def flag(rng: Random) -> int:
    """True mostly."""
    return rng.choice((1, 1, 1, 0, 2, 2**64 - 1))


def position(rng: Random) -> bytes:
    """Where a subscription stood, or a history begins."""
    return field(3, flag(rng)) + field(6, text(rng)) + field(7, number(rng))


def entry(rng: Random) -> bytes:
    """An entry of a map, of positions or of texts; perhaps without its key or value."""
    key = field(1, text(rng)) if rng.random() < 0.9 else b""
    return key + rng.choice((field(2, position(rng)), field(2, text(rng)), b""))


def since(rng: Random) -> bytes:
    """A position in a stream."""
    return field(1, number(rng)) + field(2, text(rng))


def tags_filter(rng: Random) -> bytes:
    """A filter: good, deep, wide, or of anything."""
    comparison = field(2, b"k") + field(3, rng.choice(COMPARISONS)) + field(4, text(rng))
    kind = rng.random()
    if kind < 0.3:
        return comparison
    if kind < 0.6:
        node = comparison
        for _ in range(rng.choice(DEPTHS)):
            node = field(1, b"not") + field(6, node)
            if len(node) > MOST:
                break
        return node
    if kind < 0.8:
        count = rng.choice((1, 255, 256, 257, 5_000, 30_000))
        small = rng.choice((comparison, b""))
        return field(1, b"or") + field(6, small) * min(count, MOST // (len(small) + 2))
    return comparison + field(5, b"") * rng.choice((0, 1, 64, 65, 30_000))


Make = Callable[[Random], bytes | int]
METHODS: dict[int, dict[int, Make]] = {
    4: {1: text, 2: data, 3: entry, 4: text, 5: text, 6: entry},  # connect
    5: {  # subscribe
        1: text, 2: text, 3: flag, 6: text, 7: number, 8: data, 9: flag, 10: flag, 11: flag,
        12: lambda rng: rng.choice((b"fossil", b"", b"x")), 13: tags_filter, 14: number, 15: number,
    },
    6: {1: text},  # unsubscribe
    7: {1: text, 2: data, 3: number},  # publish
    8: {1: text},  # presence
    9: {1: text},  # presence_stats
    10: {1: text, 7: number, 8: since, 9: flag},  # history
    11: {},  # ping, which nobody sends
    12: {1: data},  # send
    13: {1: data, 2: text},  # rpc
    14: {1: text},  # refresh
    15: {1: text, 2: text},  # sub_refresh
}  # fmt: skip


def method(rng: Random) -> bytes:
    """A method with some of its fields, in any order, now and then one of them very often."""
    which = rng.choice(tuple(METHODS))
    fields = METHODS[which]
    names = rng.sample(tuple(fields), rng.randint(0, len(fields)))
    if 1 in fields and rng.random() < 0.8:
        names.append(1)
    parts = [field(name, fields[name](rng)) for name in names]
    if parts and rng.random() < 0.1:
        parts += [parts[0]] * min(rng.choice((1, 100, 20_000)), MOST // (len(parts[0]) + 1))
    parts += [stray(rng) for _ in range(rng.choice((0, 0, 0, 0, 0, 1)))]
    return field(which, b"".join(parts))


def stray(rng: Random) -> bytes:
    """A field that the schema does not have there: another type, an unknown number, a group."""
    which = rng.choice((1, 2, 3, 6, 7, 13, 99, 1_000, 536_870_911, 2**29))
    wire = rng.choice((*(NUMBER, LONG, BYTES, SHORT) * 4, GROUP, GROUP_END, 6))
    start = varint(which << 3 | wire)
    match wire:
        case 0:
            return start + varint(number(rng), rng.choice((0, 0, 1, 9)))
        case 1:
            return start + rng.randbytes(8)
        case 2:
            return field(which, rng.randbytes(rng.choice((0, 1, 300))))
        case 3:
            return (start + varint(which << 3 | GROUP_END)) * rng.choice((0, 1, 50)) + start
        case 5:
            return start + rng.randbytes(4)
        case _:
            return start


def command(rng: Random) -> bytes:
    """A command: mostly an id and a method, as SDKs write it."""
    identity = field(1, rng.randint(1, 1_000) if rng.random() < 0.8 else number(rng))
    kind = rng.random()
    if kind < 0.7:
        return identity + method(rng)
    if kind < 0.8:
        return method(rng) + identity
    if kind < 0.9:
        return identity + method(rng) + method(rng)
    return b"".join(rng.choice((identity, method(rng), stray(rng))) for _ in range(3))


def delimited(rng: Random, one: bytes) -> bytes:
    """A command with its length, which may be wrong, or longer than it needs to be."""
    kind = rng.random()
    if kind < 0.94:
        return varint(len(one)) + one
    if kind < 0.98:
        return varint(len(one), rng.choice((1, 1, 2, 3, 4, 9))) + one
    return varint(max(0, len(one) + rng.choice((-1, 1, 2**31, 2**32, 2**63)))) + one


def message(rng: Random) -> bytes:
    """Some commands in one message, perhaps the same one very often; perhaps with some damage."""
    parts = [delimited(rng, command(rng)) for _ in range(rng.choice((1, 1, 2, 5)))]
    if rng.random() < 0.1:
        parts[:1] = [parts[0]] * min(rng.choice((20, 400, 30_000)), MOST // (len(parts[0]) + 1))
    if rng.random() < 0.1:
        parts.insert(rng.randrange(len(parts) + 1), b"\0" * rng.choice((1, 2, 5_000)))
    whole = bytearray(b"".join(parts))
    for _ in range(rng.choice((*(0,) * 8, 1, 3))):
        start = rng.randrange(len(whole) + 1)
        whole[start : start + rng.choice((0, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
    return bytes(whole if rng.random() < 0.95 else whole[: rng.randrange(len(whole) + 1)])
