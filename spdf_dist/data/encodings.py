"""Recognises UTF-16 and UTF-32 by the first bytes of a text."""

from __future__ import annotations

import codecs

MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16-LE, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
LOOKED_AT = 512


def wide_encoding(content: bytes) -> str | None:
    """The name of a UTF-16 or UTF-32 encoding that the first bytes show; None for any other content.

    UTF-32 is recognised only by its byte-order mark.
    """
    for mark, name in MARKS:
        if content.startswith(mark):
            return name
    start = content[:LOOKED_AT]
    half = len(start) // 2
    zeros = start[0::2].count(0), start[1::2].count(0)
    if half >= 4 and min(zeros) == 0 and max(zeros) > 0.4 * half:  # ASCII letters alternate with zero bytes
        return "UTF-16LE" if zeros[1] else "UTF-16BE"
    return None
