"""Random damage to the bytes of a file."""

from __future__ import annotations

import random
import re

SIGNS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xfe",
        b": ",
        b"- ",
        b"&a ",
    ),
    *(
        b"*a ",
        b"<<: ",
        b"!!int ",
        b"<",
        b">",
        b"&lt;",
        b"]]>",
        b"null",
        b"true",
        b"~",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
    ),
)
NUMBERS = (
    b"-1",
    b"0",
    b"1e308",
    b"-1e308",
    b"NaN",
    b"Infinity",
    b"1" + b"0" * 30,
    b"9" * 5000,
    b'"text"',
    b"null",
    b"[]",
)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
WORD = re.compile(rb"[A-Za-z_]{2,}")


def flip(content: bytearray, rng: random.Random) -> None:
    """Change one bit."""
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    """Remove the end."""
    del content[rng.randrange(len(content) + 1) :]


def remove(content: bytearray, rng: random.Random) -> None:
    """Remove some bytes."""
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.randrange(1, 60)]


def insert(content: bytearray, rng: random.Random) -> None:
    """Insert a character that is special in some format."""
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.choice(SIGNS) * rng.choice((1, 1, 1, 2, 400))


def repeat(content: bytearray, rng: random.Random) -> None:
    """Duplicate a part."""
    at = rng.randrange(len(content) + 1)
    part = content[at : at + rng.randrange(1, 200)]
    content[at:at] = part * rng.choice((1, 2, 30))


def other_number(content: bytearray, rng: random.Random) -> None:
    """Replace a number by something else."""
    found = list(NUMBER.finditer(bytes(content[:100_000])))
    if found:
        match = rng.choice(found)
        content[match.start() : match.end()] = rng.choice(NUMBERS)


def misspell(content: bytearray, rng: random.Random) -> None:
    """Replace a word."""
    found = list(WORD.finditer(bytes(content[:100_000])))
    if found:
        match = rng.choice(found)
        content[match.start() : match.start() + 1] = rng.choice((b"x", b"", b"zz"))


def noise(content: bytearray, rng: random.Random) -> None:
    """Overwrite some bytes by random bytes."""
    at = rng.randrange(len(content) + 1)
    part = rng.randbytes(rng.randrange(1, 64))
    content[at : at + len(part)] = part


def encode_anew(content: bytearray, rng: random.Random) -> None:
    """Encode the text in another encoding."""
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))
    content[:] = bytes(content).decode("latin-1").encode(encoding)


USUAL = (flip, flip, flip, cut, remove, insert, repeat, other_number, other_number, misspell, noise)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to four changes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(USUAL)(changed, rng)
    if rng.random() < 0.03:
        encode_anew(changed, rng)
    return bytes(changed)
