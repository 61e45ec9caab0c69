"""Opening a task's files, with errors that name the file."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from spdf_dist.config.errors import UserError

MISSING = "does not exist; `spdf data fetch` says where the tasks' files come from"


def read_bytes(path: Path) -> bytes:
    """The content of ``path``, unpacked when its name ends in .gz.

    Raises:
        UserError: no such file, or not a gzip file in spite of its name.
    """
    if not path.is_file():
        raise UserError(f"the task file {path} {MISSING}")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_text(path: Path) -> str:
    """The content of ``path`` as UTF-8, without a byte-order mark.

    Raises:
        UserError: as :func:`read_bytes`, or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of each record; column names in lower case.

    Raises:
        UserError: no header, or a row whose number of fields is not the header's.
    """
    # Articles of Curation Corpus are longer than csv's own limit of 128 KiB a field.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(read_text(path).splitlines(keepends=True))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not header:
            raise UserError(f"{path} is empty; expected a CSV file with a header line")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}"
                    " (an unquoted comma?)"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file.

    Raises:
        UserError: not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error


def parse_xml(content: bytes, name: str) -> ElementTree.Element:
    """The root of an XML document; ``name`` stands in the error.

    Raises:
        UserError: not XML.
    """
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{name}: not XML ({error})") from error


def kind(path: Path) -> str:
    """The suffix that tells the format, in lower case: ``.csv`` for ``x.csv.gz``; ``.tar.gz`` stays whole."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-2:] == [".tar", ".gz"] or suffixes[-1:] == [".tgz"]:
        return ".tar.gz"
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
