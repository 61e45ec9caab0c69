"""What WebNLG and DART share: triples as one line, and LoRA's finish of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Triple = tuple[str, str, str]
"""Subject, relation, object."""

REFERENCE_FILES = 6
"""LoRA's number of reference files; further references of an input are dropped, fewer are filled with the first."""


def linearize(triples: Iterable[Sequence[str]]) -> str:
    """``subject : relation : object``, triples apart by `` | ``."""
    return " | ".join(" : ".join(triple) for triple in triples)


def split_triple(text: str) -> Triple:
    """The parts of ``subject | relation | object``, as the XML files write a triple.

    Raises:
        ValueError: not three parts.
    """
    parts = [part.strip() for part in text.split(" | ", 2)]
    if len(parts) != 3:
        raise ValueError(f"'{text}' is no triple 'subject | relation | object'")
    return parts[0], parts[1], parts[2]


def finish(text: str) -> str:
    """Lower case, with every character that is neither letter, digit nor underscore a word of its own."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text.lower()).split())
