"""Code of both WebNLG and DART: triples as one line of text, and LoRA's normalisation of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Triple = tuple[str, str, str]
"""Subject, relation, object."""

REFERENCE_FILES = 6
"""LoRA's number of reference files. Additional references are dropped; missing ones are filled with the first."""


def linearize(triples: Iterable[Sequence[str]]) -> str:
    """Triples as ``subject : relation : object``, separated by `` | ``."""
    return " | ".join(" : ".join(triple) for triple in triples)


def split_triple(text: str) -> Triple:
    """The parts of ``subject | relation | object``, the form of a triple in the XML files.

    Raises:
        ValueError: there are fewer than three parts.
    """
    parts = [part.strip() for part in text.split(" | ", 2)]
    if len(parts) != 3:
        raise ValueError(f"'{text}' is no triple 'subject | relation | object'")
    return parts[0], parts[1], parts[2]


def finish(text: str) -> str:
    """``text`` in lower case. Every character other than letters, digits and underscores becomes a separate word."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text.lower()).split())
