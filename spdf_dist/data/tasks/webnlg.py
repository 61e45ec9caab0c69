"""WebNLG challenge 2017 (Gardent et al.): from DBpedia triples to text. Reads the XML files and LoRA's JSON format.

The split ``test_seen`` has the test examples of the training set's categories. The paper's score most likely refers to
this split.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.example import Example, number_groups
from spdf_dist.data.tasks.files import LARGEST_FILE, kind, parse_xml, read_bytes, read_json
from spdf_dist.data.tasks.task import PUBLISHED, SPLITS, Task
from spdf_dist.data.tasks.triples import REFERENCE_FILES, Triple, finish, lex_text, linearize, one_line, split_triple
from spdf_dist.scoring.metrics import WEBNLG_METRICS

FOLDERS = {"train": "train", "validation": "dev", "test": "test"}
TEST_XML = ("testdata_with_lex.xml", "rdf-to-text-generation-test-data-with-refs-en.xml")
"""Test files of the challenges of 2017 and 2020. Other files of the test folder have no texts or are not English."""
ACCEPTED = ("good", "")
"""Comments of texts that the annotators accepted (``good``) or did not judge (empty, since release 3.0)."""
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
"""The attribute ``xml:lang``, as ElementTree names it."""

# The categories of the training set. Other categories occur only in the test set.
SEEN = frozenset(
    {
        "Airport",
        "Astronaut",
        "Building",
        "City",
        "ComicsCharacter",
        "Food",
        "Monument",
        "SportsTeam",
        "University",
        "WrittenWork",
    }
)


@dataclass(frozen=True)
class Entry:
    """Triples, and texts that express them."""

    category: str
    triples: list[Triple]
    texts: list[tuple[str, str]]
    """(comment, text). The comment ``good`` marks texts that the annotators accepted."""


def load(path: Path, split: str) -> list[Example]:
    """The examples of a split: the texts whose comment is in ``ACCEPTED``.

    ``path`` is a .json or .xml file (plain or .gz), which is read completely, or the challenge's folder or .tar.gz, of
    which only the split's part is read.

    Raises:
        UserError: the file is missing, has an unknown format, or cannot be read.
    """
    wanted = {"test_seen": True, "test_unseen": False}.get(split)
    pairs = []
    for entry in read_entries(path, split.partition("_")[0]):
        if wanted is not None and not entry.category:
            raise UserError(f"{path}: an entry has no category, by which the split {split} is chosen")
        if wanted is None or (entry.category in SEEN) == wanted:
            context = linearize(entry.triples)
            pairs += [(context, text) for comment, text in entry.texts if comment in ACCEPTED]
    return number_groups(pairs)


def read_entries(path: Path, part: str) -> Iterator[Entry]:
    """The entries of a file, folder or archive. Raises UserError for an unknown format."""
    if path.is_dir():
        # The name of the folder itself may be train, dev or test of the challenge.
        parts = {name: (path.resolve().name, *name.relative_to(path).parts) for name in sorted(path.rglob("*.xml"))}
        chosen = [name for name in parts if belongs(parts[name], part)]
        check_one_release(path, [parts[name] for name in chosen])
        for name in chosen:
            yield from xml_entries(read_bytes(name), str(name))
    elif kind(path) == ".json":
        yield from json_entries(path)
    elif kind(path) == ".xml":
        yield from xml_entries(read_bytes(path), str(path))
    elif kind(path) == ".tar.gz":
        yield from archive_entries(path, part)
    else:
        raise UserError(f"{path}: WebNLG comes as .json, .xml, .tar.gz or a folder of .xml files")


def belongs(parts: tuple[str, ...], part: str) -> bool:
    """Whether a file of the challenge's folder belongs to the part. All files outside the parts' folders belong."""
    at = split_at(parts)
    folder = None if at is None else parts[at]
    if part == "test" and folder == "test":
        return parts[-1] in TEST_XML
    return folder in (None, FOLDERS[part])


def check_one_release(path: Path, files: list[tuple[str, ...]]) -> None:
    """Raise UserError if a folder holds a part in several releases or languages, whose texts would count twice."""
    found = sorted({"/".join(parts[: split_at(parts)]) for parts in files if split_at(parts) is not None})
    if len(found) > 1:
        raise UserError(
            f"{path} holds WebNLG {len(found)} times: in {', '.join(found)[:200]}; name one of these folders"
        )


def split_at(parts: tuple[str, ...]) -> int | None:
    """The index of the last folder called train, dev or test; None without one."""
    return next((at for at in range(len(parts) - 2, -1, -1) if parts[at] in FOLDERS.values()), None)


def archive_entries(path: Path, part: str) -> Iterator[Entry]:
    """The entries of the challenge's archive. Nothing is extracted to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
            members, size = [], 0
            for member in archive:
                size += member.size
                if size > LARGEST_FILE:
                    raise UserError(f"{path} holds more than {LARGEST_FILE >> 20} MiB, and WebNLG does not")
                if member.isfile() and member.name.endswith(".xml"):
                    members.append(member)
            members = [member for member in members if belongs(tuple(member.name.split("/")), part)]
            check_one_release(path, [tuple(member.name.split("/")) for member in members])
            for member in sorted(members, key=lambda member: member.name):
                source = archive.extractfile(member)
                if source is not None:
                    yield from xml_entries(source.read(), f"{path}:{member.name}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def xml_entries(content: bytes, name: str) -> Iterator[Entry]:
    """The entries of one XML file."""
    for entry in parse_xml(content, name).iter("entry"):
        try:
            triples = [split_triple(triple.text or "") for triple in entry.findall("modifiedtripleset/mtriple")]
            given = [lex for lex in entry.findall("lex") if is_english(lex.get("lang") or lex.get(XML_LANG))]
            texts = [(lex.get("comment", ""), lex_text(lex)) for lex in given]
        except ValueError as error:
            raise UserError(f"{name}, entry {entry.get('eid')}: {error}") from error
        yield Entry(entry.get("category", ""), triples, texts)


def is_english(language: str | None) -> bool:
    """Whether a text is English: releases since 3.0 also contain Russian texts."""
    return language in (None, "", "en")


def json_entries(path: Path) -> Iterator[Entry]:
    """The entries of LoRA's JSON format: ``{"entries": [{"1": {...}}, ...]}``. Raises UserError for another form."""
    content = read_json(path)
    where = "the file"
    try:
        for numbered in content["entries"]:
            for name, entry in numbered.items():
                where = f"entry {name:.40}"
                yield json_entry(entry)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not WebNLG's JSON form: in {where}, {error!r} is missing or of another type"
        ) from error


def json_entry(entry: Any) -> Entry:
    """One entry of LoRA's JSON format.

    Raises:
        KeyError, TypeError, AttributeError: a value is missing or has another type.
    """
    triples = [(t["subject"], t["property"], t["object"]) for t in entry["modifiedtripleset"]]
    given = [text for text in entry["lexicalisations"] if is_english(text.get("lang"))]
    texts = [(text["comment"], one_line(text["lex"])) for text in given]
    for value in (entry["category"], *(part for triple in triples for part in triple)):
        if not isinstance(value, str):
            raise TypeError(f"{value!r:.40} instead of a text")
    return Entry(entry["category"], triples, texts)


TASK = Task(
    name="webnlg",
    title="WebNLG",
    splits=(*SPLITS, "test_seen", "test_unseen"),
    load=load,
    finish=finish,
    reference_files=REFERENCE_FILES,
    metrics=WEBNLG_METRICS,
    published=PUBLISHED / "webnlg.csv",
    published_split="test_seen",  # the paper's BLEU indicates it
)
