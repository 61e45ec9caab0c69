"""Scores of a checkpoint on tasks of EleutherAI's lm-evaluation-harness, without a separate export.

Most tasks download their data. A task over local files works without a network: put its YAML file in a folder and name
the folder with --include-path (docs/huggingface.md has an example). The command needs the extra `eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "score a checkpoint with lm-evaluation-harness"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a step_N folder, or a run folder")
    parser.add_argument(
        "--tasks", required=True, nargs="+", metavar="NAMES", help="tasks or groups, separated by spaces or commas"
    )
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with further task files (YAML)")
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each question (default: the task's own number)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N documents of each task")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="sequences per forward pass (default 8)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the model (default auto)"
    )
    parser.add_argument(
        "--check", action="store_true", help="only check the names of the tasks; CHECKPOINT is not read"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.config.errors import UserError
    from spdf_dist.evaluation.harness import check_tasks, evaluate_tasks

    for option, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')}: must be {least} or more, got {value}")
    tasks = [name for word in args.tasks for name in word.split(",") if name]
    if args.check:
        check_tasks(tasks, args.include_path)
        return 0
    result = evaluate_tasks(
        args.checkpoint,
        tasks,
        task_folder=args.include_path,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        batch_size=args.batch_size,
        device=args.device,
    )
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{result['checkpoint']}, step {result['step']}, lm-evaluation-harness {result['lm_eval']}")
    for name, metrics in result["tasks"].items():
        for metric, value in metrics.items():
            print(f"  {name}  {metric}  {value:.6g}")
    return 0
