"""Converts input files into token streams on disk, in input order, with worker processes.

A stream has the little-endian ids of the documents of one file. The end-of-document id follows each document.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.base.digests import file_digest
from spdf_dist.base.signals import STOP_SIGNALS
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.data.pack_progress import PackProgress
from spdf_dist.data.readers import Chunk, Problem, parse_chunk, read_chunks
from spdf_dist.data.remote import Input, local_copy
from spdf_dist.data.shards import token_dtype
from spdf_dist.data.tokenizer import Tokenizer, load_tokenizer

LISTED_PROBLEMS = 1000
"""Number of problems listed per file. The others are only counted."""


Sets = dict[str, dict[str, int]]
"""``documents`` and ``tokens`` of each set (``pile_set_name``). Tokens include end-of-document ids."""


def add_set(sets: Sets, name: str, *, documents: int = 0, tokens: int = 0) -> None:
    """Add documents and tokens to the counts of a set."""
    count = sets.setdefault(name, {"documents": 0, "tokens": 0})
    count["documents"] += documents
    count["tokens"] += tokens


@dataclass
class TokenizedChunk:
    """The ids of a chunk, as the bytes of a stream, and its counts."""

    ids: bytes
    sets: Sets
    text_bytes: int
    empty_documents: int
    unknown_tokens: int
    problems: list[Problem]


@dataclass
class StreamSummary:
    """One input file and its stream."""

    number: int
    """Index of the file among the inputs, from 0."""
    file: str
    bytes: int
    sha256: str
    tokens: int = 0
    text_bytes: int = 0
    empty_documents: int = 0
    unknown_tokens: int = 0
    sets: Sets = field(default_factory=dict)
    problem_count: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)

    def add(self, chunk: TokenizedChunk, item_bytes: int) -> None:
        """Add the counts of a chunk of this file."""
        self.tokens += len(chunk.ids) // item_bytes
        self.text_bytes += chunk.text_bytes
        self.empty_documents += chunk.empty_documents
        self.unknown_tokens += chunk.unknown_tokens
        for name, count in chunk.sets.items():
            add_set(self.sets, name, **count)

    def add_problem(self, problem: Problem) -> None:
        """Count a problem of this file, and list it while there are fewer than ``LISTED_PROBLEMS``."""
        self.problem_count += 1
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append({**asdict(problem), "file": Path(problem.file).name})


class ChunkTokenizer:
    """Tokenizes chunks in this process."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size)).newbyteorder("<")

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        documents, problems = parse_chunk(chunk)
        kept = [document for document in documents if document.text or chunk.kind == "piece"]
        ids: list[int] = []
        sets: Sets = {}
        for document, encoded in zip(
            kept, self._tokenizer.encode_batch([document.text for document in kept]), strict=True
        ):
            if not ((document.starts and document.ends) or self._tokenizer.cuts_at_lines):
                raise UserError(
                    f"{chunk.file}: this tokenizer encodes a text as a whole only, and the file is too long for that; "
                    "write its documents to a .jsonl file"
                )
            start = self._tokenizer.start_ids if document.starts else ()
            encoded = [*start, *encoded, *[self._tokenizer.eod_id] * document.ends]
            ids += encoded
            add_set(sets, document.set_name, documents=int(document.ends), tokens=len(encoded))
        text_bytes = sum(len(document.text.encode()) for document in kept)
        unknown = self._tokenizer.unknown_id
        return TokenizedChunk(
            np.array(ids, self._dtype).tobytes(),
            sets,
            text_bytes,
            len(documents) - len(kept),
            0 if unknown is None else ids.count(unknown),
            problems,
        )


_worker: ChunkTokenizer


def start_worker(tokenizer: str) -> None:
    """Prepare a worker process."""
    global _worker
    for number in STOP_SIGNALS:  # only the parent handles them
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker = ChunkTokenizer(load_tokenizer(tokenizer))


def end_with_parent() -> None:
    """Wait until the parent process has ended for any reason, then end this worker."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def work(chunk: Chunk) -> TokenizedChunk:
    """Tokenize a chunk in a worker process."""
    return _worker(chunk)


def write_streams(
    files: list[tuple[int, Input]], tokenizer: str, folder: Path, workers: int, progress: PackProgress
) -> list[StreamSummary]:
    """Tokenize ``files`` (number, input) into ``folder/NUMBER.tokens``. The output does not depend on ``workers``.

    Raises:
        OSError: a file cannot be read or written.
        UserError: a file is not UTF-8, is too long for a tokenizer that needs the whole text, or cannot be copied.
        SpdfError: a worker process died.
    """
    loaded = load_tokenizer(tokenizer)
    item_bytes = np.dtype(token_dtype(loaded.vocab_size)).itemsize
    summaries = []
    with closing(tokenized(files, loaded, tokenizer, workers, folder)) as results:
        stream = None
        try:
            for item in results:
                if isinstance(item, StreamSummary):
                    summary = item
                    summaries.append(summary)
                    if stream:
                        stream.close()
                    stream = stream_path(folder, summary.number).open("wb")
                    continue
                problems = [item] if isinstance(item, Problem) else item[1].problems
                for problem in problems:
                    summary.add_problem(problem)
                    progress.problem(problem)
                if not isinstance(item, Problem):
                    chunk, result = item
                    assert stream is not None
                    stream.write(result.ids)
                    summary.add(result, item_bytes)
                    progress.advance(chunk, result.text_bytes, len(result.ids) // item_bytes)
        finally:
            if stream:
                stream.close()
    return summaries


SHARED_MEMORY = "/dev/shm"
"""The folder in which the C library keeps named semaphores."""

Item = StreamSummary | Problem | tuple[Chunk, TokenizedChunk]


def tokenized(
    files: list[tuple[int, Input]], loaded: Tokenizer, tokenizer: str, workers: int, folder: Path
) -> Generator[Item, None, None]:
    """For each file: its summary, still empty, and then its problems and tokenized chunks in order."""
    if workers == 1:
        tokenize = ChunkTokenizer(loaded)
        for item in chunks_of(files, folder):
            yield (item, tokenize(item)) if isinstance(item, Chunk) else item
        return
    pool = worker_pool(workers, tokenizer)
    waiting: deque[StreamSummary | Problem | tuple[Chunk, Future[TokenizedChunk]]] = deque()
    busy = 0
    try:
        for item in chunks_of(files, folder):
            if isinstance(item, Chunk):
                waiting.append((item, pool.submit(work, item)))
                busy += 1
            else:
                waiting.append(item)
            while busy > 3 * workers:
                yield (ready := finished(waiting.popleft()))
                busy -= isinstance(ready, tuple)
        while waiting:
            yield finished(waiting.popleft())
    except BrokenProcessPool as error:
        raise SpdfError("a worker process died (out of memory?); try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def worker_pool(workers: int, tokenizer: str) -> ProcessPoolExecutor:
    """Processes that tokenize. Raises OSError that names the folder of their locks if these cannot be made there."""
    try:
        return ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (tokenizer,))
    except OSError as error:
        reason = f"{error.strerror}: worker processes need a lock there; --workers 1 needs none"
        raise OSError(error.errno, reason, SHARED_MEMORY) from None


def finished(item: StreamSummary | Problem | tuple[Chunk, Future[TokenizedChunk]]) -> Item:
    """``item`` with the result of its future, after waiting for it."""
    if isinstance(item, tuple):
        chunk, future = item
        return chunk, future.result()
    return item


def chunks_of(files: list[tuple[int, Input]], folder: Path) -> Iterator[StreamSummary | Problem | Chunk]:
    """For each file: its summary, still empty, and then its chunks and problems. Copies are made in ``folder``.

    Raises UserError for a file that changes meanwhile: its digest would be that of another text.
    """
    for number, given in files:
        with local_copy(given, folder / f"{number:06d}.input") as path:
            before = path.stat()
            yield StreamSummary(number, given.name, before.st_size, file_digest(path))
            yield from read_chunks(path)
            after = path.stat()
            if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
                raise UserError(f"{path} changed while it was read; pack it when it is complete")


def stream_path(folder: Path, number: int) -> Path:
    """The path of the stream of input ``number``."""
    return folder / f"{number:06d}.tokens"
