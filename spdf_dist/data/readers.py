"""Reads documents from files as a stream, and reports the lines that it could not use.

:func:`read_chunks` decompresses a file and cuts it into chunks of raw records. :func:`parse_chunk` converts a chunk
into documents, and can run in worker processes. The chunks depend only on the content of the file.

========================================  =======================================================================
``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``  one JSON object per line: ``text``, and ``meta.pile_set_name`` if any
``.parquet``                              the column ``text``, and ``meta.pile_set_name`` or ``pile_set_name``
``.txt``                                  the file is one document
``.tar``                                  WebDataset shards (:mod:`spdf_dist.data.tar_reader`)
========================================  =======================================================================
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from spdf_dist.base.extras import require_extra
from spdf_dist.config.errors import NoPermissionError, UserError, names_file
from spdf_dist.data.encodings import wide_encoding
from spdf_dist.data.remote import Input, is_remote, remote_input
from spdf_dist.scoring.texts import column_names

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".tar")
UNNAMED_SET = "unnamed"
"""The set of documents that do not name a set."""

MAX_NAMES = 100_000
"""Upper limit of the names of one pattern with braces."""
BLOCK_BYTES = 1 << 20
STEP_BYTES = 1 << 10
"""Compressed bytes per read. A zstd block of 4 bytes may hold 128 KiB, so one read yields at most 32 MiB."""
LARGEST_PIECE = 4 * BLOCK_BYTES
LONGEST_WORD = 4 << 20
"""Characters. Documents with a longer run of spaces, or of characters without a space, are left out. Byte-pair encoding
of a word needs up to 200 bytes of memory per character."""
WORD = re.compile(r"\S+|\s+")
MAX_WINDOW = 1 << 31
"""Largest zstd window accepted, as written by ``zstd --long=31``."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_LINE = 64 * BLOCK_BYTES
"""Longer lines are skipped. Otherwise a file without line ends would need unlimited memory."""


@dataclass(frozen=True)
class Problem:
    """A part of an input file that could not be used. The rest of the file is kept."""

    file: str
    line: int
    """Line number from 1, in a parquet file that of the row, in a shard that of the sample; 0 for the whole file."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Chunk:
    """Raw records of one file, in order."""

    file: str
    kind: str
    """``json``: a record is a line. ``row``: a record is a document's text. ``piece``: a record is a part of the file's
    only document."""
    first_line: int
    records: list[bytes | None]
    sets: list[str | None] = field(default_factory=list)
    """For ``row``: the set of each record, or None."""
    ends_document: bool = True
    """For ``piece``: whether the document ends with this chunk."""
    starts_document: bool = True
    """For ``piece``: whether the document starts with this chunk."""
    position: int = 0
    """Bytes of the file on disk that were read so far."""


@dataclass(frozen=True)
class Document:
    """A text, or a part of one. ``starts`` and ``ends`` tell whether it has the text's first and last character."""

    text: str
    set_name: str = UNNAMED_SET
    ends: bool = True
    starts: bool = True


def check_pack_inputs(given: Iterable[str | Path]) -> list[Input]:
    """As ``check_inputs``, but ``http(s)://`` URLs and ``pipe:`` commands are inputs too, also with braces."""
    checked: list[Input] = []
    for one in map(str, given):
        if is_remote(one):
            checked += [remote_input(name, SUFFIXES) for name in without_braces(one, "--input")]
        else:
            checked += check_inputs([one])
    return checked


def check_inputs(paths: Iterable[str | Path], option: str = "--input") -> list[Path]:
    """The inputs as checked paths. Messages name ``option`` as their source.

    A pattern such as ``shards/*.tar`` or ``part-{000..127}.tar`` stands for the files that it matches, sorted.

    Raises:
        UserError: a file is missing, may not be read, is a folder, a pipe or a device, or has an unknown suffix.
    """
    checked = []
    for path in (path for given in paths for path in matched(str(given), option)):
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name the files in it")
        if not path.exists():
            raise UserError(f"{option} {path} does not exist")
        if not path.is_file():
            raise UserError(f"{option} {path} is a pipe or a device; write its content to a file first")
        if not os.access(path, os.R_OK):
            raise NoPermissionError(f"{option} {path}: permission denied")
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{option} {path}: unknown kind of file; known: {', '.join(SUFFIXES)}")
        checked.append(path)
    return checked


def matched(given: str, option: str) -> list[Path]:
    """The files that one input stands for. Raises UserError for a URL and for a pattern without a match."""
    if given.startswith(("http:", "https:", "pipe:", "s3:", "gs:")):
        raise UserError(f"{option} {given}: download it first and name the file (`spdf data pack` reads http and pipe)")
    if Path(given).exists() or not any(mark in given for mark in "*?[{"):
        return [Path(given)]
    found: list[Path] = []
    for name in without_braces(given, option):
        is_pattern = any(mark in name for mark in "*?[") and not Path(name).exists()
        found += map(Path, sorted(glob.glob(name)) if is_pattern else [name])  # noqa: PTH207
    if not found:
        raise UserError(f"{option} {given} matches no file")
    return found


def without_braces(given: str, option: str) -> list[str]:
    """The names that an input with braces stands for. Raises UserError for unbalanced braces and for too many names."""
    try:
        names = list(itertools.islice(braceexpand(given), MAX_NAMES + 1))
    except ValueError as error:
        raise UserError(f"{option} {given}: {error}") from None
    if len(names) > MAX_NAMES:
        raise UserError(f"{option} {given} stands for more than {MAX_NAMES} names")
    return names


def read_chunks(path: Path) -> Iterator[Chunk | Problem]:
    """The chunks of one file (each about ``BLOCK_BYTES`` of text) and its problems, in file order.

    Raises OSError, which names the file.
    """
    with names_file(path):
        if path.stat().st_size == 0:
            yield Problem(str(path), 0, "the file is empty")
        elif path.name.endswith(".parquet"):
            yield from parquet_chunks(path)
        elif path.name.endswith(".txt"):
            yield from text_chunks(path)
        elif path.name.endswith(".tar"):
            from spdf_dist.data.tar_reader import tar_chunks  # avoids a circular import

            yield from tar_chunks(path)
        else:
            yield from json_chunks(path)


def documents(paths: Iterable[Path], report: Callable[[Problem], None]) -> Iterator[Document]:
    """All documents of ``paths`` in order. ``report`` is called with each problem."""
    for path in paths:
        for item in read_chunks(path):
            found, problems = ([], [item]) if isinstance(item, Problem) else parse_chunk(item)
            for problem in problems:
                report(problem)
            yield from found


def parse_chunk(chunk: Chunk) -> tuple[list[Document], list[Problem]]:
    """The documents of ``chunk`` in order, and its problems."""
    found: list[Document] = []
    problems: list[Problem] = []
    if chunk.kind == "piece":
        text, problems = decode_piece(chunk)
        return [Document(text, ends=chunk.ends_document, starts=chunk.starts_document)], problems
    for at, record in enumerate(chunk.records):
        line = chunk.first_line + at
        try:
            if chunk.kind == "json":
                assert record is not None
                if record.isspace() or not record:
                    continue
                document = parse_line(record)
            else:
                if record is None:
                    raise ValueError("the text is null")
                document = Document(record.decode("utf-8"), chunk.sets[at] or UNNAMED_SET)
            check_words(document.text)
            found.append(document)
        except UnicodeDecodeError as error:
            problems.append(Problem(chunk.file, line, f"invalid UTF-8 at byte {error.start} of the line"))
        except ValueError as error:
            problems.append(Problem(chunk.file, line, str(error)))
    return found, problems


def check_words(text: str) -> None:
    """Raise ValueError for a word of more than ``LONGEST_WORD`` characters."""
    if len(text) > LONGEST_WORD:
        longest = max(found.end() - found.start() for found in WORD.finditer(text))
        if longest > LONGEST_WORD:
            raise ValueError(f"a run of {longest:,} characters without a space, or of spaces; is it a text?")


def parse_line(line: bytes) -> Document:
    """The document of one JSON line. Raises ValueError with what is wrong."""
    try:
        value = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    text = value.get("text")
    if not isinstance(text, str):
        raise ValueError("no 'text' string in the object")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"an unpaired surrogate at character {error.start} of the text") from error
    return Document(text, set_of(value))


def set_of(record: dict[str, Any]) -> str:
    """The ``pile_set_name`` of a record; ``UNNAMED_SET`` without a name that can be encoded as UTF-8."""
    meta = record.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    if not isinstance(name, str) or not name:
        return UNNAMED_SET
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # an unpaired surrogate
        return UNNAMED_SET
    return name


def decode_piece(chunk: Chunk) -> tuple[str, list[Problem]]:
    """The text of a part of a ``.txt`` file, and its problems. Lines that are not UTF-8 are left out."""
    content = b"".join(record for record in chunk.records if record is not None)
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        kept, problems = [], []
        for at, line in enumerate(cut_lines(content)):
            try:
                kept.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                what = f"invalid UTF-8 at byte {error.start} of the line"
                problems.append(Problem(chunk.file, chunk.first_line + at, what))
        return "".join(kept), problems


def cut_lines(content: bytes) -> list[bytes]:
    """The lines of ``content`` with their ends. Only ``\\n`` ends a line."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines


def json_chunks(path: Path) -> Iterator[Chunk | Problem]:
    """Chunks of whole lines of a JSON-lines file. The last line may lack its end."""
    line = 1
    rest: list[bytes] = []
    with path.open("rb") as file:
        blocks = without_mark(decompressed(file, path.name), path)
        position, held = 0, 0
        broken = ""
        while True:
            try:
                block = next(blocks, None)
            except ValueError as error:
                block, broken = None, str(error)
            if block is None:
                break
            position = file.tell()
            end = block.rfind(b"\n")
            if end < 0:
                held += len(block)
                rest = [*rest, block] if held <= LONGEST_LINE else []
                continue
            if held > LONGEST_LINE:
                yield too_long(path, line)
                line += 1
                block = block[block.find(b"\n") + 1 :]
                end = block.rfind(b"\n")
            if end >= 0:
                records: list[bytes | None] = list(b"".join([*rest, block[:end]]).split(b"\n"))
                yield Chunk(str(path), "json", line, records, position=position)
                line += len(records)
            rest, held = [block[end + 1 :]], len(block) - end - 1
        last = b"".join(rest)
        if held > LONGEST_LINE:
            yield too_long(path, line)
        if broken:
            lost = f"; the incomplete line {line} is lost" if last else ""
            yield Problem(str(path), line, f"{broken}{lost}")
        elif last:
            yield Chunk(str(path), "json", line, [last], position=position)
        elif line == 1:
            yield Problem(str(path), 0, "the file is empty")


def too_long(path: Path, line: int) -> Problem:
    """The problem of a line that is skipped because of its length."""
    return Problem(str(path), line, f"longer than {LONGEST_LINE >> 20} MiB: is one document a line?")


def decompressed(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The content of ``file`` in blocks, decompressed according to the suffix of ``name``.

    Raises:
        ValueError: the compressed data are truncated or damaged. The content before the damage is yielded first.
    """
    if name.endswith(".zst"):
        yield from in_blocks(frames(file, new_zstd_frame, "zstd"))
    elif name.endswith(".gz"):
        yield from in_blocks(frames(file, lambda: zlib.decompressobj(wbits=31), "gzip"))
    else:
        yield from iter(lambda: file.read(BLOCK_BYTES), b"")


def without_mark(blocks: Iterator[bytes], name: Path) -> Iterator[bytes]:
    """``blocks`` without a byte-order mark at the start of the file.

    Raises UserError when the text is UTF-16 or UTF-32.
    """
    first = next(blocks, b"")
    encoding = wide_encoding(first)
    if encoding is not None:
        raise UserError(f"{name} is {encoding}; save it as UTF-8 (`iconv -f {encoding} -t UTF-8`)")
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from blocks


def in_blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """``parts`` joined and cut into blocks of ``BLOCK_BYTES``.

    Raises:
        ValueError: as ``parts``, after the content before the error was yielded.
    """
    held = bytearray()
    failure = None
    try:
        for part in parts:
            held += part
            while len(held) >= BLOCK_BYTES:
                yield bytes(held[:BLOCK_BYTES])
                del held[:BLOCK_BYTES]
    except ValueError as error:
        failure = error
    if held:
        yield bytes(held)
    if failure is not None:
        raise failure


def new_zstd_frame() -> Any:
    """A decompressor of one zstd frame."""
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()


def frames(file: BinaryIO, new_frame: Callable[[], Any], kind: str) -> Iterator[bytes]:
    """The content of concatenated compressed frames.

    Raises ValueError for damaged or truncated data.
    """
    frame = None
    while data := file.read(STEP_BYTES):
        while data:
            if frame is None:
                # gzip allows zero padding after a member.
                data = data.lstrip(b"\0") if kind == "gzip" else data
                if not data:
                    break
                frame = new_frame()
            try:
                block = frame.decompress(data)
            except Exception as error:  # zlib.error or zstandard.ZstdError
                raise ValueError(f"damaged {kind} data before byte {file.tell()}: {error}") from error
            if block:
                yield block
            if not frame.eof:
                break
            data, frame = frame.unused_data, None
    if frame is not None:
        raise ValueError(f"truncated: the {kind} data end too early")


def text_chunks(path: Path) -> Iterator[Chunk]:
    """Pieces of the one document of a ``.txt`` file.

    A piece ends after a line end between two visible ASCII characters. GPT-2's rule splits words there, so that the ids
    of the pieces are those of the whole text. Text without such a place is cut once it has ``LARGEST_PIECE`` bytes.
    """
    line = 1
    rest = b""
    first = True
    with path.open("rb") as file:
        for block in without_mark(decompressed(file, path.name), path):
            content = rest + block
            end = piece_end(content, len(rest))
            piece, rest = content[:end], content[end:]
            if piece:
                yield Chunk(
                    str(path),
                    "piece",
                    line,
                    [piece],
                    ends_document=False,
                    starts_document=first,
                    position=file.tell(),
                )
                line += piece.count(b"\n")
                first = False
        yield Chunk(str(path), "piece", line, [rest], starts_document=first, position=file.tell())


def piece_end(content: bytes, start: int) -> int:
    """The index at which to cut ``content``, searched from its end down to ``start``; 0 to read more first."""
    at = len(content) - 1
    while (at := content.rfind(b"\n", max(1, start - 1), at)) > 0:
        if 0x20 < content[at - 1] < 0x7F and 0x20 < content[at + 1] < 0x7F:
            return at + 1
    if len(content) < LARGEST_PIECE:
        return 0
    at = len(content) - 1
    while at > 0 and content[at] & 0xC0 == 0x80:  # not inside a UTF-8 character
        at -= 1
    return content.rfind(b"\n") + 1 or at


def parquet_chunks(path: Path) -> Iterator[Chunk | Problem]:
    """Chunks of rows of a parquet file."""
    require_extra("parquet", "reading parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 1
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                yield Problem(str(path), 0, f"no column 'text'; its columns: {column_names(names)}")
                return
            columns = [name for name in ("text", "meta", "pile_set_name") if name in names]
            for name in columns:
                if names.count(name) > 1:
                    yield Problem(str(path), 0, f"{names.count(name)} columns named '{name}'; keep one")
                    return
            size, rows = path.stat().st_size, max(1, table.metadata.num_rows)
            if table.metadata.num_rows == 0:
                yield Problem(str(path), 0, "the file has no rows")
            for batch in table.iter_batches(batch_size=256, columns=columns):
                # As binary, so that a text that is not UTF-8 costs only its own row.
                texts = batch.column("text").cast(pa.large_binary()).to_pylist()
                sets = batch_sets(batch, columns)
                position = size * (row + len(texts) - 1) // rows
                yield Chunk(str(path), "row", row, texts, sets, position=position)
                row += len(texts)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield Problem(str(path), row if row > 1 else 0, f"not readable as parquet: {' '.join(str(error).split())}")


def batch_sets(batch: Any, columns: list[str]) -> list[str | None]:
    """The set name of each row of a parquet batch; None where it is missing or is not UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = None
    if "pile_set_name" in columns:
        names = batch.column("pile_set_name")
    elif "meta" in columns:
        meta = batch.column("meta")
        if pa.types.is_struct(meta.type) and meta.type.get_field_index("pile_set_name") >= 0:
            names = pc.struct_field(meta, "pile_set_name")
    if names is not None and pa.types.is_dictionary(names.type):
        names = names.dictionary_decode()
    if names is None or not (pa.types.is_string(names.type) or pa.types.is_large_string(names.type)):
        return [None] * batch.num_rows
    return [decoded(name) for name in names.cast(pa.large_binary()).to_pylist()]


def decoded(name: bytes | None) -> str | None:
    """The name as text; None where it is missing or is not UTF-8."""
    try:
        return None if name is None else name.decode("utf-8")
    except UnicodeDecodeError:
        return None
