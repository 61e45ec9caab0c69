"""Reads the files of tasks. Errors name the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from spdf_dist.config.errors import UserError
from spdf_dist.data.encodings import wide_encoding
from spdf_dist.scoring.texts import LARGEST_FILE, separator

MISSING = "does not exist; `spdf data fetch` says where the tasks' files come from"


def read_bytes(path: Path) -> bytes:
    """The content of ``path``, decompressed when its name ends in .gz.

    Raises:
        UserError: the file is missing, damaged, too large, not a regular file, or not gzip despite its name.
    """
    if path.is_dir():
        raise UserError(f"the task file {path} is a folder; name the file in it")
    if path.suffix.lower() == ".zst":
        raise UserError(f"{path}: a task's file is read as it is or as .gz; unpack it (`zstd -d`)")
    if not path.exists():
        raise UserError(f"the task file {path} {MISSING}")
    if not path.is_file():
        raise UserError(f"the task file {path} is a pipe or a device; write its content to a file first")
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path} holds more than {LARGEST_FILE >> 20} MiB, and no task's file does")
        return content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_text(path: Path) -> str:
    """The content of ``path`` without a byte-order mark. It is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        UserError: as :func:`read_bytes`, or for another encoding.
    """
    content = read_bytes(path)
    encoding = wide_encoding(content)
    if encoding in ("UTF-16LE", "UTF-16BE"):
        raise UserError(f"{path} is {encoding}; save it as UTF-8 (`iconv -f {encoding} -t UTF-8`)")
    try:
        text = content.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(
            f"{path} is damaged: it has a zero byte in line {text.count(chr(10), 0, text.index(chr(0))) + 1}"
        )
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends, which are those of Unix, Windows or old Macs."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of each record, with column names in lower case.

    Raises:
        UserError: there is no header, a column is there twice, a row has another number of fields than the header, or
            quotes do not match.
    """
    # Articles of Curation Corpus exceed csv's limit of 128 KiB per field.
    csv.field_size_limit(sys.maxsize)
    # Without strict, a field with an unclosed quote would extend to the end of the file.
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator(text))
    begun = 1
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not header:
            raise UserError(f"{path} is empty; expected a CSV file with a header line")
        twice = [name for name in header if name and header.count(name) > 1]
        if twice:
            raise UserError(f"{path} has {header.count(twice[0])} columns named '{twice[0]:.40}'; keep one")
        begun = reader.line_num + 1
        for row in reader:
            begun = reader.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}"
                    " (an unquoted comma?)"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}: the record that begins in line {begun} is not CSV ({error}); does a quote lack its partner?"
        ) from error


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file.

    Raises:
        UserError: as :func:`read_text`, or the content is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be a task's JSON") from error
    except ValueError as error:  # an integer with thousands of digits
        raise UserError(f"{path}: not a task's JSON ({error})") from error


def parse_xml(content: bytes, name: str) -> ElementTree.Element:
    """The root of an XML document.

    Raises:
        UserError: the content is not XML; the message begins with ``name``.
    """
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: unsupported encodings
        raise UserError(f"{name}: not XML ({error})") from error


def kind(path: Path) -> str:
    """The suffix of the format, in lower case: ``.csv`` for ``x.csv.gz``, but ``.tar.gz`` for an archive."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-2:] == [".tar", ".gz"] or suffixes[-1:] == [".tgz"]:
        return ".tar.gz"
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
