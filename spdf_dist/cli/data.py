"""Data: train tokenizers, pack text into shards, fetch or make data sets.

A tokenizer is a SentencePiece .model file, a Hugging Face tokenizer.json, or a folder with one of these or with GPT-2's
encoder.json and vocab.bpe.
Inputs are .jsonl, .jsonl.gz, .jsonl.zst (one {"text": ...} per line), .parquet (a column text), .txt and .tar files
(WebDataset shards: KEY.txt, or KEY.json with a text), or patterns such as 'part-*.tar' and 'part-{000..127}.tar'.
`pack` also reads http:// and https:// URLs, and shards that a command prints: 'pipe:aws s3 cp s3://b/{0..9}.tar -'.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

HELP = "train tokenizers, pack text into shards, fetch or make data sets"

INPUT_HELP = (
    ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt or .tar files, or patterns of them, in the order they are read"
)


def configure(parser: argparse.ArgumentParser) -> None:
    from spdf_dist.data.fetch import NAMES

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    tokenizer = commands.add_parser("tokenizer", help="train a SentencePiece tokenizer")
    train = tokenizer.add_subparsers(dest="tokenizer_command", required=True, metavar="train").add_parser(
        "train", help="train a SentencePiece model whose decoding gives every text back exactly"
    )
    train.add_argument("--input", nargs="+", required=True, metavar="FILE", help=INPUT_HELP)
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of ids, 256 bytes included")
    train.add_argument("--out", required=True, metavar="FILE", help="the .model file that is written")
    train.set_defaults(work=run_tokenizer_train)

    pack = commands.add_parser(
        "pack",
        help="tokenize text and pack it into WebDataset shards with an index",
        description="Tokenize text and pack it into WebDataset shards with an index. Under mpirun or srun the ranks "
        "share the files. Exit code 1: all was packed but for lines that could not be used, listed on standard error.",
    )
    pack.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help=f"{INPUT_HELP}; URLs; 'pipe:COMMAND', without a shell"
    )
    pack.add_argument(
        "--tokenizer", required=True, metavar="TOK", help="a .model file, a tokenizer.json, or a folder (docs/data.md)"
    )
    pack.add_argument("--out", required=True, metavar="DIR", help="the folder that is written")
    pack.add_argument("--seq-len", type=int, default=2048, metavar="T", help="tokens per sequence (default 2048)")
    pack.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes that tokenize (default: the cores that this process may use)",
    )
    pack.add_argument("--json", action="store_true", help="print one JSON object")
    pack.set_defaults(work=run_pack, claims_out=True)

    info = commands.add_parser("info", help="print the content of a packed folder, and its unigram entropy")
    info.add_argument("folder", metavar="DIR", help="a folder that `spdf data pack` wrote")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(work=run_info)

    verify = commands.add_parser(
        "verify",
        help="compare data sets with their checksums",
        description="Compare every byte of packed folders with the checksums in their index, and of Megatron files "
        "with their checksum file (PREFIX.sums). A missing one is written, and training checks what it reads.",
    )
    verify.add_argument(
        "paths", nargs="+", metavar="PATH", help="a packed folder, or the prefix of a Megatron .bin and .idx pair"
    )
    verify.set_defaults(work=run_verify)

    fetch = commands.add_parser("fetch", help="download a data set from its official source")
    fetch.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    fetch.add_argument("--out", required=True, metavar="DIR", help="the folder of the files")
    fetch.set_defaults(work=run_fetch)

    python_text = commands.add_parser(
        "python-text", help="write the text of this Python installation (sources, docstrings, topics) as .jsonl"
    )
    python_text.add_argument("--out", required=True, metavar="FILE", help="a .jsonl or .jsonl.zst file")
    python_text.add_argument(
        "--validation", metavar="FILE", help="write one document in fifty to this file instead of --out"
    )
    python_text.add_argument("--max-mb", type=float, metavar="N", help="stop after N MB of text")
    python_text.set_defaults(work=run_python_text)

    synthetic = commands.add_parser("synthetic-e2e", help="write a synthetic data set in the format of E2E's CSV files")
    synthetic.add_argument(
        "--out", required=True, metavar="DIR", help="the folder for trainset.csv, devset.csv, testset_w_refs.csv"
    )
    synthetic.add_argument("--seed", type=int, required=True, metavar="S", help="the same seed gives the same files")
    synthetic.set_defaults(work=run_synthetic_e2e)


def run(args: argparse.Namespace) -> int:
    return int(args.work(args))


def run_tokenizer_train(args: argparse.Namespace) -> int:
    from spdf_dist.data.readers import Problem, check_inputs, documents
    from spdf_dist.data.tokenizer import load_tokenizer
    from spdf_dist.data.tokenizer_training import train_sentencepiece

    problems = []

    def report(problem: Problem) -> None:
        problems.append(problem)
        print(problem, file=sys.stderr)

    start = time.monotonic()
    texts = (document.text for document in documents(check_inputs(args.input), report))
    train_sentencepiece(texts, args.vocab_size, args.out)
    loaded = load_tokenizer(args.out)
    print(f"{args.out}: {loaded.vocab_size} ids, sha256 {loaded.digest[:16]}..., {time.monotonic() - start:.1f} s")
    return 1 if problems else 0


def run_pack(args: argparse.Namespace) -> int:
    from spdf_dist.base.numbers import counted
    from spdf_dist.base.rank_variables import SINGLE_PROCESS, discover
    from spdf_dist.config.errors import SpdfError
    from spdf_dist.data.pack import pack

    start = time.monotonic()
    try:
        result = pack(args.input, args.tokenizer, args.out, args.seq_len, args.workers, show_progress=True)
    except SpdfError:
        # All ranks failed alike. Launchers end the other ranks at the first code that is not 0, so rank 0 must report.
        ranks = discover() or SINGLE_PROCESS
        if ranks.rank > 0 and ranks.source in ("MPI", "Slurm"):
            return 0
        raise
    if result.rank != 0:
        return 0
    index, seconds = result.index, time.monotonic() - start
    if args.json:
        print(json.dumps(pack_summary(args.out, result.already_done, result.ranks, seconds, index)))
    else:
        done = "done already" if result.already_done else f"{seconds:.1f} s on {counted(result.ranks, 'rank')}"
        print(
            f"{args.out}: {counted(index['sequences'], 'sequence')} of {index['seq_len']} tokens in "
            f"{counted(len(index['shards']), 'shard')}, {counted(index['documents'], 'document')}, "
            f"{index['tokens']:,} tokens ({index['dropped_tokens']:,} dropped at the end); {done}"
        )
    if unknown := index.get("unknown_tokens"):
        print(
            f"WARNING: {unknown:,} of {index['tokens']:,} tokens are unknown: the tokenizer lacks parts of the text",
            file=sys.stderr,
        )
    if index["problem_count"]:
        print(
            f"spdf data: {counted(index['problem_count'], 'problem')} in the input; the rest was packed (exit code 1). "
            f"They are listed in {args.out}/index.json",
            file=sys.stderr,
        )
    return 1 if index["problem_count"] else 0


def pack_summary(out: str, already_done: bool, ranks: int, seconds: float, index: dict) -> dict:
    """What ``pack --json`` prints: the index but for its per-shard and per-file tables, and what was measured."""
    tables = ("shards", "inputs", "members")
    return {
        "schema_version": 1,
        "out": out,
        "already_done": already_done,
        "ranks": ranks,
        "seconds": seconds,
        "mb_per_s": None if already_done else index["text_bytes"] / seconds / 1e6,
        "tokens_per_s": None if already_done else index["tokens"] / seconds,
        "shards": len(index["shards"]),
        **{name: value for name, value in index.items() if name not in tables and name != "schema_version"},
    }


def run_info(args: argparse.Namespace) -> int:
    from spdf_dist.data.info import describe

    summary = describe(args.folder)
    if args.json:
        print(json.dumps(summary))
        return 0
    print(
        f"{summary['path']}: {summary['sequences']:,} sequences of {summary['seq_len']} tokens, "
        f"{summary['documents']:,} documents, {summary['tokens']:,} tokens, "
        f"{summary['used_ids']:,} of {summary['vocab_size']:,} ids"
    )
    for name, part in summary["sets"].items():
        print(f"  {name}: {part['documents']:,} documents, {part['tokens']:,} tokens")
    print(f"unigram entropy {summary['unigram_entropy']:.3f} nats per token, the best loss of a model without context")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from spdf_dist.data.verify import verify_dataset

    for path in args.paths:
        print(f"{path}: {verify_dataset(path)}", flush=True)
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    from spdf_dist.data.fetch import fetch

    for path in fetch(args.name, args.out):
        print(path)
    return 0


def run_python_text(args: argparse.Namespace) -> int:
    from spdf_dist.data.python_text import write_python_text

    for path, documents, size in write_python_text(args.out, args.validation, args.max_mb):
        print(f"{path}: {documents} documents, {size / 1e6:.1f} MB of text")
    return 0


def run_synthetic_e2e(args: argparse.Namespace) -> int:
    from spdf_dist.data.grammar import write_synthetic_e2e

    for path, inputs, rows in write_synthetic_e2e(args.out, args.seed):
        print(f"{path}: {inputs} synthetic meaning representations, {rows} texts")
    return 0
