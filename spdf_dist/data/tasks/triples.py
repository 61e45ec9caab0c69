"""Code of both WebNLG and DART: triples as one line of text, and LoRA's normalisation of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

Triple = tuple[str, str, str]
"""Subject, relation, object."""

REFERENCE_FILES = 6
"""LoRA's number of reference files. Additional references are dropped; missing ones are filled with the first."""

LINE_END = re.compile(r"[\r\n]+")


def linearize(triples: Iterable[Sequence[str]]) -> str:
    """Triples as ``subject : relation : object``, separated by `` | ``."""
    return one_line(" | ".join(" : ".join(triple) for triple in triples))


def split_triple(text: str) -> Triple:
    """The parts of ``subject | relation | object``, the form of a triple in the XML files.

    Raises:
        ValueError: there are fewer than three parts.
    """
    parts = [part.strip() for part in text.split(" | ", 2)]
    if len(parts) != 3:
        raise ValueError(f"'{text}' is not a triple 'subject | relation | object'")
    return parts[0], parts[1], parts[2]


def one_line(text: str) -> str:
    """``text`` without line ends, and without spaces at its ends: models learn and write one line per text."""
    lines = [line.strip() for line in LINE_END.split(text)]
    return " ".join(line for line in lines if line)


def lex_text(lex: ElementTree.Element) -> str:
    """The text of a ``lex`` element. In enriched releases, a child ``text`` contains it, beside templates.

    Raises:
        ValueError: the element has other children, which would cut the text.
    """
    inner = lex.find("text")
    holder = lex if inner is None else inner
    if len(holder):
        raise ValueError(f"the text has an element '{holder[0].tag}' inside")
    return one_line(holder.text or "")


def finish(text: str) -> str:
    """``text`` in lower case. Every character other than letters, digits and underscores becomes a separate word."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text.lower()).split())
