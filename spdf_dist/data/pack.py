"""Packs text files into a folder of token sequences (``spdf data pack``).

The first step converts each file into a token stream (:mod:`spdf_dist.data.tokenizing`). The second step joins the
streams in input order and cuts them into sequences of ``seq_len + 1`` tokens. The first token of a sequence is the last
token of the previous one, so that each token except the very first is predicted once. Ranks share the files of the
first step and the shards of the second. The output does not depend on the number of ranks or workers.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.base.atomic_files import remove_leftovers, spare_files, temporary_beside
from spdf_dist.base.claims import claimed
from spdf_dist.base.collective import Collective, find_processes
from spdf_dist.base.cpu import cores
from spdf_dist.base.digests import file_digest
from spdf_dist.config.errors import EXIT_BAD_INPUT, SpdfError, UserError, exit_code_of
from spdf_dist.data.loader import PackedDataset, read_index
from spdf_dist.data.mapping import mapped
from spdf_dist.data.pack_progress import PackProgress
from spdf_dist.data.placing import made
from spdf_dist.data.readers import Problem, check_pack_inputs
from spdf_dist.data.remote import Input, known_bytes, local_copy
from spdf_dist.data.shards import (
    INDEX_FILE,
    TOKENIZER_FOLDER,
    MemberLayout,
    ShardEntry,
    member_rule,
    token_dtype,
    write_index,
    write_shard,
)
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.data.tokenizing import (
    LISTED_PROBLEMS,
    Sets,
    StreamSummary,
    add_set,
    stream_path,
    write_streams,
)

REMOTE_BYTES = 1 << 30
"""The assumed size of a remote input: that of a usual shard."""


@dataclass(frozen=True)
class PackResult:
    """The index of the packed folder, and whether the folder existed already."""

    index: dict[str, Any]
    already_done: bool
    ranks: int
    rank: int


class TokenStreams:
    """The concatenated token streams of all files."""

    def __init__(self, folder: Path, summaries: list[StreamSummary], dtype: str) -> None:
        little = np.dtype(dtype).newbyteorder("<")
        self._parts = [mapped(stream_path(folder, summary.number), little) for summary in summaries if summary.tokens]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def read(self, start: int, count: int) -> np.ndarray:
        """The ids ``start ... start + count - 1``, [count]."""
        pieces = []
        at = int(np.searchsorted(self._starts, start, side="right")) - 1
        while count > 0:
            offset = start - int(self._starts[at])
            piece = self._parts[at][offset : offset + count]
            pieces.append(piece)
            start, count, at = start + len(piece), count - len(piece), at + 1
        return np.concatenate(pieces)


@dataclass
class Request:
    """The arguments of ``pack``."""

    inputs: list[str]
    tokenizer: str
    out: str
    seq_len: int
    workers: int | None
    sequences_per_shard: int | None
    show_progress: bool

    def check(self) -> None:
        """Check the arguments, and set ``files``, ``loaded`` and ``target``. Raises UserError when one is wrong."""
        if self.seq_len < 1:
            raise UserError(f"--seq-len {self.seq_len}: at least 1")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: at least 1")
        self.files, self.loaded = check_pack_inputs(self.inputs), load_tokenizer(self.tokenizer)
        self.target = Path(self.out).resolve()

    def make_aside(self) -> Path:
        """Make the temporary folder that is later renamed to ``target``. Remove such folders of killed processes."""
        with contextlib.suppress(OSError):
            remove_leftovers(self.target)
        aside = temporary_beside(self.target)
        aside.mkdir()
        return aside


def pack(
    inputs: list[str],
    tokenizer: str,
    out: str,
    seq_len: int,
    workers: int | None = None,
    sequences_per_shard: int | None = None,
    show_progress: bool = False,
) -> PackResult:
    """Pack ``inputs`` into the folder ``out``, which appears only when it is complete.

    Args:
        workers: tokenizing processes of this rank; None: one per usable core.
        sequences_per_shard: None: as many as fit in 128 MiB.

    Raises:
        UserError: an argument is wrong, there is too little text, or ``out`` has other content. Nothing is written.
        SpdfError: a file cannot be written or read. Partial output is removed.
        An error on one rank is raised on all ranks.
    """
    ranks = find_processes(Path(out).resolve())
    request = Request(inputs, tokenizer, out, seq_len, workers, sequences_per_shard, show_progress)
    try:
        together(ranks, out, request.check)
        result = pack_together(ranks, request)
    except Exception:
        ranks.close()
        raise
    ranks.close()
    return result


def pack_together(ranks: Collective, request: Request) -> PackResult:
    """Pack on all ranks together."""
    with contextlib.ExitStack() as claim:

        def prepare() -> str | None:
            """The temporary folder, on rank 0; None on other ranks, and when the target already has this content."""
            if ranks.rank != 0:
                return None
            made(request.target.parent)
            claim.enter_context(claimed(request.target))
            if holds_this_already(request):
                return None
            spare = spare_files()
            warn_of_repeats(request.files)
            aside = request.make_aside()
            claim.callback(shutil.rmtree, aside, ignore_errors=True)
            claim.push(spare)  # closed before the folder is deleted
            return str(aside)

        shared = together(ranks, request.target, prepare)[0]
        if shared is None:
            return PackResult(read_index(request.target), True, ranks.world_size, ranks.rank)
        index = build(ranks, request, Path(shared))
        together(ranks, request.target, lambda: finish(request, index, Path(shared)) if ranks.rank == 0 else None)
    return PackResult(index, False, ranks.world_size, ranks.rank)


def warn_of_repeats(files: list[Input]) -> None:
    """Print a warning on stderr if a file is given more than once, for example because patterns overlap."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(str(file.resolve()) if isinstance(file, Path) else file.name, []).append(str(file))
    repeated = [given for given in names.values() if len(given) > 1]
    if repeated:
        print(
            f"WARNING: --input: {len(repeated)} of the files are given more than once, and their texts are packed as "
            f"often, such as {repeated[0][0]} ({len(repeated[0])} times)",
            file=sys.stderr,
        )


def build(ranks: Collective, request: Request, aside: Path) -> dict[str, Any]:
    """Write the streams and the shards into ``aside``. Every rank returns the index."""
    loaded, seq_len = request.loaded, request.seq_len
    mine = share_files(request.files, ranks)

    def tokenize() -> list[dict[str, Any]]:
        progress, workers = PackProgress(mine, request.show_progress and ranks.rank == 0), request.workers
        try:
            streams = write_streams(mine, request.tokenizer, aside, workers or cores(), progress)
            return [asdict(stream) for stream in streams]
        finally:
            progress.close()

    done = [StreamSummary(**fields) for part in together(ranks, request.target, tokenize) for fields in part]
    summaries = sorted(done, key=lambda summary: summary.number)
    dtype = token_dtype(loaded.vocab_size)
    tokens = sum(summary.tokens for summary in summaries)
    sequences = max(0, tokens - 1) // seq_len
    if sequences == 0:
        problems = [problem for summary in summaries for problem in summary.problems]
        advice = "use more text or a smaller --seq-len"
        if problems:
            advice = f"the first of its {sum(s.problem_count for s in summaries)} problems: {Problem(**problems[0])}"
        raise UserError(f"--input holds {tokens} tokens, fewer than one sequence of {seq_len} + 1; {advice}")
    per_shard = request.sequences_per_shard or MemberLayout.of(seq_len, dtype).sequences_per_shard()
    shard_count = -(-sequences // per_shard)

    def shards() -> list[dict[str, Any]]:
        streams = TokenStreams(aside, summaries, dtype)
        written = []
        for number in range(ranks.rank, shard_count, ranks.world_size):
            first = number * per_shard
            count = min(per_shard, sequences - first)
            path = aside / f"shard-{number:06d}.tar"
            written.append(asdict(write_shard(path, first, count, seq_len, dtype, streams.read)))
        return written

    entries = [ShardEntry(**fields) for part in together(ranks, request.target, shards) for fields in part]
    return {
        "seq_len": seq_len,
        "dtype": dtype,
        "sequences": sequences,
        "tokens": tokens,
        "dropped_tokens": tokens - 1 - sequences * seq_len,
        "documents": sum(count["documents"] for summary in summaries for count in summary.sets.values()),
        "empty_documents": sum(summary.empty_documents for summary in summaries),
        "unknown_tokens": sum(summary.unknown_tokens for summary in summaries),
        "text_bytes": sum(summary.text_bytes for summary in summaries),
        "tokenizer": {"digest": loaded.digest, "vocab_size": loaded.vocab_size, "eod_id": loaded.eod_id},
        "members": member_rule(seq_len, dtype),
        "shards": [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.file)],
        "sets": total_sets(summaries),
        "inputs": [
            {name: getattr(summary, name) for name in ("file", "bytes", "sha256", "tokens", "problem_count")}
            for summary in summaries
        ],
        "problem_count": sum(summary.problem_count for summary in summaries),
        "problems": [problem for summary in summaries for problem in summary.problems][:LISTED_PROBLEMS],
    }


def holds_this_already(request: Request) -> bool:
    """Whether the target is the complete result of this request; False when it is empty or missing.

    Raises UserError when it has other content or is damaged.
    """
    target, files = request.target, request.files
    if not target.exists():
        return False
    if not target.is_dir():
        raise UserError(f"--out {target} is a file; name a new folder")
    if not any(target.iterdir()):
        return False
    if not (target / INDEX_FILE).is_file():
        raise UserError(f"--out {target} is not empty and holds no packed data; name a new folder")
    index = read_index(target)
    try:
        recorded = [(entry["file"], entry["bytes"], entry["sha256"]) for entry in index["inputs"]]
        made_with = (index["seq_len"], index["tokenizer"]["digest"])
    except (KeyError, TypeError) as error:
        raise UserError(f"--out {target} is not empty and holds no packed data; name a new folder") from error
    other = None
    if made_with[0] != request.seq_len:
        other = f"seq_len {made_with[0]}, asked {request.seq_len}"
    elif made_with[1] != request.loaded.digest:
        other = "made with another tokenizer"
    elif not same_inputs(files, recorded, target):
        other = "made from other input files"
    if other is not None:
        raise UserError(f"--out {target} holds other packed data ({other}); name a new folder or remove this one")
    try:
        PackedDataset(target).verify()
        kept = load_tokenizer(target / TOKENIZER_FOLDER).digest
    except UserError as error:
        raise UserError(f"--out {target} holds this data, but damaged: {error}; remove the folder") from None
    if kept != request.loaded.digest:
        raise UserError(f"--out {target} holds this data, but its {TOKENIZER_FOLDER} is damaged; remove the folder")
    return True


def same_inputs(files: list[Input], recorded: list[tuple[str, int, str]], target: Path) -> bool:
    """Whether the inputs have the recorded names, sizes and digests. Remote inputs are copied once more for this."""
    if [file.name for file in files] != [name for name, _, _ in recorded]:
        return False
    if any(known_bytes(file) not in (None, size) for file, (_, size, _) in zip(files, recorded, strict=True)):
        return False
    for file, (_, _, digest) in zip(files, recorded, strict=True):
        with local_copy(file, temporary_beside(target)) as path:
            if file_digest(path) != digest:
                return False
    return True


def finish(request: Request, index: dict[str, Any], aside: Path) -> None:
    """Complete the temporary folder ``aside`` and rename it to the target."""
    for stream in aside.glob("*.tokens"):
        stream.unlink()
    request.loaded.save(aside / TOKENIZER_FOLDER)
    write_index(aside, index)
    if request.target.exists():
        request.target.rmdir()  # the check passed, so it is empty
    aside.rename(request.target)


def share_files(files: list[Input], ranks: Collective) -> list[tuple[int, Input]]:
    """(number, input) of this rank's inputs, assigned largest first, each to the rank with the fewest bytes."""
    sizes = [REMOTE_BYTES if (size := known_bytes(file)) is None else size for file in files]
    load = [0] * ranks.world_size
    mine = []
    for number in sorted(range(len(files)), key=lambda number: (-sizes[number], number)):
        rank = load.index(min(load))
        load[rank] += sizes[number]
        if rank == ranks.rank:
            mine.append((number, files[number]))
    return sorted(mine)


def together(ranks: Collective, out: str | Path, step: Callable[[], Any]) -> list[Any]:
    """The result of ``step``, which writes to ``out``, on each rank.

    When it fails on one rank, all ranks raise the same error.
    """
    value, failure = None, None
    own: Exception | None = None
    try:
        value = step()
    except SpdfError as error:
        failure, own = (exit_code_of(error), str(error)), error
    except OSError as error:
        failure = (exit_code_of(error), f"{error.filename or out}: {error.strerror or error}")
    except Exception as error:
        failure, own = (SpdfError.exit_code, repr(error)), error
    results = ranks.allgather([failure, value])
    if own is not None:
        raise own
    for failed, _ in results:
        if failed:
            code, message = failed
            raise UserError(message) if code == EXIT_BAD_INPUT else SpdfError(message)
    return [value for _, value in results]


def total_sets(summaries: list[StreamSummary]) -> Sets:
    """Numbers of documents and tokens per set over all files, by name."""
    total: Sets = {}
    for summary in summaries:
        for name, count in summary.sets.items():
            add_set(total, name, **count)
    return dict(sorted(total.items()))
