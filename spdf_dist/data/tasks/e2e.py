"""E2E NLG (Novikova et al., 2017): from the attributes of a restaurant to a sentence.

The official CSV (columns ``mr`` and ``ref``) is converted to the text that LoRA (Hu et al., 2022) uses for fine-tuning:
the context ``name : Blue Spice | Type : coffee shop | area : city centre``, and the reference split into words. LoRA's
training and validation texts were split by another tokenizer than its test texts. This module has both sets of rules,
because scores are comparable with LoRA's only when the references are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.example import Example, number_groups
from spdf_dist.data.tasks.files import kind, lines_of, read_csv, read_text
from spdf_dist.data.tasks.task import PUBLISHED, SPLITS, Task
from spdf_dist.scoring.metrics import E2E_METRICS
from spdf_dist.scoring.texts import column_names

ATTRIBUTE = re.compile(r"\s*([^\s\[\],][^\[\],]*)\[([^\]]*)\]\s*(?:,|$)")
LONGEST_FIELD = 20_000
"""Longest meaning or reference in characters; E2E's longest has fewer than 1,000. The rules need quadratic time."""
ATTRIBUTE_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}

OPENING = ",('£$\""
CLOSING = ".,;:!?)'\""
LETTER = r"[^\W\d_]"
CLITIC = r"(?:s|t|m|d|ll|re|ve)"


class WordRules:
    """Rules that split a text without spaces into words."""

    def __init__(self, *, cuts: str, clitic: str, keep_number_dot: bool, special: dict[str, str]) -> None:
        self.cuts = re.compile(rf"({cuts}|(?<={LETTER}),(?={LETTER})|\.{{2,}}(?={LETTER}))")
        """Separators inside a chunk, which become words."""
        self.clitic = re.compile(clitic, re.IGNORECASE)
        """Contractions, which become words of their own."""
        self.keep_number_dot = keep_number_dot
        """Whether a number with a dot (``5.``) before a word in lower case is one word."""
        self.special = special

    def split(self, chunk: str, next_chunk: str) -> list[str]:
        """The words of ``chunk``, which has no spaces. ``next_chunk`` is the chunk after it."""
        if self.keep_number_dot and re.fullmatch(r"\d+\.", chunk) and next_chunk[:1].islower():
            return [chunk]
        head: list[str] = []
        tail: list[str] = []
        while len(chunk) > 1 and chunk[0] in OPENING:
            head.append(chunk[0])
            chunk = chunk[1:]
        while len(chunk) > 1:
            if dots := re.search(r"(?<=[^.])\.{2,}$", chunk):
                size = len(dots[0])
            elif chunk[-1] in CLOSING:
                size = 1
            else:
                break
            tail.append(chunk[-size:])
            chunk = chunk[:-size]
        return head + self._split_inside(chunk) + tail[::-1]

    def _split_inside(self, chunk: str) -> list[str]:
        if chunk in self.special:
            return self.special[chunk].split()
        words = []
        for part in self.cuts.split(chunk):
            if match := self.clitic.search(part):
                words += [part[: match.start()], part[match.start() :]]
            else:
                words.append(part)
        return [word for word in words if word]


TRAIN_RULES = WordRules(cuts=r"(?<=\w)-(?=\w)|£", clitic=rf"(?<=\w)'{CLITIC}$", keep_number_dot=True, special={})
TEST_RULES = WordRules(
    cuts=rf"(?<={LETTER})-(?={LETTER})|(?<=\d)-(?=\d)",
    clitic=rf"(?<=\w)(?:n't|'{CLITIC})$",
    keep_number_dot=False,
    special={"thats": "that s"},
)


def split_words(text: str, rules: WordRules) -> str:
    """``text`` with its words and punctuation separated by single spaces."""
    chunks = text.split()
    pairs = zip_longest(chunks, chunks[1:], fillvalue="")
    return " ".join(word for chunk, after in pairs for word in rules.split(chunk, after))


def linearize(meaning: str) -> str:
    """A meaning representation, ``name[Aromi], area[riverside]``, as ``name : Aromi | area : riverside``.

    Raises:
        ValueError: ``meaning`` is empty or has another form.
    """
    if not meaning.strip():
        raise ValueError("the meaning is empty")
    parts = []
    at = 0
    while at < len(meaning.rstrip()):
        match = ATTRIBUTE.match(meaning, at)
        if match is None:
            raise ValueError(f"'{meaning[at : at + 40]}' is not of the form attribute[value]")
        name, value = match[1].strip(), match[2]
        parts.append(f"{ATTRIBUTE_NAMES.get(name, name)} : {split_words(value, TRAIN_RULES)}")
        at = match.end()
    return " | ".join(parts)


def load(path: Path, split: str) -> list[Example]:
    """The examples of an E2E CSV or of LoRA's ``context||target`` text (plain or .gz).

    A test set without a ``ref`` column has empty targets.

    Raises:
        UserError: the file or a column is missing, the format is unknown, or a meaning representation is invalid.
    """
    if kind(path) == ".txt":
        return number_groups(list(lora_pairs(path)))
    if kind(path) in (".json", ".jsonl", ".parquet", ".xml"):
        raise UserError(f"{path}: E2E comes as the official .csv, or as LoRA's .txt of `context||target` lines")
    rules = TEST_RULES if split == "test" else TRAIN_RULES
    pairs = []
    for line, row in read_csv(path):
        for column in ("mr",) if split == "test" else ("mr", "ref"):
            if column not in row:
                raise UserError(f"{path} has no column '{column}' (it has {column_names(row)}); E2E's CSV has mr,ref")
        if "ref" not in row and (others := [column for column in row if "ref" in column]):
            raise UserError(f"{path} has no column 'ref', but '{others[0]}'; E2E's CSV has mr,ref")
        for column in ("mr", "ref"):
            if len(row.get(column, "")) > LONGEST_FIELD:
                raise UserError(
                    f"{path}, line {line}: '{column}' has {len(row[column]):,} characters, more than {LONGEST_FIELD:,}"
                    ": does a quote lack its partner?"
                )
        try:
            context = linearize(row["mr"])
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from error
        pairs.append((context, split_words(row.get("ref", ""), rules)))
    return number_groups(pairs)


def lora_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """(context, target) of the lines of LoRA's text files. Raises UserError for a line of another form."""
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if line.strip():
            context, bars, target = line.partition("||")
            if not bars or not context.strip() or "||" in target:
                raise UserError(f"{path}, line {number}: expected `context||target`, got '{line:.60}'")
            yield context, target.strip()


def is_synthetic(examples: Sequence[Example]) -> bool:
    """Whether ``spdf data synthetic-e2e`` wrote the examples: only its grammar has a slot ``kind``."""
    return any(" | kind : " in f" | {example.context}" for example in examples)


TASK = Task(
    name="e2e",
    title="E2E",
    splits=SPLITS,
    load=load,
    metrics=E2E_METRICS,
    is_synthetic=is_synthetic,
    published=PUBLISHED / "e2e.csv",
)
