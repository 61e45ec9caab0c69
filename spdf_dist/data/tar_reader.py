"""Reads documents from WebDataset shards (``.tar``).

The members of a sample are consecutive and share the name before the first dot. ``KEY.txt`` is a document. ``KEY.json``
is an object with ``text``. Beside a ``KEY.txt``, only its ``meta`` is used. Other members are ignored.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from spdf_dist.data.encodings import wide_encoding
from spdf_dist.data.readers import BLOCK_BYTES, BYTE_ORDER_MARK, LONGEST_LINE, Chunk, Problem, set_of

Sample = dict[str, bytes]
"""Content by extension (``txt`` or ``json``)."""


def tar_chunks(path: Path) -> Iterator[Chunk | Problem]:
    """Chunks of samples and problems, in shard order. Line numbers are numbers of samples, from 1."""
    kind, first, held = "", 1, 0
    records: list[bytes | None] = []
    sets: list[str | None] = []
    read_before = 0

    def chunk() -> Chunk:
        return Chunk(str(path), kind, first, records, sets, position=read_before)

    for number, item, position in samples(path):
        sort = "" if isinstance(item, Problem) else "row" if "txt" in item else "json"
        if records and (sort != kind or held >= BLOCK_BYTES):
            yield chunk()
            records, sets, held = [], [], 0
        read_before = position
        if isinstance(item, Problem):
            yield item
            continue
        if not records:
            kind, first = sort, number
        record = item["txt"].removeprefix(BYTE_ORDER_MARK) if sort == "row" else item["json"]
        records.append(record)
        sets.append(set_of_sample(item) if sort == "row" else None)
        held += len(record)
    if records:
        yield chunk()


def samples(path: Path) -> Iterator[tuple[int, Sample | Problem, int]]:
    """(number of the sample from 1, its content or problem, bytes of the shard read so far) for each sample."""
    number, key, sample, end = 0, None, Sample(), 0
    lost = ""
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                stored = -(-member.size // tarfile.BLOCKSIZE) if member.isfile() else 0
                before, end = end, member.offset_data + stored * tarfile.BLOCKSIZE
                if member.islnk():
                    what = f"{member.name!r} is a hard link and is left out"
                    yield number + 1, Problem(str(path), number + 1, what), end
                if not member.isfile():
                    continue
                name, extension = base_plus_ext(member.name)
                if name is None:
                    continue
                if name != key:
                    if key is not None:
                        number += 1
                        yield number, checked(path, number, key, sample), before
                    key, sample = name, Sample()
                if extension in sample:
                    what = f"the sample {key!r} has more than one .{extension} member; the first is used"
                    yield number + 1, Problem(str(path), number + 1, what), end
                elif extension in ("txt", "json"):
                    file = shard.extractfile(member)
                    assert file is not None
                    sample[extension] = file.read(LONGEST_LINE + 1)
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                lost = "truncated: the mark at the end of the archive is missing"
    except (tarfile.TarError, OSError, EOFError) as error:
        lost = f"damaged tar: {' '.join(str(error).split())}"
    if lost:
        what = f"; the incomplete sample {key!r} is lost" if key is not None else ""
        yield number + 1, Problem(str(path), number + 1, lost + what), end
    elif key is not None:
        yield number + 1, checked(path, number + 1, key, sample), end
    else:
        yield 1, Problem(str(path), 0, "the shard has no samples"), end


def checked(path: Path, number: int, key: str, sample: Sample) -> Sample | Problem:
    """The sample, or the problem that prevents its use."""
    content = sample.get("txt", sample.get("json"))
    if content is None:
        return Problem(str(path), number, f"the sample {key!r} has neither a .txt nor a .json member")
    if len(content) > LONGEST_LINE:
        return Problem(str(path), number, f"the sample {key!r} is longer than {LONGEST_LINE >> 20} MiB")
    if (encoding := wide_encoding(content)) is not None:
        return Problem(str(path), number, f"the sample {key!r} is {encoding}, not UTF-8")
    return sample


def set_of_sample(sample: Sample) -> str:
    """The set that the JSON member of a sample names."""
    try:
        value = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError):
        value = {}
    return set_of(value if isinstance(value, dict) else {})
