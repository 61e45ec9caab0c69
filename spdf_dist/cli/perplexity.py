"""Perplexity of a checkpoint, per token and per word, on text files, packed folders, or the targets of a task.

--data takes text files in the formats of `spdf data pack`, or folders that it wrote. Documents follow one another as in
pre-training, and each window starts with an empty context. With --task, --data is one file of the task, and only the
targets are predicted, each after its context (the measure of Curation Corpus).
Lines that cannot be used are named on stderr and left out; the exit code is then 1."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdf_dist.data.readers import Problem
    from spdf_dist.evaluation.perplexity import Likelihood

from spdf_dist.extensions import task_names

HELP = "perplexity of a checkpoint on text, packed data or a task"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a step_N folder, or a run folder")
    parser.add_argument(
        "--data", required=True, type=Path, nargs="+", metavar="FILES", help="text files or packed folders"
    )
    parser.add_argument(
        "--task", metavar="TASK", help=f"predict the targets of a task's file ({', '.join(task_names())})"
    )
    parser.add_argument("--split", default="validation", help="split of the task's file (default validation)")
    parser.add_argument("--tokenizer", type=Path, metavar="TOK", help="a tokenizer instead of the checkpoint's")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model (default auto)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.base.progress_bar import ProgressBar
    from spdf_dist.base.signals import stop_on_signal

    problems: list[Problem] = []
    # The bar is shown only on a terminal and removed at the end: an error must be the only line on stderr.
    with stop_on_signal(), ProgressBar(unit="tok", unit_scale=True, file=sys.stderr, leave=False) as bar:
        total, step, provenance = measure(args, problems.append, bar.update)
    for problem in problems:
        print(f"spdf perplexity: {problem}", file=sys.stderr)
    result = {
        "schema_version": 1,
        "task": args.task,
        "split": args.split if args.task else None,
        "step": step,
        "tokens": total.tokens,
        "words": total.words,
        "loss": finite(total.loss),
        "perplexity": finite(total.per_token),
        "perplexity_per_word": finite(total.per_word),
        "unusable_lines": len(problems),
        "provenance": provenance,
    }
    result = {name: value for name, value in result.items() if value is not None or name not in ("task", "split")}
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{total.tokens:,} tokens, {total.words:,} words, {total.loss:.4f} nats per token")
        print(f"  perplexity per token  {total.per_token:.3f}")
        print(f"  perplexity per word   {total.per_word:.3f}")
    return 1 if problems else 0


def finite(value: float) -> float | None:
    """``value``, or None if it is infinite or NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


def measure(
    args: argparse.Namespace, report: Callable[[Problem], None], progress: Callable[[int], object]
) -> tuple[Likelihood, int, dict[str, Any]]:
    """The likelihood of the data in the arguments, the checkpoint's step, and the provenance of the result."""
    from spdf_dist.config.errors import UserError
    from spdf_dist.data.loader import PackedDataset
    from spdf_dist.data.readers import check_inputs
    from spdf_dist.data.tasks import find_task, load_task, without_empty_targets

    folders = [path for path in args.data if path.is_dir()]
    task = examples = None
    packed = []
    if args.task is not None:
        if len(args.data) != 1:
            raise UserError(f"--task takes one file in --data, got {len(args.data)}")
        task = find_task(args.task)
        examples = without_empty_targets(load_task(args.task, args.data[0], args.split), args.data[0])
    elif folders and len(folders) != len(args.data):
        raise UserError("--data: give text files or packed folders, not both at once")
    elif folders:
        packed = [PackedDataset(folder) for folder in folders]
    else:
        args.data = check_inputs(args.data, "--data")

    from spdf_dist.checkpoint.read import Checkpoint
    from spdf_dist.evaluation.checkpoint import load
    from spdf_dist.evaluation.perplexity import (
        Likelihood,
        packed_stream,
        stream_likelihood,
        task_likelihood,
        text_stream,
    )
    from spdf_dist.evaluation.provenance import checkpoint_summary

    checkpoint = Checkpoint(args.checkpoint)
    loaded = load(checkpoint, args.tokenizer, args.device)
    if task is not None and examples is not None:
        total = task_likelihood(loaded, task, examples, progress)
    elif packed:
        total = Likelihood()
        for data in packed:
            if data.tokenizer_digest != loaded.tokenizer.digest:
                raise UserError(f"{data.path} was packed with another tokenizer than the checkpoint's; pack it again")
            part = stream_likelihood(loaded.decoder, packed_stream(data, loaded.tokenizer), progress)
            total = Likelihood(total.nats + part.nats, total.tokens + part.tokens, total.words + part.words)
    else:
        total = stream_likelihood(loaded.decoder, text_stream(args.data, loaded.tokenizer, report), progress)
    if total.tokens == 0:
        raise UserError(f"{args.data[0]} holds no text")
    provenance = {
        "command": "perplexity",
        "task": args.task,
        "split": args.split if args.task else None,
        "synthetic": task is not None and examples is not None and task.is_synthetic(examples),
        "input": [str(path.resolve()) for path in args.data],
        "checkpoint": checkpoint_summary(checkpoint),
        "settings": {},
    }
    return total, checkpoint.step, provenance
