"""Reads hypotheses and references from files in the formats of the official scripts."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

from spdf_dist.base.numbers import counted
from spdf_dist.config.errors import UserError

LARGEST_FILE = 512 << 20
"""Upper limit in bytes of a task's file, decompressed. Curation Corpus, the largest, has about 200 MB with articles."""
# The official script of E2E repairs these in its CSV: pound signs and accents damaged by a wrong encoding.
REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


def read_outputs(
    hypotheses: Path, references: Sequence[Path], reference_files: int
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Hypotheses and the references of each.

    Args:
        hypotheses: one text per line.
        references: the files of references.
        reference_files: number of reference files of the task; 0: one file in E2E's format.

    Raises:
        UserError: the number of files is wrong, or files cannot be read or do not match.
    """
    if reference_files:
        return read_parallel(hypotheses, references)
    if len(references) != 1:
        raise UserError(
            f"this task takes one file of references, got {len(references)}: a blank line divides the inputs"
        )
    return read_e2e(hypotheses, references[0])


def read_e2e(hypotheses: Path, references: Path) -> tuple[list[str], list[list[str]]]:
    """Hypotheses and the references of each, for E2E.

    Args:
        hypotheses: one text per line.
        references: the texts of one input on consecutive lines, with a blank line between inputs. A file without any
            blank line has one text per input. Or the official CSV (mr, ref), with the rows of an input in sequence.

    Raises:
        UserError: a file is missing, damaged or empty, or their numbers of inputs differ.
    """
    groups = csv_groups(references) if references.suffix.lower() in (".csv", ".tsv") else blank_line_groups(references)
    lines = [line.strip() for line in read_lines(hypotheses)]
    if len(lines) != len(groups):
        raise UserError(
            f"{hypotheses} has {counted(len(lines), 'line')}, but {references} has references for "
            f"{counted(len(groups), 'input')}"
        )
    return lines, groups


def read_parallel(hypotheses: Path, references: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """Hypotheses and the references of each, for WebNLG and DART: line i of every file belongs to input i.

    A reference line may be empty where an input has fewer references than files. The newline at the end of a file ends
    its last line. It starts an additional empty line only where another reference file has as many lines as the
    hypotheses, and this file has one line less. A file of hypotheses with too few lines is an error, because it may be
    truncated.

    Raises:
        UserError: a file is missing or empty, or their numbers of lines differ.
    """
    lines = read_lines(hypotheses)
    columns = [read_lines(path) for path in references]
    if any(len(column) == len(lines) for column in columns):
        columns = [complete(path, column, len(lines)) for path, column in zip(references, columns, strict=True)]
    for path, column in zip(references, columns, strict=True):
        if len(column) != len(lines):
            raise UserError(
                f"{hypotheses} has {counted(len(lines), 'line')}, but {path} has {len(column)}; "
                "each needs one line per input"
            )
    rows = [list(row) for row in zip(*columns, strict=True)]
    for number, row in enumerate(rows, start=1):
        if row and not any(reference.strip() for reference in row):
            raise UserError(f"{references[0]}, line {number}: no file has a reference of this input")
    return lines, rows


def complete(path: Path, lines: list[str], count: int) -> list[str]:
    """``lines``, with an empty last line where one line is missing and the file ends with a newline."""
    return [*lines, ""] if len(lines) == count - 1 and read_text(path).endswith("\n") else lines


def read_text(path: Path) -> str:
    """The whole file as UTF-8, without a byte-order mark. It may be a pipe of the shell, such as ``/dev/stdin``.

    Raises:
        UserError: the file is missing, empty, too large or not UTF-8, cannot be read, or is a named pipe or a device.
    """
    try:
        is_shell_pipe = path.is_fifo() and path.resolve().is_relative_to("/proc")
        if path.exists() and not (path.is_file() or path.is_dir() or is_shell_pipe):
            raise UserError(f"{path} is a pipe or a device; write its content to a file first")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path} holds more than {LARGEST_FILE >> 20} MiB, and no task's texts do")
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not text:
        raise UserError(f"{path} is empty")
    if "\0" in text:
        raise UserError(f"{path} is damaged, or not UTF-8: it has a zero byte in line {line_of(text, chr(0))}")
    return text


def line_of(text: str, sign: str) -> int:
    """Number of the line, from 1, in which ``sign`` first occurs."""
    return text.count("\n", 0, text.index(sign)) + 1


def read_lines(path: Path) -> list[str]:
    """The lines of a file, with or without a newline at the end of the last line."""
    return with_plain_ends(path).removesuffix("\n").split("\n")


def with_plain_ends(path: Path) -> str:
    """The content of a file with one text per line, with ``\\n`` as line end.

    Raises:
        UserError: as :func:`read_text`; or a carriage return is inside a line, where official scripts read two lines.
    """
    text = read_text(path).replace("\r\n", "\n")
    if "\r" in text:
        raise UserError(f"{path}: a carriage return is inside line {line_of(text, chr(13))}; end lines with \\n alone")
    return text


def blank_line_groups(path: Path) -> list[list[str]]:
    """Groups of lines between blank lines. Without any blank line, each line is a group.

    Raises:
        UserError: an input has no references: a blank line comes first, or directly after another blank line.
    """
    lines = [line.strip() for line in with_plain_ends(path).split("\n")]
    if re.fullmatch(r'"?mr"?[,;\t]"?ref"?', lines[0].lower()):
        raise UserError(f"{path} is E2E's CSV; give it a name that ends in .csv")
    divided = "" in lines[:-1]  # True also for a blank line after the only input
    while lines and not lines[-1]:
        lines.pop()
    for number, (line, after) in enumerate(pairwise(lines), start=1):
        if not line and not after:
            raise UserError(f"{path}, line {number + 1}: a second blank line: an input without references")
    if not lines or not lines[0]:
        raise UserError(f"{path} begins with a blank line: an input without references")
    if not divided:
        return [[line] for line in lines]
    return [list(group) for filled, group in groupby(lines, key=bool) if filled]


def separator(text: str) -> str:
    """The delimiter of a CSV text, from its first line: a comma, a tab or a semicolon."""
    header = text.partition("\n")[0]
    return next((sign for sign in ("\t", ";") if sign in header and "," not in header), ",")


def column_names(names: Iterable[str]) -> str:
    """The names of columns for a message, shortened: the first line of a file without a header is anything."""
    listed = [f"{name:.40}" for name in names]
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")


def csv_groups(path: Path) -> list[list[str]]:
    """The references of each run of rows with the same ``mr``.

    Raises:
        UserError: a column or all rows are missing, a row has the wrong number of fields, or quotes do not match.
    """
    text = read_text(path)
    for wrong, right in REPAIRS:
        text = text.replace(wrong, right)
    # newline=None: a single carriage return ends a line too.
    lines = [f"{line.strip()}\n" for line in io.StringIO(text, newline=None) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds only blank lines; E2E's references have a header with mr,ref")
    # Without strict, a field with an unclosed quote would extend to the end of the file.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter=separator(lines[0]), strict=True)
    rows: list[list[str]] = []
    try:
        rows += reader
    except csv.Error as error:
        raise UserError(f"{path}: row {len(rows) + 1} is not CSV ({error}); does a quote lack its partner?") from error
    header = [name.strip().lower() for name in rows.pop(0)]
    for column in ("mr", "ref"):
        if column not in header:
            raise UserError(
                f"{path} has no column '{column}' (it has {column_names(header)}); E2E's references have mr,ref"
            )
        if header.count(column) > 1:
            raise UserError(f"{path} has {header.count(column)} columns named '{column}'; keep one")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: {len(row)} fields where the header has {len(header)}")
    meaning, reference = header.index("mr"), header.index("ref")
    groups = [[row[reference] for row in group] for _, group in groupby(rows, key=lambda row: row[meaning])]
    if not groups:
        raise UserError(f"{path} has a header and no rows")
    empty = next((number for number, group in enumerate(groups, start=1) if not any(map(str.strip, group))), None)
    if empty is not None:
        raise UserError(f"{path}: input {empty} has no reference")
    return groups
