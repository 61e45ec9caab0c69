"""Generate text from a checkpoint: for the inputs of a task, or the continuation of a prompt.

With --task, --out gets one hypothesis per line, for each distinct input of the file in its order. --references-out
writes the references for `spdf evaluate`. FILE.provenance.json beside the texts records their origin: checkpoint, task,
split, settings. Decoding is beam search with the settings of LoRA's E2E recipe, unless --greedy or --sample is
given."""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdf_dist.data.tasks import Example, Task
    from spdf_dist.evaluation.generation import GenerationSettings

from spdf_dist.extensions import task_names

HELP = "generate text from a checkpoint"

LOWEST_TEMPERATURE = 1e-6
"""Logits divided by less may overflow."""

HIGHEST_LENGTH_PENALTY = 10.0
"""Lengths to a higher power may overflow, to a lower than its negative may vanish."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a step_N folder, or a run folder")
    what = parser.add_argument_group("what")
    what.add_argument("--task", metavar="TASK", help=", ".join(task_names()))
    what.add_argument("--input", type=Path, metavar="FILE", help="the task's file")
    what.add_argument(
        "--split", default="test", help="train, validation, test (default); WebNLG also has test_seen and test_unseen"
    )
    what.add_argument("--prompt", metavar="TEXT", help="continue this text instead, and print the continuation")
    what.add_argument("--out", type=Path, metavar="FILE", help="file of the hypotheses, one per line")
    what.add_argument(
        "--references-out",
        type=Path,
        metavar="PATH",
        help="file of the references; for WebNLG and DART, a folder",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--beam", type=positive, default=10, metavar="N", help="number of beams (default 10)")
    how.add_argument(
        "--length-penalty", type=float, default=0.8, metavar="X", help="exponent of the length, -10 to 10 (default 0.8)"
    )
    how.add_argument(
        "--no-repeat-ngram",
        type=natural,
        metavar="N",
        help="no N consecutive tokens occur twice; 0 permits it (default: 4 with beams, 0 with --greedy and --sample)",
    )
    how.add_argument(
        "--no-repeat-in",
        choices=("all", "output"),
        default="all",
        help="tokens that count as repeated: prompt and output, as in transformers (all, the default), or output only, "
        "as in LoRA",
    )
    how.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="longest output (default 64)")
    choice = how.add_mutually_exclusive_group()
    choice.add_argument("--greedy", action="store_true", help="take the most likely token, without beams")
    choice.add_argument("--sample", action="store_true", help="sample tokens, without beams")
    how.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="with --sample; 1e-6 or more (default 1.0)"
    )
    how.add_argument(
        "--top-k",
        type=natural,
        default=0,
        metavar="N",
        help="with --sample: only the N most likely tokens; 0 is all (default 0)",
    )
    how.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="with --sample: only the most likely tokens of total probability X (default 1.0)",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="with --sample (default 0)")
    how.add_argument("--batch-size", type=positive, default=32, metavar="N", help="inputs per batch (default 32)")
    how.add_argument("--tokenizer", type=Path, metavar="TOK", help="a tokenizer instead of the checkpoint's")
    how.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model (default auto)"
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def check(args: argparse.Namespace) -> None:
    """Arguments that do not go together, before anything is loaded."""
    from spdf_dist.config.errors import UserError

    if args.prompt is None:
        missing = [f"--{name}" for name in ("task", "input", "out") if getattr(args, name) is None]
        if missing:
            raise UserError(f"{', '.join(missing)} missing: give --task, --input and --out, or --prompt")
    elif args.task or args.input or args.out or args.references_out:
        raise UserError("--prompt prints its continuation; it takes no --task, --input, --out or --references-out")
    else:
        try:
            args.prompt.encode()
        except UnicodeEncodeError as error:  # Python keeps bytes of the command line that are no UTF-8 as surrogates
            raise UserError(f"--prompt is not UTF-8 (character {error.start})") from error
    if not LOWEST_TEMPERATURE <= args.temperature < math.inf:
        raise UserError(
            f"--temperature {args.temperature}: must be finite and at least {LOWEST_TEMPERATURE:g}"
            " (--greedy is the limit of a low one)"
        )
    if not abs(args.length_penalty) <= HIGHEST_LENGTH_PENALTY:
        limit = HIGHEST_LENGTH_PENALTY
        raise UserError(f"--length-penalty {args.length_penalty}: must be in [-{limit:g}, {limit:g}]")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p}: must be in (0, 1]")


def run(args: argparse.Namespace) -> int:
    check(args)
    from spdf_dist.base.signals import stop_on_signal

    with stop_on_signal():
        if args.prompt is None:
            run_task(args)
        else:
            run_prompt(args)
    return 0


def run_task(args: argparse.Namespace) -> None:
    """Write the hypotheses and, if requested, the references."""
    from spdf_dist.data.tasks import distinct_contexts, find_task, load_task

    task = find_task(args.task)
    examples = load_task(args.task, args.input, args.split)

    from spdf_dist.base.numbers import counted
    from spdf_dist.base.progress_bar import ProgressBar
    from spdf_dist.config.errors import SpdfError
    from spdf_dist.data.tasks.write import write_lines, write_references

    check_places(args, task, examples)

    from spdf_dist.checkpoint.read import Checkpoint
    from spdf_dist.evaluation.checkpoint import load
    from spdf_dist.evaluation.provenance import checkpoint_summary, file_summary, write_side_file
    from spdf_dist.evaluation.task_generation import generate_task

    checkpoint = Checkpoint(args.checkpoint)
    loaded = load(checkpoint, args.tokenizer, args.device)
    decoding = settings(args)
    input_summary = file_summary(args.input)
    started = time.perf_counter()
    with ProgressBar(total=len(distinct_contexts(examples)), unit="input", file=sys.stderr) as bar:
        hypotheses = generate_task(loaded, task, examples, decoding, args.batch_size, bar.update)
    seconds = time.perf_counter() - started
    try:
        write_lines(args.out, hypotheses.texts)  # first: they took the time
        summary = {
            "command": "generate",
            "task": task.name,
            "split": args.split,
            "synthetic": task.is_synthetic(examples),
            "input": input_summary,
            "checkpoint": checkpoint_summary(checkpoint),
            "settings": asdict(decoding),
        }
        write_side_file(args.out, summary)
        if args.references_out is not None:
            write_references(task, examples, args.references_out)
    except OSError as error:
        raise SpdfError(f"{error.filename or args.out} cannot be written: {error.strerror}") from error
    notes = [f"{counted(len(hypotheses.texts), 'input')} in {seconds:.1f} s"]
    if hypotheses.cut_prompts:
        notes.append(f"{counted(hypotheses.cut_prompts, 'input')} too long for the model and cut at the end")
    if hypotheses.unfinished:
        notes.append(f"{counted(hypotheses.unfinished, 'text')} cut off at the limit")
    print(f"{args.out}: {'; '.join(notes)}", file=sys.stderr)


def check_places(args: argparse.Namespace, task: Task, examples: Sequence[Example]) -> None:
    """What would keep the outputs from being written, before the model is loaded. Raises UserError."""
    from spdf_dist.config.errors import UserError
    from spdf_dist.data.tasks.write import check_place, reference_groups, reference_paths

    references = [] if args.references_out is None else reference_paths(task, args.references_out)
    for path in (args.out, *references):
        check_place(path)
        if path.exists() and path.samefile(args.input):
            raise UserError(f"{path} is the input, which would be lost: name another file to write")
    if args.references_out is None:
        return
    for path in references:
        if path.resolve() == args.out.resolve():
            raise UserError(f"--out and --references-out would both write {path}")
    try:
        reference_groups(task, examples)
    except UserError as error:
        raise UserError(f"--references-out: {args.input}: {error}") from error


def run_prompt(args: argparse.Namespace) -> None:
    """The continuation of one text."""
    from spdf_dist.checkpoint.read import Checkpoint
    from spdf_dist.config.errors import UserError
    from spdf_dist.evaluation.checkpoint import load
    from spdf_dist.evaluation.generation import generate

    loaded = load(Checkpoint(args.checkpoint), args.tokenizer, args.device)
    prompt = [*loaded.tokenizer.start_ids, *loaded.tokenizer.encode(args.prompt)] or [loaded.tokenizer.eod_id]
    window = loaded.decoder.model.seq_length
    if len(prompt) >= window:
        raise UserError(f"the prompt has {len(prompt)} tokens, the model's context window {window}; shorten it")
    output = generate(loaded.decoder, [prompt], [loaded.tokenizer.eod_id], settings(args))[0]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the text may hold what a terminal's encoding lacks
    print(loaded.tokenizer.decode(output))


def settings(args: argparse.Namespace) -> GenerationSettings:
    """The decoding settings of the arguments."""
    from spdf_dist.evaluation.generation import GenerationSettings

    single = args.greedy or args.sample
    return GenerationSettings(
        max_new_tokens=args.max_new_tokens,
        beams=1 if single else args.beam,
        length_penalty=args.length_penalty,
        no_repeat_ngram=(0 if single else 4) if args.no_repeat_ngram is None else args.no_repeat_ngram,
        ngrams_of_prompt=args.no_repeat_in == "all",
        sample=args.sample,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
