"""DART 1.1.1 (Nan et al., 2021): from triples of tables and other sources to text. Reads its JSON and XML files."""

from __future__ import annotations

from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.tasks.example import Example, number_groups
from spdf_dist.data.tasks.files import kind, parse_xml, read_bytes, read_json
from spdf_dist.data.tasks.task import PUBLISHED, SPLITS, Task
from spdf_dist.data.tasks.triples import REFERENCE_FILES, finish, lex_text, linearize, one_line, split_triple
from spdf_dist.scoring.metrics import WEBNLG_METRICS


def load(path: Path, split: str) -> list[Example]:
    """The examples of a DART file (.json or .xml, plain or .gz), with relations in lower case. A file has one split.

    Raises:
        UserError: the file is missing, has an unknown format, or cannot be read.
    """
    if kind(path) == ".xml":
        return number_groups(xml_pairs(path))
    if kind(path) == ".json":
        return number_groups(json_pairs(path))
    raise UserError(f"{path}: DART comes as .json or .xml")


def json_pairs(path: Path) -> list[tuple[str, str]]:
    """(context, text) of every annotation. Raises UserError for another form."""
    pairs = []
    where = 0
    content = read_json(path)
    try:
        for number, entry in enumerate(content, start=1):
            where = number
            if not all(isinstance(triple, list) for triple in entry["tripleset"]):
                raise TypeError("a triple is not a list of subject, relation and object")
            context = linearize((s, r.lower(), o) for s, r, o in entry["tripleset"])
            pairs += [(context, one_line(annotation["text"])) for annotation in entry["annotations"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not DART's JSON form: entry {where}: {error!r}") from error
    return pairs


def xml_pairs(path: Path) -> list[tuple[str, str]]:
    """(context, text) of every ``lex`` element. Raises UserError for another form."""
    pairs = []
    for entry in parse_xml(read_bytes(path), str(path)).iter("entry"):
        try:
            triples = [split_triple(triple.text or "") for triple in entry.findall("modifiedtripleset/mtriple")]
            texts = [lex_text(lex) for lex in entry.findall("lex")]
        except ValueError as error:
            raise UserError(f"{path}, entry {entry.get('eid')}: {error}") from error
        context = linearize((s, r.lower(), o) for s, r, o in triples)
        pairs += [(context, text) for text in texts]
    return pairs


TASK = Task(
    name="dart",
    title="DART",
    splits=SPLITS,
    load=load,
    finish=finish,
    reference_files=REFERENCE_FILES,
    metrics=WEBNLG_METRICS,
    published=PUBLISHED / "dart.csv",
)
