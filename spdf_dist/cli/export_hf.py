"""Write a checkpoint as a Hugging Face GPT2LMHeadModel folder: model.safetensors, config.json, tokenizer.

CHECKPOINT is a step_N folder, a run folder (its newest whole checkpoint is taken) or its checkpoints
folder. Pruned weights are written as zeros. OUT must not exist, or be empty."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a checkpoint as a Hugging Face GPT-2"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a step_N folder, a run folder or its checkpoints")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")


def run(args: argparse.Namespace) -> int:
    from spdf_dist.checkpoint.hf_export import export_hf

    count = export_hf(args.checkpoint, args.out)
    print(f"{args.out}: GPT2LMHeadModel, {count:,} parameters")
    return 0
