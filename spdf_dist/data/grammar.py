"""A synthetic data-to-text set in the format of E2E's CSV files, for runs without a download.

Slots (``name[...], kind[...], ...``) describe places to eat and drink. A seeded grammar makes sentences from them. The
set is small and regular. It is suitable for testing fine-tuning, but not as a benchmark. Because the wordings of the
grammar are known, :func:`slot_accuracy` can find the slots that a text mentions.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.data.placing import placed

Record = tuple[tuple[str, str], ...]
"""(slot, value) pairs of one meaning representation, in order."""

NAMES = (
    *("Amber Lantern", "Blackwater Mill", "Cedar Table", "Copper Kettle", "Crooked Spoon", "Driftwood", "Elm and Oak"),
    *(
        "Five Feathers",
        "Granary Steps",
        "Hollow Reed",
        "Indigo Room",
        "Juniper Yard",
        "Kestrel House",
        "Little Orchard",
    ),
    *("Marble Arch Inn", "Northgate", "Old Ropewalk", "Paper Boat", "Quiet Fox", "Red Anchor", "Salt Cellar"),
    *("Tinker's Rest", "Upper Deck", "Velvet Pear", "Walnut Court", "Yellow Door"),
)

VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {kind: (kind,) for kind in ("tea room", "bistro", "tavern", "canteen", "wine bar", "bakery")},
    "dish": {dish: (dish,) for dish in ("Greek", "Korean", "Peruvian", "vegan", "Lebanese", "Moroccan", "Polish")},
    "cost": {
        "low": ("low prices", "cheap"),
        "medium": ("average prices", "moderately priced"),
        "high": ("high prices", "expensive"),
    },
    "quarter": {area: (area,) for area in ("old town", "harbour", "station quarter", "university district")},
    "rating": {
        "poor": ("poorly rated", "bad reviews"),
        "fair": ("fairly rated", "mixed reviews"),
        "excellent": ("highly rated", "excellent reviews"),
    },
    "children": {
        "yes": ("family-friendly", "welcomes children"),
        "no": ("for adults only", "unsuitable for children"),
    },
}
"""Wordings by slot and value, for slots with a fixed set of values. No wording is part of another value's wording."""

SIZES = {"trainset.csv": (2400, 2), "devset.csv": (120, 4), "testset_w_refs.csv": (160, 4)}
"""(number of meaning representations, texts per meaning representation) of each file."""


def write_synthetic_e2e(out: str, seed: int) -> list[tuple[Path, int, int]]:
    """Write ``trainset.csv``, ``devset.csv`` and ``testset_w_refs.csv`` (header ``mr,ref``) into ``out``.

    A meaning representation occurs in one file only. The same seed gives the same bytes.

    Returns:
        For each file: its path, number of meaning representations, and number of rows.

    Raises:
        UserError: a file exists with other content.
    """
    folder = Path(out)
    rng = random.Random(seed)
    seen: set[Record] = set()
    written = []
    for name, (inputs, texts) in SIZES.items():
        target = folder / name
        rows = 0
        with placed(target, newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["mr", "ref"])
            for _ in range(inputs):
                record = new_record(rng, seen)
                references = dict.fromkeys(sentences(record, rng) for _ in range(texts))
                writer.writerows([format_mr(record), text] for text in references)
                rows += len(references)
        written.append((target, inputs, rows))
    return written


def new_record(rng: random.Random, seen: set[Record]) -> Record:
    """A record that is not in ``seen``. It is added to ``seen``."""
    while True:
        name = pick(rng, NAMES)
        slots = [("name", name), ("kind", pick(rng, list(VALUES["kind"])))]
        for slot in ("dish", "cost", "quarter", "rating", "children"):
            if rng.random() < 0.6:
                slots.append((slot, pick(rng, list(VALUES[slot]))))
        if rng.random() < 0.5:
            slots.append(("beside", pick(rng, [other for other in NAMES if other != name])))
        record = tuple(slots)
        if len(record) > 3 and record not in seen:
            seen.add(record)
            return record


def format_mr(record: Record) -> str:
    """The meaning representation of a record, such as ``name[Paper Boat], kind[bistro], ...``."""
    return ", ".join(f"{slot}[{value}]" for slot, value in record)


def parse_mr(mr: str) -> Record:
    """The record of a meaning representation."""
    return tuple(re.findall(r"(\w+)\[([^\]]*)\]", mr))


def sentences(record: Record, rng: random.Random) -> str:
    """A text that mentions every slot of ``record`` once."""
    slots = dict(record)
    name, kind = slots.pop("name"), slots.pop("kind")
    article = "an" if kind[0] in "aeiou" else "a"
    order = sorted(slots, key=lambda _: rng.random())
    attached = [slot for slot in order if slot in ATTRIBUTES][: int(rng.random() * 3)]
    noun = " ".join([kind, *(say(ATTRIBUTES, slot, slots[slot], rng) for slot in attached)])
    opening = pick(
        rng,
        (
            f"{name} is {article} {noun}.",
            f"There is {article} {kind} called {name}{noun.removeprefix(kind)}.",
            f"{name}, {article} {noun}, is worth knowing.",
            f"You may want to try {name}, {article} {noun}.",
        ),
    )
    rest = [say(PREDICATES, slot, slots[slot], rng) for slot in order if slot not in attached]
    texts = [opening]
    while rest:
        now, rest = rest[:2], rest[2:]
        subject = pick(rng, ("It", f"The {kind}", name) if len(texts) == 1 else ("It also", "The place"))
        texts.append(f"{subject} {' and '.join(now)}.")
    return " ".join(texts)


ATTRIBUTES = {
    "dish": ("serving {} food", "with {} dishes"),
    "quarter": ("in the {}", "in the heart of the {}"),
    "beside": ("near {}", "next to {}"),
}
"""Wordings that follow the kind of a place."""

PREDICATES = {
    "dish": ("serves {} food", "offers {} dishes"),
    "cost": {"low": ("has low prices", "is cheap"), "medium": ("has average prices", "is moderately priced")}
    | {"high": ("has high prices", "is expensive")},
    "quarter": ("is in the {}", "lies in the {}"),
    "rating": {"poor": ("is poorly rated", "gets bad reviews"), "fair": ("is fairly rated", "gets mixed reviews")}
    | {"excellent": ("is highly rated", "gets excellent reviews")},
    "children": {
        "yes": ("is family-friendly", "welcomes children"),
        "no": ("is for adults only", "is unsuitable for children"),
    },
    "beside": ("stands near {}", "is next to {}"),
}
"""Wordings that follow a subject."""


def say(wordings: dict, slot: str, value: str, rng: random.Random) -> str:
    """One wording of a slot with its value."""
    choices = wordings[slot]
    return pick(rng, choices[value] if isinstance(choices, dict) else choices).format(value)


def pick(rng: random.Random, choices: Sequence[str]) -> str:
    """One of ``choices``. Only ``random()`` gives the same numbers in every Python version."""
    return choices[int(rng.random() * len(choices))]


def slot_accuracy(mr: str, text: str) -> tuple[int, int]:
    """(slots of ``mr`` that the text mentions, all slots of ``mr``).

    A slot with fixed values counts when the text contains a wording of its value and of no other value of the slot. A
    name counts when the text contains it as whole words. The comparison ignores case.
    """
    record = parse_mr(mr)
    return sum(is_said(slot, value, text) for slot, value in record), len(record)


def is_said(slot: str, value: str, text: str) -> bool:
    """Whether ``text`` mentions ``value``, and no other value, for ``slot``."""
    if slot not in VALUES:
        return mentions(text, value)
    said = {option for option, wordings in VALUES[slot].items() if any(mentions(text, word) for word in wordings)}
    return said == {value}


def mentions(text: str, words: str) -> bool:
    """Whether ``text`` contains ``words`` as whole words, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None
